"""Log-mel spectrograms against librosa's."""

import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from bacl_jax.config_media import AudioDataConfig
from bacl_jax.models import mel


@pytest.mark.parametrize(("rate", "window", "hop", "bins"), [(16_000, 400, 160, 64), (8000, 256, 128, 40), (48_000, 1024, 480, 128)])
def test_it_is_librosas(rate, window, hop, bins):
    config = AudioDataConfig(rate=rate, window=window, hop=hop, mel_bins=bins)
    r, time = np.random.default_rng(0), np.arange(rate) / rate
    samples = (0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 * r.standard_normal(rate)).astype(np.float32)
    ours = np.asarray(mel.log_mel(jnp.asarray(samples[None]), config))[0]
    settings = {"n_fft": window, "hop_length": hop, "n_mels": bins, "center": True, "pad_mode": "constant"}
    theirs = librosa.feature.melspectrogram(y=samples.astype(np.float64), sr=rate, **settings)
    np.testing.assert_allclose(ours, np.log(np.maximum(theirs, mel.FLOOR)).T, atol=1e-4)
