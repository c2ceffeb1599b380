"""Log-mel spectrograms on the device, as librosa computes them, and SpecAugment.

Dimension legend beyond types.py: N samples, F = N // hop + 1 frames, M mel bins, W samples of a window, K = W // 2 + 1 frequencies.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bacl_jax.config_media import AudioDataConfig

LARGEST_SPAN = 0.2  # of a sound's frames: as of SpecAugment's policies SM and SS (p), so that of a short one something is left
FLOOR = 1e-10  # added to nothing: smaller powers are raised to it
_BREAK = 1000.0  # Hz; Slaney's mel scale is linear below it and logarithmic above
_LINEAR = 200 / 3  # Hz a mel below
_LOGARITHMIC = np.log(6.4) / 27  # of the frequency, a mel above


def mel_to_hz(mel: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Slaney's mel scale (Auditory Toolbox, 1998)."""
    corner = _BREAK / _LINEAR
    return np.where(mel < corner, mel * _LINEAR, _BREAK * np.exp(_LOGARITHMIC * (np.maximum(mel, corner) - corner)))


def hz_to_mel(hz: float) -> float:
    """The inverse of `mel_to_hz`."""
    return hz / _LINEAR if hz < _BREAK else _BREAK / _LINEAR + float(np.log(hz / _BREAK)) / _LOGARITHMIC


@functools.cache
def mel_filters(rate: int, window: int, bins: int) -> Float[np.ndarray, "K M"]:
    """Triangles of unit area on Slaney's mel scale, from 0 to rate / 2 Hz."""
    edges = mel_to_hz(np.linspace(0, hz_to_mel(rate / 2), bins + 2))
    frequency = np.fft.rfftfreq(window, 1 / rate)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


def log_mel(samples: Int[Array, "B N"] | Float[Array, "B N"], config: AudioDataConfig) -> Float[Array, "B F M"]:
    """Natural logarithm of the power in each mel bin: Hann windows centred on every hop, zeros beyond the ends.

    int16 samples are scaled to [-1, 1). Equals log(max(librosa.feature.melspectrogram(..., center=True), 1e-10)) to 1e-4.
    """
    scale = 1 / 32768 if jnp.issubdtype(samples.dtype, jnp.integer) else 1.0
    x, half = samples.astype(jnp.float32) * scale, config.window // 2
    x = jnp.pad(x, ((0, 0), (half, half)))
    start = np.arange(config.frames_of(samples.shape[1])) * config.hop
    window = np.hanning(config.window + 1)[:-1].astype(np.float32)
    spectrum = jnp.fft.rfft(x[:, start[:, None] + np.arange(config.window)[None]] * window[None, None])
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    filters = mel_filters(config.rate, config.window, config.mel_bins).astype(np.float32)
    return jnp.log(jnp.maximum(jnp.einsum("bfw,wm->bfm", power, filters, precision=jax.lax.Precision.HIGHEST), FLOOR))


def normalised(mel: Float[Array, "B F M"], mask: Bool[Array, "B F"]) -> Float[Array, "B F M"]:
    """Mean 0 and deviation 1 over the valid frames of each row, 0 elsewhere: loudness and its range are gone."""
    valid = mask[..., None]
    count = jnp.maximum(mask.sum(1) * mel.shape[-1], 1)[:, None, None]
    mean = jnp.where(valid, mel, 0).sum((1, 2), keepdims=True) / count
    deviation = jnp.sqrt(jnp.where(valid, jnp.square(mel - mean), 0).sum((1, 2), keepdims=True) / count)
    return jnp.where(valid, (mel - mean) / jnp.maximum(deviation, 1e-3), 0)


def spec_augment(mel: Float[Array, "B F M"], mask: Bool[Array, "B F"], keys: Array, config: AudioDataConfig) -> Float[Array, "B F M"]:
    """Spans of frames and bands of bins set to the row's mean (SpecAugment without warping, arXiv 1904.08779). keys: one a row."""
    mean = jnp.where(mask[..., None], mel, 0).sum((1, 2)) / jnp.maximum(mask.sum(1) * mel.shape[-1], 1)

    def spans(key: Array, count: int, width: int, length: Array | int, size: int, longest: Array | int) -> Bool[Array, " size"]:
        wide, where = jax.random.uniform(key, (2, count))
        wide = jnp.minimum(jnp.floor(wide * (width + 1)), longest)
        first = jnp.floor(where * jnp.maximum(length - wide + 1, 1))[:, None]
        place = jnp.arange(size)[None]
        return ((place >= first) & (place < first + wide[:, None])).any(0)

    def blank(key: Array, valid: Array) -> Bool[Array, "F M"]:
        of_time, of_bins = jax.random.split(key)
        time = spans(of_time, config.time_masks, config.time_width, valid.sum(), mel.shape[1], jnp.floor(LARGEST_SPAN * valid.sum()))
        bins = spans(of_bins, config.bin_masks, config.bin_width, mel.shape[2], mel.shape[2], mel.shape[2])
        return time[:, None] | bins[None]

    return jnp.where(jax.vmap(blank)(keys, mask), mean[:, None, None], mel)
