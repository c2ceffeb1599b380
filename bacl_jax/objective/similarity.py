"""Which rows belong together, how similar they are, and which columns are the most similar: no matrix larger than a tile."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from bacl_jax.objective.shards import ONE_DEVICE, Shards, cut, padded, travel, whole
from bacl_jax.types import pytree

BLOCK = 16  # columns that a CPU's search looks at together
PRECISION = jax.lax.Precision.HIGHEST  # of products with embeddings; by default TPUs round their factors to bfloat16, GPUs to TF32
MASKED = -1e9  # logit of an excluded entry: finite, so that a row without any entry keeps finite gradients


@pytree
class Rows:
    """Unit embeddings and what identifies them. valid: False where there is no such row."""

    x: Float[Array, "N D"]
    caption_id: Array  # uint32 [N, 2]
    anchor_id: Array  # uint32 [N, 2]
    valid: Bool[Array, " N"]


def same_id(a: UInt32[Array, "A 2"], b: UInt32[Array, "N 2"]) -> Bool[Array, "A N"]:
    """True where two 64-bit ids are equal."""
    low, high = jax.lax.optimization_barrier((b[:, 0], b[:, 1]))  # one word of all rows side by side: a CPU compares them faster
    return ((a[:, :1] ^ low[None]) | (a[:, 1:] ^ high[None])) == 0


def nobody(count: int, of: Literal["query", "column"]) -> UInt32[Array, "N 2"]:
    """Ids that belong to no row, different for queries and for columns: what is unknown is equal to nothing else."""
    last = 0xFFFFFFFF - (of == "column")
    return jnp.stack([jnp.arange(count, dtype=jnp.uint32), jnp.full(count, last, jnp.uint32)], 1)


def of_pairs(ids: UInt32[Array, "N 2"], paired: Bool[Array, " N"] | None, of: Literal["query", "column"]) -> UInt32[Array, "N 2"]:
    """The ids of the other side where the two are a pair, nobody's elsewhere; paired None: all are pairs."""
    return ids if paired is None else jnp.where(paired[:, None], ids, nobody(len(ids), of))


def positives(rows: Any, columns: Any) -> Bool[Array, "A N"]:
    """positive(i, j) = same caption or same anchor, between anything that has `caption_id` and `anchor_id`."""
    return same_id(rows.caption_id, columns.caption_id) | same_id(rows.anchor_id, columns.anchor_id)


def same_pair(rows: Any, others: Any) -> Bool[Array, " A"]:
    """`positives` of row i and other row i."""
    return (rows.caption_id == others.caption_id).all(1) | (rows.anchor_id == others.anchor_id).all(1)


def cosine(z: Float[Array, "A D"], w: Float[Array, "N D"]) -> Float[Array, "A N"]:
    """s_ij = <z_i, w_j> in float32, on TPUs and GPUs too: a logit is up to 100 times as large, and so is its error."""
    return jnp.einsum("ad,nd->an", z, w, precision=PRECISION, preferred_element_type=jnp.float32)


def better(best: Array, column: Array, s: Array, first: Array, *, recall: float) -> tuple[Array, Array]:
    """The k largest of each row's best [A, k] (at `column`) and of s [A, t] (at first, first + 1, ...), and where they are."""
    k, t = best.shape[1], s.shape[1]

    def merge(found: Array, place: Array) -> tuple[Array, Array]:
        both, order = jax.lax.top_k(jnp.concatenate([best, found], 1), k)
        return both, jnp.take_along_axis(jnp.concatenate([column, first + place], 1), order, 1)

    def exact(s: Array) -> tuple[Array, Array]:
        return merge(*jax.lax.top_k(s, min(k, t)))

    def approximate(s: Array) -> tuple[Array, Array]:
        return merge(*jax.lax.approx_max_k(s, min(k, t), recall_target=recall))

    def in_blocks(s: Array) -> tuple[Array, Array]:
        """As `exact`, which is slow on a CPU: only blocks of columns whose largest s beats the k-th best are looked at.

        In later tiles they are few. As many blocks are taken as the row with the most of them needs, and at most k: those of the
        largest maxima. They stay in the order of the columns, so that ties go to the lower one.
        """
        blocks = s.reshape(s.shape[0], -1, BLOCK)
        highest = blocks.max(2)
        wanted = jnp.cumsum(highest > best[:, -1:], 1)  # blocks that a row wants, up to each

        def look(block: Array) -> tuple[Array, Array]:
            found = jnp.take_along_axis(blocks, block[:, :, None], 1, mode="fill", fill_value=MASKED)
            place = BLOCK * block[:, :, None] + jnp.arange(BLOCK)[None, None]
            return merge(found.reshape(s.shape[0], -1), place.reshape(s.shape[0], -1))

        def first_wanted(count: int) -> tuple[Array, Array]:
            return look((wanted[:, :, None] <= jnp.arange(count)[None, None]).sum(1))  # past the last block where a row wants fewer

        def largest() -> tuple[Array, Array]:
            return look(jnp.sort(jax.lax.top_k(highest, k)[1], 1))

        counts = [count for count in (4, 8, 16) if count < k]
        step = sum((wanted[:, -1].max() > count).astype(jnp.int32) for count in counts)
        return jax.lax.switch(step, [*(functools.partial(first_wanted, count) for count in counts), largest])

    cpu = in_blocks if t % BLOCK == 0 and t // BLOCK > k else exact
    return jax.lax.platform_dependent(s, cpu=cpu, tpu=exact if recall == 1.0 else approximate, default=exact)


