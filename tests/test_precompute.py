"""Stored features: training with them is training without, they are refused where they do not fit, and writing them can be stopped."""

import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import tiny
from train_fakes import TOKENIZER, assert_same

from bacl_jax import paths
from bacl_jax.config import ConfigError, DataConfig, MeshConfig, OptimConfig
from bacl_jax.config_eval import EvalConfig
from bacl_jax.config_model import VisionConfig
from bacl_jax.config_objective import BNSConfig, CLAConfig
from bacl_jax.data import Tokenizer, batches, synthetic
from bacl_jax.data.features import INDEX, FeatureFiles
from bacl_jax.errors import CheckpointError, DataError
from bacl_jax.mesh import make_mesh, to_global
from bacl_jax.train import precompute
from bacl_jax.train.checkpoint import Checkpoints, Position
from bacl_jax.train.step import build
from launch.session import Run

ROOT = Path(__file__).parents[1]
IMAGE, TEXT = "towers/image/(?!head/).*", "towers/text/(?!head/).*"
BOTH = (IMAGE, TEXT)
STILL = {"augment_scale": 0.0, "augment_shift": 0.0}
PLAIN = {"bns": BNSConfig(), "cla": CLAConfig()}
CLA_ALONE = {**PLAIN, "cla": CLAConfig(enabled=True, width=16, heads=2)}


def config(frozen=BOTH, *, parts=1, mesh=None, data=STILL, **objective):
    base = tiny.config(groups=16, **objective)
    model = dataclasses.replace(base.model, image=VisionConfig(kind="vit", width=16, depth=1, heads=2, patch=4))
    return dataclasses.replace(
        base,
        data=DataConfig(image_size=16, context_length=8, threads=1, prefetch=1, **data),
        model=model,
        optim=OptimConfig(frozen=frozen, warmup_steps=0),
        train=dataclasses.replace(base.train, micro_batches=parts),
        mesh=mesh or base.mesh,
        eval=EvalConfig(batch_size=32),
    )


@functools.cache
def dataset():
    """Synthetic shapes, with a second caption for every third row."""
    whole = synthetic.load(DataConfig(image_size=16))

    class Captions:
        def __len__(self):
            return len(whole.train)

        def __getitem__(self, row):
            example = whole.train[row]
            return dataclasses.replace(example, others=(f"a {example.caption}",) if row % 3 == 0 else ())

    return dataclasses.replace(whole, train=Captions())


@functools.cache
def tokenizer():
    return Tokenizer.train([*dataset().captions, "a"], config().data)


@functools.cache
def trainer(c, towers=(), devices=False):
    """Compiled once for all tests."""
    mesh = make_mesh(c.mesh) if devices else tiny.one_device()
    return build(c, tokenizer().vocab_size, mesh, dict.fromkeys(towers, "float32"))


def write(c, out, *, dtype="float32", shard_rows=100, data=None):
    t = trainer(c)
    return precompute.write(t, t.init(0).params, data or dataset(), tokenizer(), out, dtype=dtype, shard_rows=shard_rows)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Patterns of what is frozen -> folder of features, float32."""
    made = {frozen: tmp_path_factory.mktemp("features") for frozen in (BOTH, (TEXT,))}
    for frozen, folder in made.items():
        write(config(frozen), folder)
    return made


def trained(c, folder=None, steps=10, devices=False, state=None):
    """(state, losses) after some steps, with or without stored features."""
    stored = None if folder is None else precompute.opened(with_features(c, folder), dataset(), tokenizer())
    t = trainer(c, () if stored is None else stored.index.towers, devices)
    state, losses = state or t.init(0), []
    for _, batch in itertools.islice(batches(dataset(), tokenizer(), c, start_step=int(state.step), stored=stored), steps):
        assert (folder is None) == (batch.stored == {})
        state, metrics = t.step(state, to_global(t.mesh, batch))
        losses.append(float(metrics["loss"]))
    assert int(state.skipped) == 0
    return state, losses


def with_features(c, folder):
    return dataclasses.replace(c, data=dataclasses.replace(c.data, features=str(folder)))


@pytest.mark.parametrize(("frozen", "objective"), [(BOTH, PLAIN), (BOTH, {}), ((TEXT,), {})], ids=["infonce", "bacl", "bacl, text"])
def test_ten_steps_are_those_of_the_whole_towers(folders, frozen, objective):
    c = config(frozen, data=STILL if frozen == BOTH else {}, **objective)  # with texts alone pictures are augmented as ever
    (without, losses), (stored, found) = trained(c), trained(c, folders[frozen])
    np.testing.assert_allclose(found, losses, atol=1e-5)
    assert_close(stored.params, without.params, 1e-5)


def assert_close(found, expected, tolerance):
    """But for the keys' biases: their gradient is 0, and Adam makes steps of what rounding leaves of it."""
    for (path, x), y in zip(paths.named(found), jax.tree.leaves(expected), strict=True):
        if not path.endswith("attention/key/bias"):
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance, err_msg=path)


