"""The optimiser: AdamW for the towers and for CLA's layers, Adam for BNS's policy, each group with its own clipping."""

from typing import Any

import jax
import optax

from bacl_jax.config import OptimConfig
from bacl_jax.schedules import learning_rate

DECAYED = ("kernel", "embedding")


def decay_mask(params: Any) -> Any:
    """True for weight matrices, kernels and embeddings; False for biases, norms, positions, temperature."""

    def decays(path: tuple, leaf: Any) -> bool:
        return leaf.ndim >= 2 and getattr(path[-1], "key", None) in DECAYED

    return jax.tree_util.tree_map_with_path(decays, params)


def groups(params: Any) -> Any:
    """Label of every parameter: "policy" or "cross_attention" under that path, else "model"."""
    own = ("policy", "cross_attention")
    return {name: jax.tree.map(lambda _, label=name if name in own else "model": label, part) for name, part in params.items()}


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm of each group, then AdamW (model, cross_attention) or Adam (policy).

    Where CLA's losses are cut from the towers, the towers' updates are exactly those without CLA.
    """

    def adamw(peak: float) -> optax.GradientTransformation:
        schedule = learning_rate(config, steps, peak)
        update = optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask)
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)

    policy = optax.chain(optax.clip_by_global_norm(config.policy_clip_norm), optax.adam(config.policy_lr))
    return optax.multi_transform({"model": adamw(config.lr), "cross_attention": adamw(config.cross_lr), "policy": policy}, groups)
