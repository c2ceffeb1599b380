"""The linear theory's parts: the model and its moments, subspaces, descent, the filter, detection of partners; and the door."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from bacl_jax.config import ConfigError
from bacl_jax.objective import mmcl
from bacl_jax.theory import descent, drawing, figures, linear, partners, rates, recovery, spiked, unpaired
from bacl_jax.theory.experiment import Experiment, Result
from launch import theory

ROOT = Path(__file__).parents[1]
NORMAL = np.random.default_rng(0).normal


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64():
        yield


def model(noise=(0.5, 1.0, 2.0, 0.5, 1.0), turned=False):
    return spiked.draw(jax.random.key(1), jnp.asarray([1.5, 0.8]), jnp.asarray(noise), jnp.asarray([0.7, 0.2, 0.9, 1.1]), turned=turned)


def covariance_of(one, share):
    """The population's, written out."""
    u, v, signal = np.asarray(one.u), np.asarray(one.v), np.diag(np.asarray(one.signal) ** 2)
    x, y = u @ signal @ u.T + one.noise_x @ one.noise_x.T, v @ signal @ v.T + one.noise_y @ one.noise_y.T
    cross = share * u @ signal @ v.T
    return np.block([[x, cross], [cross.T, y]])


def test_rows_have_the_models_covariance_and_clean_share():
    one = model(turned=True)
    rows = spiked.rows(jax.random.key(2), one, 200_000, 0.6)
    assert abs(float(rows.clean.mean()) - 0.6) < 0.005
    np.testing.assert_allclose(np.cov(np.hstack([rows.x, rows.y]).T), covariance_of(one, 0.6), atol=0.06)
    np.testing.assert_allclose(one.u.T @ one.u, np.eye(2), atol=1e-12)


@pytest.mark.parametrize("counts", [(6, 4), (0, 5), (5, 0), (1, 3), (60, 40)])
def test_moments_without_rows_are_distributed_as_those_of_rows(counts):
    one, seeds = model(), 4000
    drawn = jax.jit(jax.vmap(lambda key: spiked.covariance(key, one, jnp.asarray(counts))))(jax.random.split(jax.random.key(3), seeds))
    mixes, n = [np.asarray(spiked.mixing(one, clean=clean)) for clean in (True, False)], sum(counts)
    data = np.concatenate([NORMAL(size=(seeds, c, mix.shape[1])) @ mix.T for c, mix in zip(counts, mixes, strict=True)], 1)
    data -= data.mean(1, keepdims=True)
    made = np.einsum("snd,sne->sde", data, data) / (n - 1)
    for power in (1, 2):  # the means and the second moments of all entries agree within five standard errors
        a, b = np.asarray(drawn) ** power, made**power
        spread = np.sqrt((a.var(0) + b.var(0)) / seeds)
        assert (np.abs(a.mean(0) - b.mean(0)) < 5 * spread).all()
    assert np.linalg.matrix_rank(np.asarray(drawn)[0]) == min(n - 1, 9)


def test_sin_theta_is_a_distance_of_subspaces():
    a, b, turn = (jnp.asarray(np.linalg.qr(NORMAL(size=(size, 3)))[0]) for size in (7, 7, 3))
    distance = float(linear.sin_theta(a, b))
    assert float(linear.sin_theta(a @ turn, a)) < 1e-14
    np.testing.assert_allclose([linear.sin_theta(b, a), linear.sin_theta(a @ turn, b)], distance)
    np.testing.assert_allclose(distance, np.sqrt(3 - np.sum(np.asarray(a.T @ b) ** 2)))
    np.testing.assert_allclose(linear.sin_theta(jnp.eye(7)[:, :3], jnp.eye(7)[:, 4:]), np.sqrt(3))


def test_the_closed_form_is_the_svd_of_the_centred_cross_covariance():
    x, y = NORMAL(size=(50, 6)) + 3, NORMAL(size=(50, 4)) - 2
    s = linear.cross_covariance(jnp.asarray(x), jnp.asarray(y), jnp.ones(50))
    np.testing.assert_allclose(s, np.cov(x.T, y.T, bias=True)[:6, 6:], atol=1e-12)
    fit, (u, values, vt) = linear.closed_form(s, 2), np.linalg.svd(np.asarray(s))
    np.testing.assert_allclose((fit.u * fit.weight[None]) @ fit.v.T, (u[:, :2] * values[:2]) @ vt[:2], atol=1e-12)