def test_in_parts_on_devices_they_are_the_same(folders):
    """CLA takes pictures' features again, a part at a time, and channel (b) those of captions out of a bank that lies on all devices."""
    whole, mesh = trained(config(), folders[BOTH], steps=4), MeshConfig(2, 2, 2, fsdp_floor=64)
    parts = trained(config(parts=2, mesh=mesh), folders[BOTH], steps=4, devices=True)
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-4)
    assert_close(parts[0].params, whole[0].params, 1e-4)
    chex.assert_trees_all_equal(parts[0].bank.stored, whole[0].bank.stored)
    rows = np.asarray(whole[0].bank.index)
    found = [FeatureFiles(str(folders[BOTH]))[row]["text.pooled"] for row in rows.tolist()]
    assert all((np.abs(x - y).max(1) == 0).any() for x, y in zip(found, np.asarray(whole[0].bank.stored[0].pooled), strict=True))


@pytest.mark.parametrize("objective", [PLAIN, CLA_ALONE, {}], ids=["infonce", "cla", "bacl"])
def test_no_trunk_runs_in_a_step_with_both_stored(folders, objective):
    c = config(**objective)
    t = trainer(c, ("image", "text"))
    stored = precompute.opened(with_features(c, folders[BOTH]), dataset(), tokenizer())
    _, batch = next(batches(dataset(), tokenizer(), c, start_step=0, stored=stored))
    assert set(batch.inputs) == {"text"}
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(batch.stored)}
    assert any("tokens" in name for name in names) == c.objective.cla.enabled
    state = t.init(0)
    nowhere = paths.replaced(jax.tree.map(lambda x: x * np.nan, state.params), paths.trained(state.params, BOTH))
    state, metrics = t.step(dataclasses.replace(state, params=nowhere), to_global(t.mesh, batch))
    assert np.isfinite(float(metrics["loss"]))
    assert int(state.skipped) == 0


def test_a_folder_tells_what_is_stored(folders):
    files = FeatureFiles(str(folders[BOTH]))
    assert files.index.towers == ("image", "text")
    assert (files.index.rows, files.index.files) == (len(dataset().train), 3)
    assert {name: x.shape for name, x in files[0].items()} == {
        "image.pooled": (16,),
        "image.tokens": (16, 16),
        "text.pooled": (2, 16),
        "text.tokens": (2, 7, 16),  # BOS, a, four words, EOS
    }
    assert files[1]["text.tokens"].shape == (1, 6, 16)
    assert set(FeatureFiles(str(folders[TEXT,]))[0]) == {"text.pooled", "text.tokens"}


def test_half_the_bytes_in_float16(folders, tmp_path):
    index = write(config(), tmp_path, dtype="float16")
    whole, half = FeatureFiles(str(folders[BOTH])), FeatureFiles(str(tmp_path))
    assert sum(shard.bytes for shard in index.shards) < 0.7 * sum(shard.bytes for shard in whole.index.shards)
    for name, x in half[5].items():
        assert x.dtype == np.float16
        np.testing.assert_array_equal(x, whole[5][name].astype(np.float16))
    _, losses = trained(config(**PLAIN), steps=2)
    np.testing.assert_allclose(trained(config(**PLAIN), tmp_path, steps=2)[1], losses, rtol=2e-3)


