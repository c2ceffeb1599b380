"""The contrastive term L_contrast of a batch, computed in three ways that give one value and one gradient.

dense    the whole matrix of logits: O(B^2 / n) memory a device.
chunked  tiles of columns, made again for the backward pass (`jax.checkpoint`): O(B t / n), every device holds all columns.
ring     the columns travel round the devices in blocks; at each stop tiles of logits are made, used and dropped, and the backward
         pass makes them again from the sums that the forward pass left (as FlashAttention does, arXiv 2205.14135, and Inf-CL,
         arXiv 2410.17243): O((B / n) (t + D)), and no device ever holds all columns.

Equations: infonce.py, sigmoid.py and mmcl_term.py. Dimension legend beyond types.py: b rows of one device, t columns of a tile, n devices,
E captions drawn from the bank. Work O(B^2 D / n), and three times that backward.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bacl_jax.config_objective import ObjectiveConfig
from bacl_jax.objective import infonce, mmcl_term, sigmoid
from bacl_jax.objective.shards import ONE_DEVICE, Shards, cut, padded, tiles, travel, whole
from bacl_jax.objective.similarity import PRECISION, Rows, cosine
from bacl_jax.objective.tile import Affine, Side, Term, drawn_logits, is_negative, make
from bacl_jax.settings import ConfigError

SMALL = 1e-6  # weight of a batch without a pair: its loss is 0
DENSE_AT_MOST = 2**22  # logits a device up to which "auto" takes the dense form: 16 MiB a matrix


class Task(NamedTuple):
    """What does not change from tile to tile."""

    term: Term
    axes: tuple[str, ...]
    tile: int  # rows and columns of a tile at the most

    def first_row(self, b: int) -> Array:
        """Number in the batch of this device's first row."""
        return jax.lax.axis_index(self.axes) * b if self.axes else jnp.int32(0)


def dense(task: Task, rows: Side, columns: Side, drawn: Rows, affine: Affine) -> tuple[Array, Array, Array]:
    """(loss of each row, loss of each column, least loss of each row), from one tile as large as the batch."""
    made = make(rows, columns, affine, jnp.int32(0), jnp.int32(0))
    start = task.term.start(rows.x.shape[0])
    row_sums = with_drawn(task, task.term.add(start, made, 1), rows, drawn, affine)
    (row_loss, least, _), (column_loss, *_) = task.term.end(row_sums), task.term.end(task.term.add(start, made, 0))
    return row_loss, column_loss, least


def chunked(task: Task, rows: Side, columns: Side, drawn: Rows, affine: Affine) -> tuple[Array, Array, Array]:
    """`dense`, a tile of columns at a time."""
    b = rows.x.shape[0]
    t = tiles(b, task.tile)

    @jax.checkpoint
    def one(sums: Any, item: tuple[Side, Array]) -> tuple[Any, Any]:
        made = make(rows, item[0], affine, jnp.int32(0), item[1])
        return task.term.add(sums, made, 1), task.term.add(task.term.start(t), made, 0)

    row_sums, column_sums = jax.lax.scan(one, task.term.start(b), (cut(columns, t), jnp.arange(0, b, t)))
    row_sums = with_drawn(task, row_sums, rows, drawn, affine)
    (row_loss, least, _), (column_loss, *_) = task.term.end(row_sums), task.term.end(whole(column_sums))
    return row_loss, column_loss, least


def with_drawn(task: Task, row_sums: Any, rows: Side, drawn: Rows, affine: Affine) -> Any:
    """Row sums with the captions drawn from the bank added to them, a tile at a time."""
    if (count := drawn.valid.shape[0]) == 0:
        return row_sums

    @jax.checkpoint
    def one(sums: Any, some: Rows) -> tuple[Any, None]:
        return task.term.add_drawn(sums, drawn_logits(rows, affine, cosine(rows.x, some.x)), is_negative(rows, some)), None

    return jax.lax.scan(one, row_sums, cut(drawn, tiles(count, task.tile)))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring(task: Task, rows: Side, columns: Side, drawn: Rows, affine: Affine) -> tuple[Array, Array, Array]:
    """`dense`, of this device's rows and columns; runs under shard_map."""
    return _forward(task, rows, columns, drawn, affine)[0]


