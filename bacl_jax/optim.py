"""The optimiser: AdamW for the model, Adam for BNS's policy, each with its own clipping."""

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
    """Label of every parameter: "policy" under that path, else "model"."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "policy" if path[0] == jax.tree_util.DictKey("policy") else "model", params)


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm of each group, then AdamW (model) or Adam (policy)."""
    model = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rate(config, steps), config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask),
    )
    policy = optax.chain(optax.clip_by_global_norm(config.policy_clip_norm), optax.adam(config.policy_lr))
    return optax.multi_transform({"model": model, "policy": policy}, groups)
