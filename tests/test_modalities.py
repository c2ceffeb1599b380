"""Sound, clips and several anchors in one step: each learns, and what a row lacks changes nothing."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
import tiny

from bacl_jax.config import ConfigError, contradictions, default_config_dict, from_config_dict
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.eval.encoder import Encoder
from bacl_jax.interop import export
from bacl_jax.models import Model
from bacl_jax.objective.bank import Bank
from bacl_jax.rules import check_pictures
from bacl_jax.train.step import build

ALL = ("audio", "video")
PLAIN = {"bns": tiny.plain().objective.bns, "cla": tiny.plain().objective.cla}


@pytest.fixture(scope="module")
def trainer():
    return build(tiny.media(*ALL, weights=(1.0, 0.5)), tiny.VOCABULARY, tiny.one_device())


@pytest.mark.parametrize("anchor", ["audio", "video"])
def test_a_single_anchor_learns(anchor):
    """Its parameters have the paths of a picture's, and it has one bank."""
    trainer = build(tiny.media(anchor, **PLAIN), tiny.VOCABULARY, tiny.one_device())
    state = trainer.init(0)
    assert {*state.params["towers"]} == {anchor, "text"}
    assert isinstance(state.bank, Bank)
    losses = []
    for i in range(12):
        state, metrics = trainer.step(state, tiny.media_batch(anchor, seed=i % 2))
        losses.append(float(metrics["loss_contrast"] - metrics["loss_floor"]))
    assert int(state.skipped) == 0
    assert losses[-1] < losses[0]


def test_the_loss_is_the_weighted_sum_of_the_terms_and_each_has_its_bank(trainer):
    state, batch = trainer.init(0), tiny.media_batch(*ALL)
    assert {*state.params["policy"]} == {*state.params["cross_attention"]} == {*state.bank} == {*ALL}
    state, metrics = trainer.step(state, batch)
    terms = [float(metrics[f"{name}/loss"]) for name in ALL]
    np.testing.assert_allclose(float(metrics["loss"]), np.dot(terms, (1.0, 0.5)), rtol=1e-5)
    for name in ALL:
        index = np.asarray(state.bank[name].index)[:16]
        np.testing.assert_array_equal(index, np.where(batch.present[name], batch.index, -1))
        np.testing.assert_allclose(float(metrics[f"{name}/present"]), batch.present[name].mean())


def test_what_a_row_lacks_changes_nothing(trainer):
    """Junk in place of the zeros of an absent input: the same parameters, the same banks where they are filled."""
    batch, r = tiny.media_batch(*ALL), np.random.default_rng(9)

    def junk(name):
        tokens, there = batch.inputs[name], batch.present[name]
        noise = r.integers(0, 200, tokens.values.shape).astype(tokens.values.dtype)
        values = np.where(there.reshape(-1, *[1] * (tokens.values.ndim - 1)), tokens.values, noise)
        return dataclasses.replace(tokens, values=values)

    other = dataclasses.replace(batch, inputs=batch.inputs | {name: junk(name) for name in ALL})
    states = [trainer.step(trainer.step(trainer.init(0), one)[0], one)[0] for one in (batch, other)]  # the warm-up's first changes nothing
    assert not np.allclose(states[0].params["log_scale"], trainer.init(0).params["log_scale"], atol=1e-6)
    chex.assert_trees_all_close(states[0].params, states[1].params, atol=1e-6)
    for name in ALL:
        filled = np.asarray(states[0].bank[name].index) >= 0
        chex.assert_trees_all_close(states[0].bank[name].anchor[filled], states[1].bank[name].anchor[filled], atol=1e-6)


def test_a_batch_in_which_nobody_has_an_anchor_is_finite(trainer):
    batch = tiny.media_batch(*ALL)
    batch = dataclasses.replace(batch, present=batch.present | {"audio": np.zeros(16, bool)})
    state, metrics = trainer.step(trainer.init(0), batch)
    assert int(state.skipped) == 0
    assert float(metrics["audio/loss_contrast"]) == 0
    assert all(np.isfinite(float(value)) for value in metrics.values())


def test_with_all_rows_complete_a_term_is_what_it_is_alone():
    """Towers begin alike beside others, and masks of all True are none."""
    losses = []
    for anchors in (("image",), ("image", "video")):
        trainer = build(tiny.media(*anchors, **PLAIN), tiny.VOCABULARY, tiny.one_device())
        batch = tiny.media_batch(*anchors, share=1.0)
        metrics = trainer.step(trainer.init(0), batch)[1]
        losses.append(float(metrics["loss" if len(anchors) == 1 else "image/loss"]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_a_frozen_image_tower_of_clips_stays_as_it_is():
    config = tiny.media("video", **PLAIN)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, frozen=("towers/video/frames/.*",)))
    trainer = build(config, tiny.VOCABULARY, tiny.one_device())
    state = trainer.init(0)
    before = jax.device_get(state.params["towers"]["video"])
    for _ in range(2):  # the first step of the warm-up changes nothing
        state, _ = trainer.step(state, tiny.media_batch("video"))
    after = jax.device_get(state.params["towers"]["video"])
    chex.assert_trees_all_equal(before["frames"], after["frames"])
    assert np.abs(before["positions"] - after["positions"]).max() > 0


