import numpy as np
import pytest
from eval_fakes import CONFIG, Tokenizer, Trainer, unit
from PIL import Image
from scipy.optimize import minimize

from bacl_jax.config import ConfigError, from_config_dict, to_dict
from bacl_jax.config_eval import ProbeConfig
from bacl_jax.errors import DataError
from bacl_jax.eval import benchmark_report, suite
from bacl_jax.eval.encoder import Encoder
from bacl_jax.eval.probe import chosen, fit, held_out


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (value, value, value)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Classes a, b, c: twelve pictures of each to fit to, four to test on (of a and c alone); grey value = number of the embedding."""
    value = 0
    for split, classes, count in (("train", "abc", 12), ("test", "ac", 4)):
        for name in classes:
            for i in range(count):
                picture(tmp_path / split / name / f"{i:02d}.png", value)
                value += 1
    return tmp_path


def clouds(spread, seed=0):
    """Embeddings of these pictures: each class around its own axis."""
    label = np.repeat([0, 1, 2, 0, 2], [12, 12, 12, 4, 4])
    return unit(np.eye(4)[label] + spread * np.random.default_rng(seed).normal(size=(44, 4)))


def run(folders, z, **values):
    values = {"path": str(folders / "train"), "test": str(folders / "test")} | values
    config = from_config_dict(to_dict(CONFIG) | {"eval": to_dict(CONFIG)["eval"] | {"probe": values}})
    return suite.BENCHMARKS["probe"](Encoder(Trainer(), {"z": z}, Tokenizer(), config))


def loss(flat, z, label, weight, classes):
    w, b = flat[: classes * z.shape[1]].reshape(classes, -1), flat[classes * z.shape[1] :]
    logits = z @ w.T + b
    return np.mean(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(z)), label]) + weight / 2 * np.sum(w**2)


@pytest.mark.parametrize("weight", [1e-3, 0.1])
def test_the_fit_is_the_minimum_that_scipy_finds(weight):
    random = np.random.default_rng(0)
    z, label = unit(random.normal(size=(60, 5))), random.integers(0, 3, 60)
    w, b = fit(z, label, weight, (np.zeros((3, 5), np.float32), np.zeros(3, np.float32)), steps=500)
    found = minimize(loss, np.zeros(18), (z.astype(np.float64), label, weight, 3), options={"gtol": 1e-8}, method="BFGS")
    ours = loss(np.concatenate([np.asarray(w).ravel(), b]).astype(np.float64), z.astype(np.float64), label, weight, 3)
    assert ours == pytest.approx(found.fun, rel=1e-5)
    np.testing.assert_allclose(w, found.x[:15].reshape(3, 5), atol=5e-3)


def test_classes_that_lie_apart_are_told(folders):
    found = run(folders, clouds(0.05))
    m = found.metrics
    assert (m["top1"], m["top5"], m["mean_class_recall"], m["validation_top1"]) == (100, 100, 100, 100)
    assert (m["top1_chance"], m["top5_chance"], m["mean_class_recall_chance"]) == pytest.approx((100 / 3, 100, 100 / 3))
    assert (m["n"], m["n_entries"], m["n_train"], m["n_classes"], m["weight"]) == (8, 8, 36, 3, 1)
    assert found.left_out == []
    assert benchmark_report.table("probe", m).row_count == 3


def test_a_collapsed_model_scores_chance(folders):
    m = run(folders, np.full((44, 4), 0.5, np.float32)).metrics
    assert m["top1"] == pytest.approx(m["top1_chance"])


def test_pictures_that_cannot_be_read_are_left_out(folders):
    (folders / "train" / "a" / "00.png").write_bytes(b"no")
    (folders / "test" / "c" / "03.png").write_bytes(b"no")
    found = run(folders, clouds(0.05))
    assert (found.metrics["n"], found.metrics["n_entries"], found.metrics["n_train"], found.metrics["left_out/unreadable"]) == (7, 8, 35, 2)
    assert [one.file for one in found.left_out] == [str(folders / "train"), str(folders / "test")]
    for path in (folders / "test").rglob("*.png"):
        path.write_bytes(b"")
    m = run(folders, clouds(0.05)).metrics
    assert m["n"] == 0
    assert "top1" not in m
    for path in (folders / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of 36 pictures can be read"):
        run(folders, clouds(0.05))


def test_the_weight_is_chosen_on_held_out_pictures():
    """Some labels are wrong: a weak term fits them, and does worse on pictures not seen."""
    random = np.random.default_rng(2)
    z = random.normal(size=(400, 100)).astype(np.float32)
    z[:, :4] *= 3
    z, label = unit(z), (z[:, :4].sum(axis=1) > 0).astype(np.int64)
    noisy = np.where(random.random(400) < 0.15, 1 - label, label)
    weight, top1 = chosen(z, noisy, 2, ProbeConfig(weights=(1e-6, 1e-2), validation_share=0.5))
    assert weight == 1e-2
    assert top1 > 70
    assert chosen(z, noisy, 2, ProbeConfig(weights=(0.3,))) == (0.3, None)


def test_what_is_held_out_is_a_share_of_each_class_drawn_by_the_seed():
    label = np.repeat([0, 1, 2], [20, 10, 1])
    held = held_out(label, 0.2, 0)
    assert np.bincount(label[held], minlength=3).tolist() == [4, 2, 0]
    assert (held == held_out(label, 0.2, 0)).all()
    assert (held != held_out(label, 0.2, 1)).any()
    assert np.bincount(label[held_out(label, 1.0, 0)], minlength=3).tolist() == [19, 9, 0]
    with pytest.raises(ConfigError, match=r"config\.eval\.probe\.validation_share = 0\.2: holds out no picture"):
        chosen(np.eye(3, dtype=np.float32), np.arange(3), 3, ProbeConfig())


def test_folders_that_do_not_fit(folders):
    with pytest.raises(ConfigError, match=r"config\.eval\.probe\.test = None: must name a folder"):
        run(folders, clouds(0.05), test=None)
    picture(folders / "test" / "dog" / "0.png", 0)
    with pytest.raises(DataError, match=r"class 'dog' has no folder in .*train; both need the same classes"):
        run(folders, clouds(0.05))
    with pytest.raises(ConfigError, match=r"config\.eval\.probe\.weights = \(\): must name at least one weight"):
        run(folders, clouds(0.05), weights=())
