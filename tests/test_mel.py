"""Log-mel spectrograms and SpecAugment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bacl_jax.config_media import AudioDataConfig
from bacl_jax.models import mel


def test_it_is_the_definition():
    """Power of Hann-windowed frames, centred on every hop, in mel bins; tests/peers/test_librosa.py has the bins, too."""
    config, r = AudioDataConfig(), np.random.default_rng(0)
    samples = r.uniform(-1, 1, 2000).astype(np.float32)
    padded = np.pad(samples.astype(np.float64), 200)
    frames = np.stack([padded[at : at + 400] for at in range(0, 2001, 160)]) * np.hanning(401)[:-1]
    power = np.abs(np.fft.rfft(frames)) ** 2 @ mel.mel_filters(16_000, 400, 64)
    np.testing.assert_allclose(mel.log_mel(jnp.asarray(samples[None]), config)[0], np.log(power), atol=1e-4)


def test_whole_numbers_are_shares_of_the_largest():
    config, values = AudioDataConfig(), np.random.default_rng(0).integers(-30000, 30000, (2, 16_000)).astype(np.int16)
    shares = jnp.asarray(values / np.float32(32768))
    np.testing.assert_allclose(mel.log_mel(jnp.asarray(values), config), mel.log_mel(shares, config), atol=1e-5)


def test_silence_and_a_single_frame_are_finite():
    found = mel.log_mel(jnp.zeros((1, 100), jnp.int16), AudioDataConfig())
    assert found.shape == (1, 1, 64)
    np.testing.assert_allclose(found, np.log(1e-10), rtol=1e-6)
    assert np.isfinite(mel.normalised(found, jnp.zeros((1, 1), bool))).all()


def test_normalised_looks_at_valid_frames_alone():
    r = np.random.default_rng(0)
    frames, mask = jnp.asarray(r.normal(3, 2, (2, 30, 8)), jnp.float32), jnp.arange(30)[None] < jnp.array([[10], [30]])
    other = jnp.where(mask[..., None], frames, 99.0)
    np.testing.assert_allclose(mel.normalised(frames, mask), mel.normalised(other, mask), atol=1e-6)
    found = np.asarray(mel.normalised(frames, mask))[0, :10]
    np.testing.assert_allclose((found.mean(), found.std()), (0, 1), atol=1e-5)


def test_spec_augment_blanks_spans_within_their_bounds():
    config = dataclasses.replace(AudioDataConfig(), time_masks=1, time_width=10, bin_masks=1, bin_width=4)
    frames = jax.random.normal(jax.random.key(0), (64, 50, 16))
    keys, mask = jax.random.split(jax.random.key(1), 64), jnp.arange(50)[None] < jnp.full((64, 1), 40)
    found = mel.spec_augment(frames, mask, keys, config)
    blank = np.asarray(found != frames)
    spans, bands = blank.all(2).sum(1), blank.all(1).sum(1)
    assert spans.max() <= 10
    assert bands.max() <= 4
    assert 3 < spans.mean() < 7
    assert not blank.all(2)[:, 40:].any()
    short = jnp.arange(50)[None] < jnp.full((64, 1), 10)
    left = np.asarray(mel.spec_augment(frames, short, keys, config) == frames).any(2)[:, :10]
    assert left.sum(1).min() >= 8  # two tenths of its frames at most
    alone = mel.spec_augment(frames[5:6], mask[5:6], keys[5:6], config)
    np.testing.assert_allclose(found[5], alone[0], atol=1e-6)