def test_heads_of_one_anchor_lie_where_those_of_pictures_do():
    params = jax.eval_shape(Model(tiny.media("audio"), tiny.VOCABULARY).init, jax.random.key(0))
    of_pictures = jax.eval_shape(Model(tiny.config(), tiny.VOCABULARY).init, jax.random.key(0))
    assert {*params} == {*of_pictures} == {"towers", "cross_attention", "policy", "log_scale"}
    chex.assert_trees_all_equal_structs(params["policy"], of_pictures["policy"])
    assert {*params["towers"]} == {"audio", "text"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"anchors": ()}, "data.anchors"),
        ({"anchors": ("audio", "audio")}, "data.anchors"),
        ({"anchors": ("video",)}, "data.anchors"),
        ({"anchors": ("image", "audio")}, "objective.weights"),
    ],
)
def test_anchors_that_cannot_be_are_refused(changes, field):
    config = tiny.media("audio")
    found = contradictions(dataclasses.replace(config, data=dataclasses.replace(config.data, kind="stamps", **changes)))
    assert any(str(error).startswith(f"config.{field} = ") for error in found), found
    assert all(isinstance(error, ConfigError) for error in found)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data.clips.audio": "a.wav"}, "data.clips.audio"),
        ({"data.clips.audio": "{"}, "data.clips.audio"),
        ({"data.clips.audio": "{}"}, "data.clips.audio"),
        ({"data.clips.audio": "{a:d}"}, "data.clips.audio"),
        ({"data.clips.audio": "{a!r}"}, "data.clips.audio"),
        ({"data.clips.audio": "{a.b}"}, "data.clips.audio"),
        ({"data.audio.rate": 10**9}, "data.audio.rate"),
        ({"data.audio.seconds": 1e-6}, "data.audio.seconds"),
        ({"data.audio.seconds": 20.0, "data.audio.max_seconds": 5.0}, "data.audio.seconds"),
        ({"data.audio.mel_bins": 400}, "data.audio.mel_bins"),
        ({"data.audio.bin_width": 65}, "data.audio.bin_width"),
        ({"model.audio.stride_frames": 17}, "model.audio.stride_frames"),
        ({"data.video.frames": 100, "data.video.max_frames": 10}, "data.video.frames"),
    ],
)
def test_settings_of_media_that_cannot_be_are_refused(changes, field):
    start = {"data.kind": "clips", "data.path": "a.csv", "data.anchors": ("audio", "video"), "objective.weights": (1.0, 1.0)}
    start |= {"data.clips.audio": "{a}", "data.clips.video": "{v}", "train.keep_best": None}
    from_config_dict(with_fields(start))
    with pytest.raises(ConfigError, match=rf"config\.{field} = .* must "):
        from_config_dict(with_fields(start | changes))


def with_fields(fields):
    settings = default_config_dict()
    settings.update_from_flattened_dict(fields)
    return settings


def test_a_term_is_infonce_over_the_rows_that_have_the_anchor():
    """Beside numpy, with rows of distinct captions: an anchor against all texts, a text against the anchors that are there."""
    trainer = build(tiny.media("image", "video", **PLAIN), tiny.VOCABULARY, tiny.one_device())
    batch, state = tiny.media_batch("image", "video"), trainer.init(0)
    size = len(batch.index)
    ids = np.stack([np.arange(size), np.arange(size)], 1).astype(np.uint32)
    batch = dataclasses.replace(batch, caption_id=ids, anchor_id=ids)
    text = np.asarray(trainer.encode_text(state.params, batch.inputs["text"].values, batch.inputs["text"].mask).pooled, np.float64)
    scale, expected = np.exp(float(state.params["log_scale"])), {}
    for name in ("image", "video"):
        there = batch.present[name]
        anchor = np.asarray(trainer.encode_anchor[name](state.params, batch.inputs[name].values).pooled, np.float64)
        logits = scale * anchor[there] @ text.T
        own = logits[:, there]
        pairs = np.diag(own)
        expected[name] = ((np.log(np.exp(logits).sum(1)) - pairs).mean() + (np.log(np.exp(own).sum(0)) - pairs).mean()) / 2
    metrics = trainer.step(state, batch)[1]
    for name, value in expected.items():
        np.testing.assert_allclose(float(metrics[f"{name}/loss_contrast"]), value, rtol=1e-5)


def test_what_needs_pictures_is_refused_without_them():
    sound, both = tiny.media("audio"), tiny.media("image", "audio")
    for ask in (
        lambda config: Encoder(None, None, None, config),
        lambda config: export.check(config, Tokenizer.train(["a thing"], config.data), "hf"),
        lambda config: check_pictures(config, "it", alone=True),
    ):
        with pytest.raises(ConfigError, match=r"config.data.anchors = \('audio',\): must "):
            ask(sound)
    assert Encoder(None, None, None, both)
    with pytest.raises(ConfigError, match=r"must be \('image',\) for it"):
        check_pictures(both, "it", alone=True)
