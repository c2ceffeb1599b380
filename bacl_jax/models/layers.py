"""The pieces every tower is made of: attention, MLP, pre-norm transformer block (flax NNX)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from bacl_jax.config_model import ModelConfig
from bacl_jax.mesh import AXES, BATCH_AXES
from bacl_jax.types import Features, Trunk

NEGATIVE = -1e9  # added to a masked attention logit: finite, so that a fully masked row has no NaN gradient


def by_rows(x: Float[Array, "B N C"]) -> Float[Array, "B N C"]:
    """The residual stream: rows over the mesh's batch axes, and whole on the devices that share heads and hidden layers.

    Without it the compiler may cut the stream along C between two blocks, and gather all rows for a gradient. The mesh is that of
    the context (`jax.sharding.use_abstract_mesh`); without one, or with one of other axes, nothing happens.
    """
    if not {*AXES} <= {*jax.sharding.get_abstract_mesh().axis_names}:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


ACTIVATIONS = {
    "gelu_tanh": jax.nn.gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Linear(nnx.Linear):
    """nnx.Linear of rows: its gradient sums over one dimension, which XLA's CPU compiler does in half the time of two."""

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... Out"]:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.out_features)


class Attention(nnx.Module):
    """Multi-head attention of queries [B, Q, C] over keys [B, N, Ck]; returns [B, Q, C] and, if asked, the weights [B, H, Q, N].

    A masked key gets weight 0 (exactly, in float32); causal: so does a key after its query. Softmax in float32. Cost: O(B Q N C);
    without weights in bfloat16 on a CUDA GPU by cuDNN, whose memory has no Q x N.
    """

    def __init__(self, width: int, heads: int, *, key_width: int | None = None, causal: bool = False, dtype, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"width {width} is not divisible by heads {heads}")
        init = nnx.initializers.xavier_uniform()
        kw = key_width or width
        self.heads, self.causal = heads, causal
        self.query = Linear(width, width, kernel_init=init, dtype=dtype, rngs=rngs)
        self.key = Linear(kw, width, kernel_init=init, dtype=dtype, rngs=rngs)
        self.value = Linear(kw, width, kernel_init=init, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B Q C"], keys: Float[Array, "B N Ck"], mask: Bool[Array, "B N"] | None = None, *, weights: bool = False
    ) -> tuple[Float[Array, "B Q C"], Float[Array, "B H Q N"] | None]:
        def split(a: Array) -> Array:
            return a.reshape(*a.shape[:2], self.heads, -1)

        q, k, v = split(self.query(x)), split(self.key(keys)), split(self.value(keys))
        where = None if mask is None else mask[:, None, None, :]
        if self.causal:
            before = jnp.tri(q.shape[1], k.shape[1], dtype=bool)[None, None]
            where = before if where is None else where & before
        if not weights and jax.default_backend() == "gpu" and q.dtype == jnp.bfloat16:
            y, shown = jax.nn.dot_product_attention(q, k, v, mask=where, implementation="cudnn"), None
        else:
            y, shown = attend(q, k, v, where)
        return by_rows(self.out(y.reshape(*y.shape[:2], -1))), shown if weights else None


def attend(q: Float[Array, "B Q H E"], k: Float[Array, "B N H E"], v: Float[Array, "B N H E"], mask: Array | None) -> tuple[Array, Array]:
    """What `jax.nn.dot_product_attention` computes, and the weights [B, H, Q, N], float32.

    Heads come first in the products: on a CPU that is faster than products over the heads' place in between.
    """
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    logits = jnp.einsum("bhqd,bhnd->bhqn", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits if mask is None else jnp.where(mask, logits, NEGATIVE), axis=-1)
    return jnp.einsum("bhqn,bhnd->bhqd", weights.astype(v.dtype), v).swapaxes(1, 2), weights