def test_descent_by_the_linear_form_reaches_the_closed_form():
    rows = spiked.rows(jax.random.key(4), model(), 300)
    start = linear.initial(jax.random.key(5), (5, 4), 2)
    (g1, g2), fits = linear.descend(start, rows.x, rows.y, mmcl.linear(), strength=0.5, rate=0.1, steps=1500, every=500)
    s = np.cov(rows.x.T, rows.y.T)[:5, 5:]
    best = linear.closed_form(jnp.asarray(s), 2)
    np.testing.assert_allclose(g1.T @ g2, (best.u * best.weight[None]) @ best.v.T / 0.5, atol=1e-8)
    assert float(linear.sin_theta(fits.u[-1], best.u)) < 1e-8


def test_the_unimodal_solution_is_that_of_random_complementary_masks():
    x = NORMAL(size=(20_000, 5)) @ np.diag([1, 2, 1, 3, 1]) + NORMAL(size=(20_000, 1)) * np.asarray([[1, 1, -1, 1, 2]])
    mask = np.random.default_rng(1).random((40, *x.shape)) < 0.5
    views = np.einsum("mnf,mng->fg", mask * x, ~mask * x) / (40 * len(x))
    covariance = x.T @ x / len(x)
    np.testing.assert_allclose(views, (covariance - np.diag(np.diag(covariance))) / 4, atol=0.02)
    found = linear.unimodal(jnp.asarray(covariance), 1)
    assert float(linear.sin_theta(found, jnp.asarray(np.linalg.eigh(views + views.T)[1][:, -1:]))) < 0.02


def test_the_filter_keeps_true_pairs_and_half_of_the_wrong_ones():
    one = model(noise=(0.1,) * 5)
    rows = spiked.rows(jax.random.key(6), one, 20_000, 0.5)
    kept = np.asarray(linear.keep_positive(rows, linear.Fit(one.u, one.v, one.signal**2)))
    assert kept[np.asarray(rows.clean)].mean() > 0.85
    assert abs(kept[~np.asarray(rows.clean)].mean() - 0.5) < 0.02


def test_errors_are_made_by_one_compilation():
    rates._errors.clear_cache()
    small = [rates.errors(n, (1.0, 0.5), np.asarray(rates.SPECTRA), 20) for n in (1_000, 4_000, 16_000)]
    assert rates._errors._cache_size() == 1
    assert small[0].shape == (2, 2, 20)
    means = np.asarray(small).mean((1, 3))
    assert abs(drawing.slope((1_000, 4_000, 16_000), means[:, 0]) + 0.5) < 0.1
    assert (means[:, 1] > 1.5 * means[:, 0]).all()


def test_the_filter_lowers_the_error_of_few_true_pairs():
    before, after = rates.filtered(2, 2_000, (0.3,), 2)
    assert (after < 0.8 * before).all()


def test_masking_removes_noise_along_coordinates_alone():
    (pair, alone), (pair_turned, alone_turned) = (recovery.recovery(turned, (4.0,), seeds=2).mean((1, 3)) for turned in (False, True))
    assert max(pair[0], pair_turned[0]) < 0.2
    assert alone[0] < 0.3
    assert alone_turned[0] > 0.8


@pytest.mark.parametrize("name", ["linear", "infonce"])
def test_descent_finds_the_features(name):
    """By the linear form as the SVD does; by InfoNCE less exactly, but far below the sqrt(3) of nothing found."""
    found, svd = descent.curves(name, (0.7,), 1, 200)
    assert found[0, 0, -1] < (1.05 * svd[0, 0] if name == "linear" else 0.5)


def test_the_identity_holds_in_float64():
    assert descent.identity_error("softplus") < 1e-9


