import dataclasses
import json
import os
import shutil
import subprocess

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from train_fakes import ROWS, TOKENIZER, FakeTrainer, assert_same, tiny_config

from bacl_jax.config import ConfigError, from_config_dict, to_dict
from bacl_jax.data.order import PartnerList
from bacl_jax.errors import CheckpointError
from bacl_jax.train.checkpoint import Checkpoints, Position
from bacl_jax.train.workdir import claim_workdir, lock_workdir, read_config

CONFIG = tiny_config()
PARTNERS = (
    PartnerList(2, np.zeros(0, np.int64), np.zeros((0, 3), np.int32)),
    PartnerList(7, np.array([1, 4, 38]), np.array([[0, -1, 7], [38, 38, 1], [-1, -1, 39]], np.int32)),
)


def advanced(trainer, steps):
    state = trainer.init(0)
    for step in range(steps):
        state, _ = trainer.step(state, {"index": np.arange(step, step + 8, dtype=np.int32)})
    return state


@pytest.fixture(scope="module")
def trainer():
    return FakeTrainer()


@pytest.fixture(scope="module")
def written(tmp_path_factory, trainer):
    """A workdir with checkpoints of steps 3 and 5."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, keep=2) as checkpoints:
        for step in (3, 5):
            checkpoints.save(advanced(trainer, step), Position(step, 1.5 * step, 3, 0.25), PARTNERS, CONFIG, TOKENIZER)
    return workdir


@pytest.fixture
def workdir(written, tmp_path):
    return shutil.copytree(written, tmp_path / "run")


@pytest.mark.parametrize("ema", [True, False])
def test_what_is_saved_is_restored(tmp_path, ema):
    trainer = FakeTrainer(ema=ema)
    position = Position(5, 12.25, 4, 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(trainer.abstract_state(), ROWS) is None
        checkpoints.save(advanced(trainer, 5), position, PARTNERS, CONFIG, TOKENIZER)
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(trainer.abstract_state(), ROWS)
        assert checkpoints.read_json("config") == to_dict(CONFIG)
        assert checkpoints.read_json("tokenizer") == TOKENIZER
    assert found is not None
    assert found.position == position
    assert_same(found.state, advanced(trainer, 5))
    assert list(found.tokenizer["model"]["vocab"]) == list(TOKENIZER["model"]["vocab"])
    assert [one.active_from for one in found.partners] == [2, 7]
    for one, saved in zip(found.partners, PARTNERS, strict=True):
        np.testing.assert_array_equal(one.rows, saved.rows, strict=True)
        np.testing.assert_array_equal(one.partners, saved.partners, strict=True)


def test_lists_lie_on_disk_as_rows_and_partners_after_a_row_of_none(written):
    with Checkpoints(written, read_only=True) as checkpoints:
        found = checkpoints._manager.restore(5, args=ocp.args.Composite(partners=ocp.args.StandardRestore()))["partners"]
    assert found.keys() == {"2", "7"}
    for key, rows, partners in (("2", [-1], [[-1] * 3]), ("7", [-1, 1, 4, 38], [[-1] * 3, [0, -1, 7], [38, 38, 1], [-1, -1, 39]])):
        np.testing.assert_array_equal(found[key]["rows"], np.array(rows, np.int64), strict=True)
        np.testing.assert_array_equal(found[key]["partners"], np.array(partners, np.int32), strict=True)


@pytest.mark.parametrize(("rows", "highest"), [(39, 39), (30, 38), (1, 38)])
def test_lists_of_more_rows_than_the_data_have(workdir, trainer, rows, highest):
    line = f"list of step 7 in the checkpoint of step 5 names training row {highest}, but the training data have {rows} rows: fewer than"
    with Checkpoints(workdir) as checkpoints, pytest.raises(CheckpointError, match=line):
        checkpoints.restore(trainer.abstract_state(), rows)


def test_no_partner_list_is_no_item(tmp_path, trainer):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(advanced(trainer, 1), Position(1), (), CONFIG, TOKENIZER)
        checkpoints.wait()
        found = checkpoints.restore(trainer.abstract_state(), ROWS)
    assert found is not None
    assert found.partners == []


def test_a_save_holds_the_state_of_its_step_while_training_goes_on(tmp_path, trainer):
    """The step donates its buffers while orbax still writes them."""
    state = advanced(trainer, 2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, Position(2), (), CONFIG, TOKENIZER)
        for _ in range(50):
            state, _ = trainer.step(state, {"index": np.zeros(8, np.int32)})
        checkpoints.wait()
        found = checkpoints.restore(trainer.abstract_state(), ROWS)
    assert found is not None
    assert_same(found.state, advanced(trainer, 2))


def test_any_sharding_reads_it(workdir, trainer):
    sharded = NamedSharding(trainer.mesh, PartitionSpec("data"))
    abstract = trainer.abstract_state()
    leaf = abstract.params["towers"]["w"]
    params = abstract.params | {"towers": {"w": jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharded)}}
    with Checkpoints(workdir) as checkpoints:
        found = checkpoints.restore(dataclasses.replace(abstract, params=params), ROWS)
    assert found is not None
    assert found.state.params["towers"]["w"].sharding == sharded
    assert_same(found.state.params, advanced(trainer, 5).params)


def test_evaluation_reads_the_average_alone(workdir, trainer):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.checked_step(None) == 5
        for step in (3, 5):
            assert_same(checkpoints.restore_params(trainer.abstract_state().params, step), (step, advanced(trainer, step).ema))
        with pytest.raises(CheckpointError, match=r"no readable checkpoint of step 4 .* found \[3, 5\]"):
            checkpoints.restore_params(trainer.abstract_state().params, 4)


@pytest.mark.parametrize("damage", ["delete", "truncate"])
@pytest.mark.parametrize("ema", [True, False])
def test_evaluation_needs_no_other_item(tmp_path, ema, damage):
    trainer, read = FakeTrainer(ema=ema), "ema" if ema else "params"
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(advanced(trainer, 5), Position(5), PARTNERS, CONFIG, TOKENIZER)
    folder = tmp_path / "checkpoints" / "5"
    others = {path.name for path in folder.iterdir() if path.is_dir()} - {read, "tokenizer"}
    assert {"opt_state", "bank", "rng", "counters", "partners", "position", "config"} <= others
    for name in others:
        if damage == "delete":
            shutil.rmtree(folder / name)
        for path in folder.glob(f"{name}/**/*"):
            if path.is_file():
                path.write_bytes(b"")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        state = advanced(trainer, 5)
        assert_same(checkpoints.restore_params(trainer.abstract_state().params), (5, state.ema if ema else state.params))
        assert checkpoints.read_json("tokenizer") == TOKENIZER
        with pytest.warns(UserWarning, match="is ignored: "), pytest.raises(CheckpointError, match="no readable checkpoint"):
            checkpoints.checked_step(None)


def test_a_lost_average_is_not_replaced_by_the_parameters(workdir, trainer):
    shutil.rmtree(workdir / "checkpoints" / "5" / "ema")
    with Checkpoints(workdir, read_only=True) as checkpoints, pytest.warns(UserWarning, match=r"5 is ignored: ema/.* is missing"):
        assert checkpoints.restore_params(trainer.abstract_state().params)[0] == 3


def test_a_checkpoint_that_is_removed_while_it_is_read(workdir, trainer, monkeypatch):
    with Checkpoints(workdir, read_only=True) as checkpoints:

        def remove(step, args):
            shutil.rmtree(workdir / "checkpoints" / str(step))
            raise ValueError("NOT_FOUND: Error opening a file")

        monkeypatch.setattr(checkpoints._manager, "restore", remove)
        with pytest.raises(CheckpointError, match=r"checkpoints/5 cannot be read: it is not there any more"):
            checkpoints.restore_params(trainer.abstract_state().params)

        def fail(step, args):
            raise ValueError("something else")

        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(ValueError, match="something else"):
            checkpoints.restore_params(trainer.abstract_state().params)


def test_sums_are_those_of_sha256sum(workdir):
    for step in ("3", "5"):
        done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=workdir / "checkpoints" / step, check=False)
        assert done.returncode == 0


def files_of_items(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.parent != folder)


def damaged(content, damage):
    """None for a file that is gone."""
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {"delete": None, "truncate": content[:middle], "flip": flipped}[damage]


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_damage_to_any_file_is_noticed(workdir, damage):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        for name in files_of_items(workdir / "checkpoints" / "5"):
            path = workdir / "checkpoints" / "5" / name
            content = path.read_bytes()
            changed = damaged(content, damage)
            path.unlink() if changed is None else path.write_bytes(changed)
            with pytest.warns(UserWarning, match=f"5 is ignored: {name} (is missing|has changed)"):
                assert checkpoints.checked_step(None) == 3
            path.write_bytes(content)
        assert checkpoints.checked_step(None) == 5


def test_a_damaged_checkpoint_is_ignored_for_the_one_before(workdir, trainer):
    os.truncate(workdir / "checkpoints" / "5" / "params" / "manifest.ocdbt", 50)
    with pytest.warns(UserWarning, match=r"checkpoint of step 5 is ignored: .*; that of step 3 is used"):
        checkpoints = Checkpoints(workdir)
    with checkpoints:
        found = checkpoints.restore(trainer.abstract_state(), ROWS)
        assert found is not None
        assert found.position.step == 3
        checkpoints.save(advanced(trainer, 5), Position(5), (), CONFIG, TOKENIZER)
        checkpoints.wait()
        assert checkpoints.steps() == [3, 5]
    assert (workdir / "unreadable" / "5").is_dir()


@pytest.mark.parametrize("leftover", ["7", "7.orbax-checkpoint-tmp"])
def test_a_half_written_checkpoint_is_ignored(workdir, trainer, leftover):
    shutil.copytree(workdir / "checkpoints" / "5" / "params", workdir / "checkpoints" / leftover / "params")
    expected = pytest.warns(UserWarning, match="half-written") if leftover == "7" else pytest.MonkeyPatch.context()
    with expected, Checkpoints(workdir) as checkpoints:
        found = checkpoints.restore(trainer.abstract_state(), ROWS)
    assert found is not None
    assert found.position.step == 5
    assert not (workdir / "checkpoints" / leftover).exists()


def test_when_none_can_be_read_the_run_starts_over(workdir, trainer):
    for step in ("3", "5"):
        os.truncate(workdir / "checkpoints" / step / "position" / "metadata", 3)
    with pytest.warns(UserWarning, match="none is left, the run starts at step 0"), Checkpoints(workdir) as checkpoints:
        assert checkpoints.restore(trainer.abstract_state(), ROWS) is None


def test_a_workdir_without_its_config_is_known_by_its_checkpoint(workdir):
    other = dataclasses.replace(CONFIG, seed=CONFIG.seed + 1)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.check_config(CONFIG)
        with pytest.raises(ConfigError, match=r"the workdir belongs to another config: .*seed"):
            checkpoints.check_config(other)


def test_a_full_disk_is_one_line_that_says_what_is_there(workdir, trainer, monkeypatch):
    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing file: No space left on device")

    with Checkpoints(workdir) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(CheckpointError, match=r"no space left for a checkpoint in .*: the newest one is of step 5; make room"):
            checkpoints.save(advanced(trainer, 9), Position(9), (), CONFIG, TOKENIZER)


def test_read_only_leaves_everything_in_place(workdir, trainer):
    os.truncate(workdir / "checkpoints" / "5" / "ema" / "manifest.ocdbt", 3)
    before = files_of_items(workdir)
    with (
        Checkpoints(workdir, read_only=True) as checkpoints,
        pytest.warns(UserWarning, match="5 is ignored: ema/manifest.ocdbt has changed"),
    ):
        assert checkpoints.restore_params(trainer.abstract_state().params)[0] == 3
    assert files_of_items(workdir) == before


def test_newest_and_best_are_kept(tmp_path, trainer):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(advanced(trainer, step), Position(step, best_step=2), (), CONFIG, TOKENIZER)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        restored = checkpoints.restore(trainer.abstract_state(), ROWS)
        assert restored is not None
        assert restored.position.best_step == 2
        checkpoints.save(advanced(trainer, 7), dataclasses.replace(restored.position, step=7), (), CONFIG, TOKENIZER)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 7]


def test_a_workdir_belongs_to_its_config(tmp_path):
    claim_workdir(tmp_path, CONFIG)
    claim_workdir(tmp_path, CONFIG)
    assert read_config(tmp_path) == CONFIG

    longer = from_config_dict(to_dict(CONFIG) | {"train": to_dict(CONFIG)["train"] | {"steps": 99}})
    claim_workdir(tmp_path, longer)
    assert read_config(tmp_path) == longer

    other = from_config_dict(to_dict(CONFIG) | {"seed": 4, "optim": to_dict(CONFIG)["optim"] | {"lr": 0.5}})
    with pytest.raises(ConfigError, match=rf"config.seed was 0, is now 4; config.optim.lr was {CONFIG.optim.lr}, is now 0.5"):
        claim_workdir(tmp_path, other)
    assert read_config(tmp_path) == longer


def test_a_workdir_has_one_process(tmp_path):
    with (
        lock_workdir(tmp_path / "run"),
        pytest.raises(ConfigError, match=rf"--workdir=.*run is in use by another process \(pid {os.getpid()}\)"),
        lock_workdir(tmp_path / "run"),
    ):
        pass
    with lock_workdir(tmp_path / "run"):
        pass


@pytest.mark.parametrize("workdir", ["/proc/foo", "{tmp}/file", "{tmp}/file/run"])
def test_a_workdir_that_cannot_be_written(tmp_path, workdir):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--workdir=.* cannot be written: "), lock_workdir(workdir.format(tmp=tmp_path)):
        pass


def test_no_or_damaged_config_json(tmp_path):
    with pytest.raises(ConfigError, match=r"--workdir=.* is no workdir of a run: .*config.json does not exist"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(CONFIG))[:50])
    with pytest.raises(ConfigError, match="damaged"):
        claim_workdir(tmp_path, CONFIG)