def with_ids(rows: Rows, turn: Callable[[Array], Array]) -> Rows:
    """The ids turned: one word of all rows side by side, [2, t], is compared at three times the speed of [t, 2] on a CPU."""
    return dataclasses.replace(rows, caption_id=turn(rows.caption_id), anchor_id=turn(rows.anchor_id))


class Found(NamedTuple):
    """s of the k best allowed columns, best first (MASKED where there are fewer), and s of the asked ones (MASKED: not allowed)."""

    s: Float[Array, "A k"]
    column: Int[Array, "A k"]
    asked_s: Float[Array, "A X"]


def search(
    query: Rows,
    columns: Rows,
    asked: Int[Array, "A X"],
    *,
    k: int,
    shards: Shards = ONE_DEVICE,
    recall: float = 1.0,
) -> Found:
    """The k most similar columns that are valid and no positives of the query, and the similarities of some asked columns.

    The columns stay where they are; the queries travel past them with the best they have found so far. Memory a device:
    O(tile^2 + A (D + k) / n); work O(A N D / n). Ties go to the column that was met first, on one device the lower one.
    recall < 1: on TPU columns are found with this probability (`lax.approx_max_k`, arXiv 2206.14286); elsewhere all are.
    Carries no gradient.
    """
    query, columns = jax.lax.stop_gradient((query, columns))
    query = dataclasses.replace(query, valid=jnp.ones_like(query.valid))  # not asked of a query: so nothing is sorted to find it out
    k = min(k, columns.valid.shape[0])
    add = functools.partial(better, recall=recall)

    def meet(query: Rows, asked: Array, found: Found, columns: Rows, first: Array) -> Found:
        """Some queries and one tile of columns, which are numbered from `first`."""
        columns, t = with_ids(columns, jnp.transpose), columns.valid.shape[0]
        allowed = ~positives(query, columns) & columns.valid[None]
        s = jax.lax.optimization_barrier(jnp.where(allowed, cosine(query.x, columns.x), MASKED))  # masked once, though read twice
        at = asked - first
        here = jnp.where((at >= 0) & (at < t), jnp.take_along_axis(s, jnp.clip(at, 0, t - 1), 1), MASKED)
        return Found(*add(found.s, found.column, s, first), jnp.maximum(found.asked_s, here))

    def local(query: Rows, asked: Array, columns: Rows) -> Found:
        a, b = query.valid.shape[0], columns.valid.shape[0]
        rows, t = min(a, max(shards.tile // 4, 1)), min(b, 2 * shards.tile)  # wide tiles: fewer selections
        start = jax.lax.axis_index(shards.axes) * b if shards.axes else 0
        pieces = with_ids(cut(padded(columns, t), t), lambda ids: ids.swapaxes(1, 2)), start + jnp.arange(0, b, t)

        def visit(_: Any, block: tuple, found: Found, owner: Array) -> tuple[Any, Found]:
            block, found = cut(padded((block, found), rows), rows)

            def one(found: Found, piece: tuple[Rows, Array]) -> tuple[Found, None]:
                return jax.lax.map(lambda item: meet(item[0][0], item[0][1], item[1], *piece), (block, found)), None

            seen = whole(jax.lax.scan(one, found, pieces)[0])
            return (), jax.tree.map(lambda x: x[:a], seen)

        nothing = Found(jnp.full((a, k), MASKED), jnp.zeros((a, k), jnp.int32), jnp.full(asked.shape, MASKED))
        return travel(visit, (), (query, asked), nothing, shards.axes)[1]

    return shards.map(local, query, asked, columns)