def test_detection_is_that_of_the_whole_matrix(monkeypatch):
    monkeypatch.setattr(unpaired, "CHUNK", 10)
    z, w = (jnp.asarray(NORMAL(size=(40, 3)), jnp.float32) for _ in range(2))
    z, w = (a / jnp.linalg.norm(a, axis=1, keepdims=True) for a in (z, w))
    found = unpaired.detect(z, w, 0.05)
    s = np.asarray(z) @ np.asarray(w).T
    e = np.exp(s / 0.05)
    partner, each = s.argmax(1), np.arange(40)
    confidence = np.minimum((e / e.sum(1, keepdims=True))[each, partner], (e / e.sum(0, keepdims=True))[each, partner])
    np.testing.assert_array_equal(found.partner, partner)
    mutual = s.argmax(0)[partner] == each
    np.testing.assert_allclose(np.asarray(found.confidence)[mutual], confidence[mutual], rtol=1e-4)
    np.testing.assert_array_equal(found.counts, mutual & (confidence >= 0.5))
    with pytest.raises(ValueError, match="45 unpaired rows: must be a multiple of 10"):
        unpaired.detect(jnp.ones((45, 3), jnp.float32), jnp.ones((45, 3), jnp.float32), 0.05)


def test_unpaired_rows_find_their_partners():
    row = partners.row(1_000, 0.7)
    assert row["precision"] > 0.95
    assert row["recall"] > 0.7
    assert row["error"] < 0.5 * row["paired_only"]
    assert row["partners_known"] <= row["error"]


def run(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch.theory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_door_writes_a_picture_a_table_and_the_metrics(tmp_path):
    done = run("--figure=gradient_identity", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"gradient_identity.png", "gradient_identity.csv", "theory.json"}
    assert 0 < json.loads((tmp_path / "theory.json").read_text())["gradient_identity_max_rel_error"] < 1e-9
    assert str(tmp_path / "theory.json") in done.stdout
    wrong = run("--figure=gradient_identity,none", f"--out={tmp_path}")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "descent" in wrong.stderr


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for inside in ("file", "file/folder"):
        with pytest.raises(ConfigError, match=rf"^--out={tmp_path}/{inside}: (File exists|Not a directory); name a folder"):
            theory.opened(f"{tmp_path}/{inside}")
    (tmp_path / "theory.json").write_text("{")
    with pytest.raises(ConfigError, match=r"theory\.json there cannot be read"):
        theory.opened(str(tmp_path))


def test_metrics_are_merged_and_parts_of_dead_processes_swept_away(tmp_path):
    figures.save_metrics({"a": 1.0, "b": 2.0}, tmp_path)
    figures.save_metrics({"b": 3.0}, tmp_path)
    assert json.loads((tmp_path / "theory.json").read_text()) == {"a": 1.0, "b": 3.0}
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [tmp_path / f".{pid}-descent.png" for pid in (dead.pid, os.getpid())]
    for path in (*left, tmp_path / ".hidden"):
        path.touch()
    figures.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {left[1].name, ".hidden", "theory.json"}


def test_theory_json_is_written_after_each_figure(tmp_path, monkeypatch):
    """The second experiment is stopped: the first one's numbers are there."""

    def stopped(tick):
        raise KeyboardInterrupt

    result = Result(pd.DataFrame({"x": [1.0]}), {"first": 1.0}, "")
    one = Experiment("one", "", lambda tick: result, lambda result, figure: None)
    monkeypatch.setattr(figures, "EXPERIMENTS", {"one": one, "two": dataclasses.replace(one, name="two", run=stopped)})
    with pytest.raises(KeyboardInterrupt):
        figures.make(["one", "two"], tmp_path)
    assert json.loads((tmp_path / "theory.json").read_text()) == {"first": 1.0}


def test_all_beside_a_name_is_all():
    assert theory.chosen(["all", "unpaired"]) == theory.chosen(["all"]) == list(figures.EXPERIMENTS)
    assert theory.chosen(["unpaired", "descent", "unpaired"]) == ["unpaired", "descent"]
    for names, said in ((["all", "none"], "--figure=none: no such"), ([], "--figure is empty")):
        with pytest.raises(ConfigError, match=said):
            theory.chosen(names)


def test_experiments_have_names_and_claims():
    assert {"error_vs_n", "error_vs_clean_share", "recovery", "unpaired"} <= set(figures.EXPERIMENTS)
    assert all(isinstance(one, Experiment) and one.name == name and one.claim for name, one in figures.EXPERIMENTS.items())