CHANGES = {
    "resample": (
        {"data": STILL | {"resample": "bicubic"}},
        r'made with data.resample "bilinear", but now it is "bicubic"; make them again',
    ),
    "augmented": ({"data": {}}, r"config.data.augment_scale = 0.15, config.data.augment_shift = 0.1: with stored image features pictures"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_features_of_other_settings_are_refused(folders, name):
    change, line = CHANGES[name]
    with pytest.raises(ConfigError, match=line):
        precompute.opened(with_features(config(**change), folders[BOTH]), dataset(), tokenizer())


def test_features_of_another_tower_tokenizer_or_source_are_refused(folders):
    c = with_features(config(), folders[BOTH])
    deeper = dataclasses.replace(c.model, text=dataclasses.replace(c.model.text, heads=4))
    with pytest.raises(ConfigError, match=r"made with model.text.heads 2, but now it is 4"):
        precompute.opened(dataclasses.replace(c, model=deeper), dataset(), tokenizer())
    with pytest.raises(ConfigError, match=r"made with the tokenizer \(sha256\)"):
        precompute.opened(c, dataset(), Tokenizer.train(["a red cat"], c.data))
    with pytest.raises(ConfigError, match=r"made with some rows \(sha256\)"):
        precompute.opened(c, synthetic.load(c.data), tokenizer())


def test_features_of_other_weights_are_refused(folders):
    c = with_features(config(), folders[BOTH])
    run = Run(c, dataset, tokenizer(), trainer(c), features=FeatureFiles(str(folders[BOTH])))
    run.check_weights(run.trainer.init(0))
    with pytest.raises(ConfigError, match=r"made with weights of the image tower \(sha256\) .* make them again with launch.precompute"):
        run.check_weights(run.trainer.init(1))


def test_a_tower_that_is_trained_has_no_stored_features(folders, tmp_path):
    params = trainer(config()).abstract_state().params
    assert precompute.storable(params, BOTH) == precompute.storable(params, ("towers/.*",)) == ("image", "text")
    assert precompute.storable(params, (TEXT,)) == ("text",)
    assert precompute.storable(params, ("towers/image/stem/.*",)) == ()
    with pytest.raises(ConfigError, match=r"holds features of the image tower, which config.optim.frozen = .* leaves to train"):
        precompute.check_storable(params, (TEXT,), ("image", "text"), "there")
    with pytest.raises(ConfigError, match="of no tower are all parameters frozen"):
        write(config(("towers/image/stem/.*",)), tmp_path)


def test_what_is_no_folder_of_features_is_named(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"features.json cannot be read"):
        FeatureFiles(str(tmp_path))
    shutil.copytree(folders[BOTH], tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps(content | {"shards": content["shards"][:2], "complete": False}))
    with pytest.raises(ConfigError, match=r"is not finished, 2 of 3 files are there; the same launch.precompute goes on"):
        FeatureFiles(str(tmp_path))
    with pytest.raises(ConfigError, match=r"--workdir=.* holds features made with --dtype \"float32\", but now it is \"float16\""):
        write(config(), tmp_path, dtype="float16")
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        FeatureFiles(str(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "gone", "bytes changed", "zeros"])
def test_damaged_files_end_the_run_whatever_is_left_out_of_the_data(folders, tmp_path, damage):
    """Left out, as bad rows are, a file's rows would be replaced by others, of which the run without features knows nothing."""
    shutil.copytree(folders[BOTH], tmp_path, dirs_exist_ok=True)
    file = tmp_path / FeatureFiles(str(tmp_path)).index.shards[0].name
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "zeros":
        file.write_bytes(bytes(len(content)))
    else:
        content[200::300] = bytes(byte ^ 1 for byte in content[200::300])  # some in each row
        file.write_bytes(content)
    c = config(data=STILL | {"on_error": "skip", "max_error_share": 1.0}, **PLAIN)
    stored = precompute.opened(with_features(c, tmp_path), dataset(), tokenizer())
    with pytest.raises(ConfigError, match=rf"config.data.features: {file}") as raised:
        list(itertools.islice(batches(dataset(), tokenizer(), c, start_step=0, stored=stored), 4))
    assert "convert" not in str(raised.value)
    assert "on_error" not in str(raised.value)


def test_rows_that_cannot_be_used_are_replaced_as_without_features(tmp_path):
    class Holes:
        def __len__(self):
            return len(dataset().train)

        def __getitem__(self, row):
            if row % 7 == 3:
                raise DataError(f"row {row} is damaged", kind="picture", shard="some.tar")
            return dataset().train[row]

    holes = dataclasses.replace(dataset(), train=Holes())
    with pytest.raises(DataError, match="row 3 is damaged"):
        write(config(**PLAIN), tmp_path / "raise", data=holes)
    c = config(data=STILL | {"on_error": "skip", "max_error_share": 1.0}, **PLAIN)
    index = write(c, tmp_path / "skip", data=holes)
    assert sum(shard.skipped["picture"] for shard in index.shards) == len(range(3, len(dataset().train), 7))
    stored = FeatureFiles(str(tmp_path / "skip"))
    with pytest.raises(DataError, match="row 10 is damaged") as caught:
        stored[10]
    assert (caught.value.kind, caught.value.shard) == ("picture", "some.tar")
    first, second = (next(batches(holes, tokenizer(), c, start_step=3, stored=each))[1] for each in (None, stored))
    np.testing.assert_array_equal(first.index, second.index)


def test_killed_it_goes_on_at_the_first_file_that_is_missing(tmp_path):
    """A real process and a real signal. No file is half there, and those that were finished are not written again."""
    program = "import sys, test_precompute as t; t.write(t.config(), t.Path(sys.argv[1]), shard_rows=8)"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"}
    out = tmp_path / "features"
    process = subprocess.Popen([sys.executable, "-c", program, str(out)], env=environment, cwd=ROOT)
    while not (out / INDEX).exists() or len(json.loads((out / INDEX).read_text())["shards"]) < 3:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.suffix == ".array_record"}
    listed = {shard["name"] for shard in json.loads((out / INDEX).read_text())["shards"]}
    assert not json.loads((out / INDEX).read_text())["complete"]
    index = write(config(), out, shard_rows=8)
    assert len(index.shards) == index.files
    assert all((out / name).stat().st_mtime_ns == before[name] for name in listed)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    stored = FeatureFiles(str(out))
    assert set(stored[len(dataset().train) - 1]) == {"image.pooled", "image.tokens", "text.pooled", "text.tokens"}


def test_a_run_goes_on_without_features_and_with_them_where_the_bank_has_them(folders, tmp_path):
    c = config()
    (with_stored, _), (without, _) = (trained(c, folder, steps=2) for folder in (folders[BOTH], None))
    plain, stored = trainer(c), trainer(c, ("image", "text"))
    for name, state in (("with", with_stored), ("without", without)):
        with Checkpoints(tmp_path / name) as checkpoints:
            checkpoints.save(state, Position(2), (), c, TOKENIZER)
    with Checkpoints(tmp_path / "with") as checkpoints:
        again, bare = (checkpoints.restore(t.abstract_state(), len(dataset().train)) for t in (stored, plain))
    assert again is not None
    assert bare is not None
    assert_same(jax.device_get(again.state), jax.device_get(with_stored))
    assert bare.state.bank.stored == ()
    _, losses = trained(c, steps=2, state=bare.state)
    np.testing.assert_allclose(losses, trained(c, folders[BOTH], steps=2, state=again.state)[1], atol=1e-5)
    with Checkpoints(tmp_path / "without") as checkpoints, pytest.raises(CheckpointError, match="has no stored features of the captions"):
        checkpoints.restore(stored.abstract_state(), len(dataset().train))
