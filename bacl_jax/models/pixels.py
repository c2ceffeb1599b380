"""From pixels to the input of a tower: uint8 images normalised on the device, and cut into patches."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

PIXELS = {  # mean and standard deviation by colour, of values in [0, 1]
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def normalise(images: UInt8[Array, "B S S 3"], pixels: str, dtype) -> Float[Array, "B S S 3"]:
    """uint8 to (value - mean) / standard deviation of PIXELS[pixels]; "half": to [-1, 1]."""
    if pixels == "half":
        return (images.astype(jnp.float32) / 127.5 - 1).astype(dtype)
    mean, deviation = (jnp.asarray(x, jnp.float32)[None, None, None] for x in PIXELS[pixels])
    return ((images.astype(jnp.float32) / 255 - mean) / deviation).astype(dtype)


class Patches(nnx.Conv):
    """nnx.Conv of patches that do not overlap, as one matrix product of rows: [B, S, S, 3] to [B, P, C].

    Its gradient too is one then; as a convolution it takes a CPU a third of a small transformer's whole step.
    """

    def __call__(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B P C"]:
        (batch, size, _, colours), (p, *_), width = images.shape, self.kernel_size, self.out_features
        patches = images.reshape(batch, size // p, p, size // p, p, colours).swapaxes(2, 3).reshape(-1, p * p * colours)
        y = patches @ self.kernel[...].reshape(-1, width).astype(patches.dtype)
        return (y if self.bias is None else y + self.bias[...].astype(y.dtype)[None]).reshape(batch, -1, width)