class MLP(nnx.Module):
    """Linear, activation (one of ACTIVATIONS), Linear."""

    def __init__(self, width: int, hidden: int, *, out: int | None = None, activation: str = "gelu_tanh", dtype, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.activation = activation
        self.up = Linear(width, hidden, kernel_init=init, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, out or width, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... Out"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nnx.Module):
    """Pre-norm transformer block: self-attention, optional cross-attention to a context, MLP.

    Returns the new x and the weights of the attention to the context; None where there is no context.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        *,
        context_width: int | None = None,
        causal: bool = False,
        activation: str = "gelu_tanh",
        epsilon: float = 1e-6,
        dtype,
        rngs: nnx.Rngs,
    ):
        norm = functools.partial(nnx.LayerNorm, width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.norm_self = norm()
        self.self_attention = Attention(width, heads, causal=causal, dtype=dtype, rngs=rngs)
        if context_width is not None:
            self.norm_cross = norm()
            self.cross_attention = Attention(width, heads, key_width=context_width, dtype=dtype, rngs=rngs)
        self.norm_mlp = norm()
        self.mlp = MLP(width, round(width * mlp_ratio), activation=activation, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N C"],
        mask: Bool[Array, "B N"] | None = None,
        context: Array | None = None,
        context_mask: Array | None = None,
    ) -> tuple[Float[Array, "B N C"], Float[Array, "B H N Keys"] | None]:
        h, weights = self.norm_self(x), None
        x = by_rows(x) + self.self_attention(h, h, mask)[0]
        if context is not None:
            y, weights = self.cross_attention(self.norm_cross(x), context, context_mask, weights=True)
            x = x + y
        return x + by_rows(self.mlp(self.norm_mlp(x))), weights


class PostNormBlock(nnx.Module):
    """Transformer block that normalises after each sum: BERT's (arXiv 1810.04805). Called as Block is, without a context."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, activation: str, epsilon: float, dtype, rngs: nnx.Rngs):
        norm = functools.partial(nnx.LayerNorm, width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.self_attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm_self = norm()
        self.mlp = MLP(width, round(width * mlp_ratio), activation=activation, dtype=dtype, rngs=rngs)
        self.norm_mlp = norm()

    def __call__(self, x: Float[Array, "B N C"], mask: Bool[Array, "B N"] | None = None) -> tuple[Float[Array, "B N C"], None]:
        x = self.norm_self(by_rows(x) + self.self_attention(x, x, mask)[0])
        return self.norm_mlp(x + by_rows(self.mlp(x))), None


def run_blocks(
    blocks: Sequence[Block | PostNormBlock], x: Float[Array, "B N C"], mask: Bool[Array, "B N"] | None, config: ModelConfig
) -> Array:
    """x through all blocks of one shape, with config.remat and config.scan_layers; the value is the same in each case."""
    structure, *_ = nnx.split(blocks[0])
    layers = [nnx.split(block)[1] for block in blocks]

    def one(x: Array, layer: Any) -> Array:
        return nnx.merge(structure, layer)(x, mask)[0]

    if config.remat != "none":
        keep = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}[config.remat]
        one = jax.checkpoint(one, policy=keep, prevent_cse=not config.scan_layers)
    if not config.scan_layers:
        return functools.reduce(one, layers, x)
    return jax.lax.scan(lambda x, layer: (one(x, layer), None), x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))[0]


class Tower(nnx.Module):
    """A trunk, which the subclass gives, and a head: a linear map of its pooled output to the embedding, or none."""

    head: nnx.Linear | None

    def trunk(self, *inputs: Any) -> Trunk:
        raise NotImplementedError

    def finish(self, trunk: Trunk, mask: Bool[Array, "B N"] | None = None) -> Features:
        """What the tower returns, of what its trunk made."""
        pooled = trunk.pooled if self.head is None else self.head(trunk.pooled)
        return Features(pooled=l2_normalise(pooled), tokens=trunk.tokens, mask=mask)


def pool(tokens: Float[Array, "B N C"], mask: Bool[Array, "B N"] | None = None) -> Float[Array, "B C"]:
    """Mean over the valid tokens; zero where a row has none."""
    if mask is None:
        return tokens.mean(1)
    m = mask.astype(tokens.dtype)[..., None]
    return (tokens * m).sum(1) / jnp.maximum(m.sum(1), 1)


def l2_normalise(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """x / |x| in float32; finite, with finite gradient, at x = 0."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))
