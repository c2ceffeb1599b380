"""Published weights in and out: CLIP, SigLIP and BERT towers, safetensors alone."""

from bacl_jax.interop.pretrained import describe, weights

__all__ = ["describe", "weights"]