def _forward(task: Task, rows: Side, columns: Side, drawn: Rows, affine: Affine) -> tuple[Any, Any]:
    term, b = task.term, rows.x.shape[0]
    first, t = task.first_row(b), tiles(b, task.tile)
    numbers = jnp.arange(0, b, t)
    row_tiles = *cut((rows, affine), t), first + numbers

    def visit(sums: Any, block: Side, theirs: Any, owner: Array) -> tuple[Any, Any]:
        def one_column(sums: Any, item: Any) -> tuple[Any, Any]:
            columns, theirs, first_column = item

            def one_row(theirs: Any, item: Any) -> tuple[Any, Any]:
                (rows, affine, first_row), sums = item
                made = make(rows, columns, affine, first_row, first_column)
                return term.add(theirs, made, 0), term.add(sums, made, 1)

            theirs, sums = jax.lax.scan(one_row, theirs, (row_tiles, sums))
            return sums, theirs

        sums, theirs = jax.lax.scan(one_column, sums, (*cut((block, theirs), t), owner * b + numbers))
        return sums, whole(theirs)

    def visit_drawn(sums: Any, block: Rows, luggage: Any, owner: Array) -> tuple[Any, Any]:
        def one_row(item: Any) -> Any:
            (rows, affine, _), sums = item
            return with_drawn(task, sums, rows, block, affine)

        return jax.lax.map(one_row, (row_tiles, sums)), luggage

    row_sums, column_sums = travel(visit, cut(term.start(b), t), columns, term.start(b), task.axes)
    if drawn.valid.shape[0]:
        row_sums, _ = travel(visit_drawn, row_sums, drawn, (), task.axes)
    (row_loss, least, row_kept), (column_loss, _, column_kept) = term.end(whole(row_sums)), term.end(column_sums)
    return (row_loss, column_loss, least), (rows, columns, drawn, affine, row_kept, column_kept)


