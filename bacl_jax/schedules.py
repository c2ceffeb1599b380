"""Everything that changes with training progress u in [0, 1], as functions of scalars."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bacl_jax.config import OptimConfig
from bacl_jax.config_objective import BNSConfig, UnpairedConfig


def progress(step: Array | int, steps: int) -> Float[Array, ""]:
    """u = step / steps, clipped to [0, 1]."""
    return jnp.clip(jnp.asarray(step, jnp.float32) / max(steps, 1), 0.0, 1.0)


def curriculum(u: Array | float, config: BNSConfig) -> Float[Array, ""]:
    """alpha(v) = alpha_late + (alpha_early - alpha_late) sigmoid(-slope (v - v0)), v = u V, v0 = midpoint V (arXiv 2511.08399).

    Positive suppresses hard candidates, negative seeks them.
    """
    v = jnp.asarray(u, jnp.float32) * config.horizon
    weight = jax.nn.sigmoid(-config.slope * (v - config.horizon * config.midpoint))
    return config.alpha_late + (config.alpha_early - config.alpha_late) * weight


def partner_share(step: int, steps: int, config: BNSConfig) -> float:
    """Share of the batch's rows that drawn partners replace (channel c).

    Rises linearly in u from 0 at the start to config.partner_share at u = midpoint, where the curriculum turns to hard
    candidates; what is drawn before is easy. Host side, a plain float.
    """
    if not config.enabled:
        return 0.0
    return config.partner_share * min(1.0, step / max(steps, 1) / config.midpoint)


def partner_temperature(u: Array | float, config: UnpairedConfig) -> Float[Array, ""]:
    """Temperature of soft partner weights: tau_early until u = start, then falling geometrically to tau_late at the end."""
    share = jnp.clip((jnp.asarray(u, jnp.float32) - config.start) / max(1 - config.start, 1e-6), 0, 1)
    return jnp.asarray(config.tau_early * (config.tau_late / config.tau_early) ** share, jnp.float32)


def learning_rate(config: OptimConfig, steps: int, peak: float | None = None) -> optax.Schedule:
    """Linear warm-up to `peak` (None: config.lr), then a cosine to end_lr_share of it at the last step."""
    peak = config.lr if peak is None else peak
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, 1), config.end_lr_share * peak)
