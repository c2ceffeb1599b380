"""Evaluation over every device of a process: each encodes its share of the rows, and no number changes."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from eval_fakes import Tokenizer, dataset

from bacl_jax.config import MeshConfig
from bacl_jax.eval.embeddings import Embeddings
from bacl_jax.eval.rerank import split_retrieval
from bacl_jax.mesh import make_mesh, mesh_of, on_local_devices, to_host
from bacl_jax.train.step import build

MESHES = {"data": MeshConfig(), "fsdp": MeshConfig(fsdp=4, fsdp_floor=16), "tensor": MeshConfig(tensor=2)}


def configured(mesh=None):
    config = tiny.config()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, context_length=6),
        eval=dataclasses.replace(config.eval, rerank=4, batch_size=12, chunk=8),
        mesh=mesh or config.mesh,
    )


@pytest.fixture(scope="module")
def alone():
    """(trainer on one device, its parameters)."""
    trainer = build(configured(), tiny.VOCABULARY, tiny.one_device())
    return trainer, trainer.init(0).params


def on_mesh(params, mesh):
    """(trainer on 8 devices, these parameters there)."""
    trainer = build(configured(mesh), tiny.VOCABULARY, make_mesh(mesh))
    return trainer, jax.device_put(jax.tree.map(np.asarray, params), trainer.shardings.params)


def rows(count):
    random = np.random.default_rng(0)
    ids, mask = Tokenizer().encode([f"caption {i}" for i in range(count)])
    return random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8), ids, mask


def same(found, expected):
    """The same features but for rounding: a CPU sums a product of 2 rows in another order than one of 16."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-6, atol=5e-6), found, expected)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("count", [16, 12, 5])
def test_features_are_those_of_one_device(alone, mesh, count):
    images, ids, mask = rows(count)
    trainer, params = on_mesh(alone[1], MESHES[mesh])
    for name, arguments in (("encode_image", (images,)), ("encode_text", (ids, mask))):
        found, expected = getattr(trainer, name)(params, *arguments), getattr(alone[0], name)(alone[1], *arguments)
        assert found.pooled.shape == expected.pooled.shape
        same(found, expected)


def test_each_device_encodes_its_rows(alone):
    trainer, params = on_mesh(alone[1], MeshConfig())
    found = trainer.encode_image(params, rows(16)[0])
    assert {shard.data.shape[0] for shard in found.tokens.addressable_shards} == {2}
    assert len({shard.index[0].start for shard in found.tokens.addressable_shards}) == 8


def test_a_task_gives_the_same_numbers(alone):
    painted = {row: np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8) for row in range(20)}
    data = dataset(list(range(20)), total=24)
    data.splits["test"].source.painted.update(painted)
    config = configured()

    def run(trainer, params):
        return split_retrieval(Embeddings(trainer, params, data, Tokenizer(), config, "test"))

    expected = run(*alone)
    assert run(*on_mesh(alone[1], MeshConfig())) == expected
    assert "t2i_R@1_reranked" in expected


def test_parameters_of_the_host_go_to_all_devices_of_the_process(alone):
    trainer, params = alone
    placed = on_local_devices(jax.tree.map(np.asarray, to_host(params)))
    assert mesh_of(placed).size == 8
    assert mesh_of(params) is None
    assert on_local_devices(params) is params
    images = rows(16)[0]
    found = trainer.encode_image(placed, images)
    assert len(found.pooled.sharding.device_set) == 8
    same(found, trainer.encode_image(params, images))
