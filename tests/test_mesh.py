"""The mesh on eight fake devices."""

import jax
import numpy as np
import pytest

from bacl_jax.config import Config, ConfigError, MeshConfig, TrainConfig
from bacl_jax.config_objective import ObjectiveConfig
from bacl_jax.mesh import batch_sharding, make_mesh, replicated, to_global
from bacl_jax.rules import check_divides


def test_data_takes_what_remains():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(MeshConfig(fsdp=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("config", "found"), [(MeshConfig(fsdp=3), "mesh.fsdp 3 x mesh.tensor 1 = 3"), (MeshConfig(data=4), "set mesh.data to -1 or 8")]
)
def test_what_does_not_fit_is_refused(config, found):
    with pytest.raises(ConfigError, match=found):
        make_mesh(config)


@pytest.mark.parametrize(
    ("batch", "bank", "groups", "found"),
    [
        (12, 48, 1, "train.batch_size 12 does not divide over the 8 devices: use 8 or 16"),
        (24, 48, 3, None),
        (16, 48, 3, r"train.batch_size 16 does not divide over 24 \(objective.groups 3, 8 devices, train.micro_batches 1\): use 24"),
        (16, 50, 1, "objective.bank_size 50 does not divide over the 8 devices: use 48 or 56"),
    ],
)
def test_rows_divide_over_all_devices(batch, bank, groups, found):
    config = Config(objective=ObjectiveConfig(bank_size=bank, groups=groups), train=TrainConfig(batch_size=batch))
    if found is None:
        check_divides(make_mesh(MeshConfig()).size, config)
        return
    with pytest.raises(ConfigError, match=found):
        check_divides(make_mesh(MeshConfig(fsdp=2, tensor=2)).size, config)


def test_a_host_batch_becomes_a_sharded_global_array():
    mesh = make_mesh(MeshConfig(fsdp=2))
    x = np.arange(32).reshape(16, 2)
    y = to_global(mesh, {"x": x})["x"]
    assert y.sharding == batch_sharding(mesh)
    assert y.addressable_shards[0].data.shape == (2, 2)
    assert (np.asarray(y) == x).all()
    assert jax.device_put(x, replicated(mesh)).addressable_shards[0].data.shape == (16, 2)
