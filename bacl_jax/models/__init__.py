"""Models as pure functions of a parameter pytree; the only place that imports flax.nnx."""

from bacl_jax.models.dual_encoder import Model
from bacl_jax.models.heads import Heads

__all__ = ["Heads", "Model"]