def _backward(task: Task, kept: Any, g: tuple[Array, Array, Array]) -> tuple[Any, ...]:
    rows, columns, drawn, affine, row_kept, column_kept = kept
    term, b = task.term, rows.x.shape[0]
    first, t = task.first_row(b), tiles(b, task.tile)
    numbers = jnp.arange(b // t)
    row_tiles = *cut((rows, affine, (g[0], row_kept)), t), first + numbers * t, numbers

    def pull(sums: Any, number: Array, rows: Side, affine: Affine, dlogits: Array, s: Array, y: Array) -> tuple[Any, Array]:
        """Adds to (d rows, d scale, d bias) of a tile of rows what the columns y give; returns d y too."""
        ds = affine.scale[:, None] * dlogits
        new = jnp.matmul(ds, y, precision=PRECISION), (dlogits * s).sum(1), dlogits.sum(1)
        return jax.tree.map(lambda sum_, x: sum_.at[number].add(x), sums, new), jnp.einsum("bt,bd->td", ds, rows.x, precision=PRECISION)

    def visit(sums: Any, block: Any, dcolumns: Array, owner: Array) -> tuple[Any, Array]:
        def one_column(carry: Any, item: Any) -> tuple[Any, None]:
            (columns, column), column_number = item

            def one_row(carry: Any, item: Any) -> tuple[Any, None]:
                rows, affine, row, first_row, number = item
                made = make(rows, columns, affine, first_row, owner * b + column_number * t)
                sums, dy = pull(carry[0], number, rows, affine, term.grad(made, row, column), made.cosine, columns.x)
                return (sums, carry[1].at[column_number].add(dy)), None

            return jax.lax.scan(one_row, carry, row_tiles)

        (sums, dcolumns), _ = jax.lax.scan(one_column, (sums, cut(dcolumns, t)), (cut(block, t), numbers))
        return sums, whole(dcolumns)

    def visit_drawn(sums: Any, block: Rows, ddrawn: Array, owner: Array) -> tuple[Any, Array]:
        def one_column(sums: Any, item: Any) -> tuple[Any, Any]:
            some, dsome = item

            def one_row(carry: Any, item: Any) -> tuple[Any, None]:
                rows, affine, row, _, number = item
                s = cosine(rows.x, some.x)
                dlogits = term.grad_drawn(drawn_logits(rows, affine, s), is_negative(rows, some), row)
                sums, dy = pull(carry[0], number, rows, affine, dlogits, s, some.x)
                return (sums, carry[1] + dy), None

            return jax.lax.scan(one_row, (sums, dsome), row_tiles)[0]

        sums, ddrawn = jax.lax.scan(one_column, sums, cut((block, ddrawn), tiles(block.valid.shape[0], task.tile)))
        return sums, whole(ddrawn)

    sums = cut((jnp.zeros_like(rows.x), jnp.zeros_like(affine.scale), jnp.zeros_like(affine.bias)), t)
    sums, dcolumns = travel(visit, sums, (columns, (g[1], column_kept)), jnp.zeros_like(columns.x), task.axes)
    ddrawn = jnp.zeros_like(drawn.x)
    if drawn.valid.shape[0]:
        sums, ddrawn = travel(visit_drawn, sums, drawn, ddrawn, task.axes)
    dx, dscale, dbias = whole(sums)
    nothing = lambda side, **d: dataclasses.replace(jax.tree.map(lambda _: None, side), **d)  # noqa: E731
    drows, dcolumns = nothing(rows, x=dx), nothing(columns, x=dcolumns)
    if term.grad_offset is not None:
        drows = dataclasses.replace(drows, offset=term.grad_offset((g[0], row_kept)))
        dcolumns = dataclasses.replace(dcolumns, offset=term.grad_offset((g[1], column_kept)))
    return drows, dcolumns, nothing(drawn, x=ddrawn), Affine(scale=dscale, bias=dbias)


ring.defvjp(_forward, _backward)


def in_tiles(drawn: Rows, devices: int, tile: int) -> Rows:
    """The drawn captions with rows after them that do not count, so that each device's share divides into tiles."""
    share = -(-drawn.valid.shape[0] // devices)
    return padded(drawn, devices * min(share, tile)) if share else drawn


def check_tiles(config: ObjectiveConfig, batch: int, devices: int) -> None:
    """ConfigError where a device's rows divide into no tiles of a useful size: tiles of a few rows cost a hundred times the time."""
    how = implementation(config, batch, devices)
    size, unit = (batch, config.tile) if how == "chunked" else (batch // devices, devices * config.tile)
    if how != "dense" and size > config.tile and tiles(size, config.tile) < config.tile / 8:
        raise ConfigError(
            f"train.batch_size {batch}: {size} rows {'in all' if how == 'chunked' else 'a device'} divide into no tiles of "
            f"{config.tile // 8} to {config.tile} rows (objective.tile), but of {tiles(size, config.tile)}: "
            f"use {batch // unit * unit} rows, another objective.tile, or objective.contrast = dense"
        )


def implementation(config: ObjectiveConfig, batch: int, devices: int) -> str:
    """What config.contrast "auto" takes: "dense" while a device's share of the logits is small, else "ring"."""
    if config.contrast != "auto":
        return config.contrast
    return "dense" if batch**2 // devices <= DENSE_AT_MOST else "ring"


def contrast(
    rows: Side,
    columns: Side,
    drawn: Rows,
    *,
    scale: Float[Array, ""],
    bias: Float[Array, ""] | None,
    weight: Float[Array, " B"] | None = None,
    config: ObjectiveConfig,
    shards: Shards = ONE_DEVICE,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(L_contrast, the least it can be): the mean of both directions, of InfoNCE or a form of MMCL's loss; or the sigmoid loss.

    rows: the anchors; columns: their texts, pair by pair; drawn: captions that every row has as further columns (E may be 0).
    scale, bias: exp of log_scale, and the sigmoid's bias (None: 0). weight: of each row in the mean, 0 where not paired; None: all have 1.
    ValueError where the batch does not divide over the devices.
    """
    size = rows.x.shape[0]
    rows, columns = (dataclasses.replace(side, weight=jax.lax.stop_gradient(side.weight)) for side in (rows, columns))
    a_row = functools.partial(jnp.broadcast_to, shape=(size,))
    affine = Affine(scale=a_row(scale), bias=a_row(jnp.float32(0) if bias is None else bias))
    how = implementation(config, size, shards.count)
    if config.kind == "mmcl":
        form = mmcl_term.form_of(config.mmcl)
        offset, term = mmcl_term.offset(rows, columns, scale, form), mmcl_term.term(form, size)
        rows, columns = dataclasses.replace(rows, offset=offset), dataclasses.replace(columns, offset=offset)
    else:
        term = {"infonce": infonce.term, "sigmoid": sigmoid.term}[config.kind](config.same_id)
    task = Task(term, shards.axes, shards.tile if how != "dense" else size)
    drawn = in_tiles(drawn, shards.count, task.tile)
    if how == "ring":
        row_loss, column_loss, least = shards.map(functools.partial(ring, task), rows, columns, drawn, affine)
    else:
        columns, drawn = shards.everywhere((columns, drawn))
        row_loss, column_loss, least = {"dense": dense, "chunked": chunked}[how](task, rows, columns, drawn, affine)
    mean = jnp.mean if weight is None else lambda x: (weight * x).sum() / jnp.maximum(weight.sum(), SMALL)
    loss = (mean(row_loss) + mean(column_loss)) / 2 if config.kind != "sigmoid" else mean(row_loss)
    return loss, jax.lax.stop_gradient(mean(least))
