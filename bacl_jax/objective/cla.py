"""Contrastive Local Attention (arXiv 2511.08399): where a pair mismatches, seen in the text-to-anchor attention.

What is the paper's and what is ours is told apart in docs/method.md.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bacl_jax.config_objective import CLAConfig
from bacl_jax.objective.shards import ONE_DEVICE, Shards

TINY = 1e-6  # added inside the log: -log A_b and its gradient stay finite in bfloat16 where an attention weight is 0


def inner(mask: Bool[Array, "B T"]) -> tuple[Bool[Array, "B T"], Int[Array, " B"]]:
    """The word positions of captions laid out as BOS words EOS padding, and how many there are."""
    length = mask.sum(1)
    position = jnp.arange(mask.shape[1])[None]
    return (position >= 1) & (position < length[:, None] - 1), jnp.maximum(length - 2, 0)


def align(
    ids: Int[Array, "B T"], mask: Bool[Array, "B T"], other_ids: Int[Array, "B T"], other_mask: Bool[Array, "B T"]
) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"], Bool[Array, "B T"], Bool[Array, "B T"], Int[Array, " B"]]:
    """Common prefix and common suffix of two captions, and the span in between on either side.

    Returns (prefix, suffix, span, other_span, shift): word positions of the first caption in the common prefix, in the
    common suffix (position t there is position t + shift of the other caption), of the span that differs, and the
    positions of the other caption's span. BOS, EOS and padding are in none. Two cumulative products of token equality; O(B T).
    """
    t = ids.shape[1]
    position = jnp.arange(t)[None]
    words, n = inner(mask)
    other_words, m = inner(other_mask)
    prefix = jnp.cumprod(jnp.where(position == 0, True, words & other_words & (ids == other_ids)), axis=1).astype(bool) & (position > 0)
    shift = m - n
    source = position + shift[:, None]
    inside = (source >= 1) & (source < t)
    clipped = jnp.clip(source, 0, t - 1)
    partner = jnp.take_along_axis(other_ids, clipped, 1)
    partner_free = jnp.take_along_axis(other_words & ~prefix, clipped, 1) & inside
    equal = words & ~prefix & partner_free & (ids == partner)
    after = position > n[:, None]  # EOS and padding do not interrupt a suffix that is counted from the end
    suffix = jnp.flip(jnp.cumprod(jnp.flip(equal | after, 1), axis=1), 1).astype(bool) & words
    other_suffix = other_words & (position > (m - suffix.sum(1))[:, None])
    return prefix, suffix, words & ~prefix & ~suffix, other_words & ~prefix & ~other_suffix, shift


def mean_rows(attention: Float[Array, "B T P"], rows: Bool[Array, "B T"]) -> Float[Array, "B P"]:
    """Mean of the chosen rows; 0 where none is chosen."""
    return jnp.einsum("btp,bt->bp", attention, rows.astype(attention.dtype)) / jnp.maximum(rows.sum(1), 1)[:, None]


def aligned_attention(
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    attention: Float[Array, "B T P"],
    other_ids: Int[Array, "B T"],
    other_mask: Bool[Array, "B T"],
    other_attention: Float[Array, "B T P"],
) -> tuple[Float[Array, "B T P"], Float[Array, "B T P"], Bool[Array, "B T"], Bool[Array, " B"]]:
    """A+ and A- with matching rows, in the positions of the first caption.

    Returns (A+, A-, rows, aligned). The span that differs has one row, at its first position: the mean over the span on
    either side (none where one side's span is empty). `rows` marks the rows to compare, `aligned` the pairs that
    share at least one word at an end.
    """
    prefix, suffix, span, other_span, shift = align(ids, mask, other_ids, other_mask)
    t = ids.shape[1]
    source = jnp.clip(jnp.arange(t)[None] + jnp.where(suffix, shift[:, None], 0), 0, t - 1)
    moved = jnp.take_along_axis(other_attention, source[..., None], 1)
    first = span & (jnp.cumsum(span, axis=1) == 1)
    positive = jnp.where(first[..., None], mean_rows(attention, span)[:, None], attention)
    negative = jnp.where(first[..., None], mean_rows(other_attention, other_span)[:, None], moved)
    rows = prefix | suffix | (first & other_span.any(1, keepdims=True))
    return positive, negative, rows, (prefix | suffix).any(1)


def delta_attention(
    ids: Array, mask: Array, attention: Array, other_ids: Array, other_mask: Array, other_attention: Array
) -> Float[Array, "B T P"]:
    """dA = |A+ - A-| on aligned rows, 0 elsewhere; the arguments of `aligned_attention`."""
    positive, negative, rows, _ = aligned_attention(ids, mask, attention, other_ids, other_mask, other_attention)
    return jnp.where(rows[..., None], jnp.abs(positive - negative), 0)


def local_loss(
    positive: Float[Array, "B T P"],
    negative: Float[Array, "B T P"],
    rows: Bool[Array, "B T"],
    config: CLAConfig,
    shards: Shards = ONE_DEVICE,
) -> Float[Array, " B"]:
    """L_local of each pair = mean over Omega of -log A_b, A_b = A- (1 + beta dA), Omega the `top` largest entries of dA = |A+ - A-|.

    The choice of Omega carries no gradient.
    stop_gradient: "none"; "positive" cuts A+; "all" cuts dA altogether.
    """
    if config.stop_gradient == "positive":
        positive = jax.lax.stop_gradient(positive)
    delta = jnp.where(rows[..., None], jnp.abs(positive - negative), 0)
    if config.stop_gradient == "all":
        delta = jax.lax.stop_gradient(delta)
    flat = delta.reshape(delta.shape[0], -1)
    omega = shards.top_k(flat, min(config.top, flat.shape[1]))
    boosted = negative.reshape(flat.shape) * (1 + config.beta * flat)
    chosen = jnp.take_along_axis(boosted, omega, 1).astype(jnp.float32)
    inside = jnp.take_along_axis(jnp.broadcast_to(rows[..., None], delta.shape).reshape(flat.shape), omega, 1)
    return jnp.where(inside, -jnp.log(chosen + TINY), 0).sum(1) / jnp.maximum(inside.sum(1), 1)


def mean_of(losses: Float[Array, " B"], use: Bool[Array, " B"]) -> Float[Array, ""]:
    """Mean over the pairs marked in `use`; 0 when there is none."""
    return jnp.where(use, losses, 0).sum() / jnp.maximum(use.sum(), 1)


def match_loss(
    positive: Float[Array, " B"], negative: Float[Array, "N B"], use: Bool[Array, "N B"], paired: Bool[Array, " B"] | None = None
) -> Float[Array, ""]:
    """Binary cross-entropy of the matching logit: the mean over the positives in `paired` (None: all) and that over the negatives in `use`,
    averaged; a mean over none is 0."""
    rejected = jnp.where(use, -jax.nn.log_sigmoid(-negative), 0).sum() / jnp.maximum(use.sum(), 1)
    accepted = -jax.nn.log_sigmoid(positive)
    return ((accepted.mean() if paired is None else mean_of(accepted, paired)) + rejected) / 2
