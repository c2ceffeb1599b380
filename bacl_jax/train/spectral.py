"""The spectral warm start of the heads of two frozen trunks, which need not have been trained together (MMCL, arXiv 2302.06232).

With linear encoders, s_ij = <G1 x_i, G2 y_j>, the minimum of the linear contrastive loss is an SVD of the centred cross-covariance,
G1^T G2 = SVD_r(S) / lambda, and a gradient step of a nonlinear one is a power step with S(beta) (bacl_jax/objective/mmcl.py). Here x and y
are what the frozen trunks pool, and G1 and G2 the heads:

    first pass   means and covariances of x and of y;  T = (C + ridge mean(diag C))^-1/2 of each side;  A = T_x^T C_xy T_y / |.|
    each round   a pass for S(beta), beta the weights of the loss under the present heads;  A += T_x^T S(beta) T_y / |.|
    after each   U, sigma, V = SVD(A);  heads T_x U sqrt(sigma), T_y V sqrt(sigma)

The sum over rounds is what makes them converge: heads of S(beta) alone see only the pairs that the heads before them had wrong.

Dimension legend: n rows of a batch; F and G features of picture and caption, D dimensions of the embedding, r those of the SVD.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bacl_jax.config import Config, ConfigError
from bacl_jax.config_objective import ObjectiveConfig
from bacl_jax.mesh import replicated, to_global, to_host
from bacl_jax.models import Model
from bacl_jax.objective import mmcl
from bacl_jax.objective.mmcl_term import form_of
from bacl_jax.objective.shards import cut
from bacl_jax.objective.similarity import PRECISION, cosine, positives
from bacl_jax.train.precompute import storable
from bacl_jax.train.processes import compile_together
from bacl_jax.train.state import TrainState
from bacl_jax.train.step import Trainer
from bacl_jax.types import Batch, pytree

TOWERS = ("image", "text")
GROUP = 1024  # rows at most, of a batch, whose similarities are compared with each other
RANK = 1e-5  # singular values below this share of the first are what rounding left
Head = dict[str, np.ndarray]  # kernel [F, D] and, where there is one, bias [D]
Batches = Callable[[], Iterator[tuple[int, Batch]]]  # the training batches from step 0 on: (step, this host's rows)


@pytree
class Moments:
    """Of the rows seen: their number, the means, and sums of products of what is left of x and y without the means."""

    rows: Float[Array, ""]
    x_mean: Float[Array, " F"]
    y_mean: Float[Array, " G"]
    xx: Float[Array, "F F"]
    yy: Float[Array, "G G"]
    xy: Float[Array, "F G"]


def no_moments(f: int, g: int) -> Moments:
    """Of no row."""
    shapes = {"rows": (), "x_mean": (f,), "y_mean": (g,), "xx": (f, f), "yy": (g, g), "xy": (f, g)}
    return Moments(**{name: jnp.zeros(shape) for name, shape in shapes.items()})


def add(before: Moments, x: Float[Array, "n F"], y: Float[Array, "n G"]) -> Moments:
    """With n rows more. Products are of differences from the batch's own means, so that nothing large cancels (Chan et al., 1979)."""
    n = x.shape[0]
    rows = before.rows + n
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y, dx, dy = x - x_mean[None], y - y_mean[None], x_mean - before.x_mean, y_mean - before.y_mean

    def products(a: Array, b: Array, da: Array, db: Array) -> Array:
        return jnp.matmul(a.T, b, precision=PRECISION) + before.rows * n / rows * jnp.outer(da, db)

    return Moments(
        rows=rows,
        x_mean=before.x_mean + n / rows * dx,
        y_mean=before.y_mean + n / rows * dy,
        xx=before.xx + products(x, x, dx, dx),
        yy=before.yy + products(y, y, dy, dy),
        xy=before.xy + products(x, y, dx, dy),
    )


class Rows(NamedTuple):
    """Features of pairs, and what identifies them."""

    x: Float[Array, "n F"]
    y: Float[Array, "n G"]
    caption_id: Array  # uint32 [n, 2]
    anchor_id: Array  # uint32 [n, 2]


@dataclasses.dataclass(frozen=True)
class Side:
    """One tower as the SVD sees it. head: its parameters, the kernel [F, D] among them; transform: features to coordinates.

    The coordinates are those in which the features have covariance 1, up to the ridge. A head without a bias cannot take the mean
    away: its coordinates leave out the direction in which the mean lies, so that the mean pair is orthogonal to every embedding.
    """

    head: Head
    mean: Float[np.ndarray, " F"]
    transform: Float[np.ndarray, "F F"]


def side(head: Head, mean: np.ndarray, covariance: np.ndarray, ridge: float | None) -> Side:
    """The coordinates of features with this mean [F] and covariance [F, F]; ridge: in mean variances; None: they are not whitened."""
    transform = np.eye(len(mean))
    if ridge is not None:
        values, vectors = np.linalg.eigh(covariance)
        transform = vectors / np.sqrt(np.maximum(values, 0) + ridge * values.mean()) @ vectors.T
    if "bias" not in head:
        m = transform @ mean
        transform -= np.outer(transform @ m, m) / max(m @ m, np.finfo(float).tiny)
    return Side(head, mean, transform)


def in_coordinates(cross: Float[np.ndarray, "F G"], x: Side, y: Side) -> Float[np.ndarray, "F G"]:
    """A cross-covariance in the coordinates of both sides, of Frobenius norm 1. ConfigError where it is 0."""
    found = x.transform.T @ cross @ y.transform
    size = np.linalg.norm(found)
    if not size > 0:
        raise ConfigError("config.optim.spectral.enabled = True: pictures and captions of the rows have no covariance; set it to False")
    return found / size


def solve(a: Float[np.ndarray, "F G"], x: Side, y: Side) -> tuple[Head, Head, int]:
    """The heads of both sides of the matrix A, and r, how many dimensions the SVD has given them. Cost: O(F G max(F, G)).

    Dimensions past its rank keep the random directions that they had, as large as the last singular vectors. A kernel is as large
    (Frobenius) as the random one was, so that learning rate and weight decay mean what they did.
    """
    u, sigma, vt = np.linalg.svd(a, full_matrices=False)
    rank = min(x.head["kernel"].shape[1], int((sigma > RANK * sigma[0]).sum()))
    scale = np.sqrt(sigma[:rank])
    return _head(x, u[:, :rank], scale), _head(y, vt[:rank].T, scale), rank


def _head(side: Side, directions: Float[np.ndarray, "F r"], scale: Float[np.ndarray, " r"]) -> Head:
    random = np.asarray(side.head["kernel"], np.float64)
    rest = random[:, len(scale) :]
    rest = rest / np.linalg.norm(rest, axis=0, keepdims=True)
    kernel = side.transform @ np.concatenate([directions * scale[None], rest * scale[-1]], 1)
    kernel *= np.linalg.norm(random) / np.linalg.norm(kernel)
    made = {"kernel": kernel} | ({"bias": -side.mean @ kernel} if "bias" in side.head else {})
    return {name: value.astype(np.float32) for name, value in made.items()}


def check(config: Config, params: Any) -> None:
    """ConfigError where the heads cannot begin so: a trunk is trained, or a tower has no head. `params` may be abstract."""
    if not config.optim.spectral.enabled:
        return
    if trained := sorted({*TOWERS} - {*storable(params, config.optim.frozen)}):
        raise ConfigError(
            f"config.optim.spectral.enabled = True: both trunks must be frozen, and config.optim.frozen = {config.optim.frozen!r} leaves "
            f"that of {' and '.join(trained)} to train; set --config.optim.frozen=\"('towers/(image|text)/(?!head/).*',)\""
        )
    for tower in TOWERS:
        if "head" not in params["towers"][tower]:
            kind = getattr(config.model, tower).kind
            raise ConfigError(
                f"config.optim.spectral.enabled = True: an {tower} tower of kind {kind} has no head that could begin so; set it to False"
            )


def pooled(model: Model, params: Any, batch: Batch) -> tuple[Float[Array, "n F"], Float[Array, "n G"]]:
    """What the trunks of both towers pool of a batch, or what is stored of it, float32."""
    text = batch.inputs["text"]
    assert text.mask is not None
    image = batch.stored["image"] if "image" in batch.stored else model.image_trunk(params, batch.inputs["image"].values)
    words = batch.stored["text"] if "text" in batch.stored else model.text_trunk(params, text.values, text.mask)
    return image.pooled.astype(jnp.float32), words.pooled.astype(jnp.float32)


def embedded(head: Any, mean: Float[Array, " F"], x: Float[Array, "n F"]) -> tuple[Float[Array, "n D"], Float[Array, "n F"]]:
    """Unit embeddings of features; and the features without their mean, over the length that the embeddings had."""
    raw = jnp.matmul(x, head["kernel"], precision=PRECISION) + head.get("bias", jnp.zeros(1))[None]
    length = jnp.sqrt(jnp.maximum(jnp.square(raw).sum(1, keepdims=True), 1e-12))
    return raw / length, (x - mean[None]) / length


def weighted(
    heads: Any, means: Any, x: Float[Array, "n F"], y: Float[Array, "n G"], batch: Batch, form: mmcl.Form, scale: float
) -> Float[Array, "F G"]:
    """S(beta) of a batch, beta of its cosines under the heads times `scale`, in groups of rows that see each other; memory n GROUP.

    The groups are as few as GROUP allows, and none has two rows more than another. Rows of one caption or one anchor are no negatives
    of each other.
    """
    n, rows = x.shape[0], Rows(x, y, batch.caption_id, batch.anchor_id)
    size, larger = divmod(n, -(-n // GROUP))  # so many groups have a row more

    def one(group: Rows) -> Array:
        (z, x), (w, y) = embedded(heads[0], means[0], group.x), embedded(heads[1], means[1], group.y)
        beta = mmcl.beta_weights(scale * cosine(z, w), form, ~positives(group, group))
        return jnp.matmul(x.T, jnp.matmul(beta, y, precision=PRECISION), precision=PRECISION)

    edge = larger * (size + 1)
    parts = [(jax.tree.map(lambda a: a[:edge], rows), size + 1), (jax.tree.map(lambda a: a[edge:], rows), size)]
    total = jnp.zeros((x.shape[1], y.shape[1]))
    for part, each in parts:
        if len(part.x):
            total += jax.vmap(one)(cut(part, each)).sum(0)
    return total / n


def form_of_loss(objective: ObjectiveConfig, params: Any) -> mmcl.Form:
    """The form of MMCL's loss that the objective is. ConfigError where it names one that cannot be made."""
    if objective.kind == "mmcl":
        return form_of(objective.mmcl)
    return mmcl.sigmoid(float(to_host(params["bias"]))) if objective.kind == "sigmoid" else mmcl.infonce()


class _Passes:
    """Passes over the training rows: sums of what each batch gives, the rows of a batch over the mesh."""

    def __init__(self, trainer: Trainer, batches: Batches, steps: int, progress: Progress):
        self._trainer, self._batches, self._steps, self._progress = trainer, batches, steps, progress
        self._task = progress.add_task("spectral warm start", total=steps * (1 + trainer.config.optim.spectral.rounds))

    def total(self, add: Callable[..., Any], total: Any, *shared: Any) -> Any:
        """add(total, batch, *shared) over all batches of a pass, as float64 on the host. The total lies whole on each device."""
        mesh = self._trainer.mesh

        def on_mesh(*arguments: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return add(*arguments)

        jitted = jax.jit(on_mesh, donate_argnums=0, out_shardings=replicated(mesh))
        total = jax.device_put(total, replicated(mesh))
        for number, (_, batch) in enumerate(itertools.islice(self._batches(), self._steps)):
            stored = {name: dataclasses.replace(trunk, tokens=None) for name, trunk in batch.stored.items()}
            placed = to_global(mesh, dataclasses.replace(batch, stored=stored))
            if number == 0:
                compile_together("a pass of the spectral warm start", jitted, total, placed, *shared)
            total = jax.block_until_ready(jitted(total, placed, *shared))  # else batches queue up on the device
            self._progress.advance(self._task)
        return jax.tree.map(lambda x: np.asarray(x, np.float64), to_host(total))


def warm_start(trainer: Trainer, state: TrainState, batches: Batches, rows: int) -> TrainState:
    """The state with the heads that config.optim.spectral asks for in place of the random ones; the average begins with them, too.

    rows: of the training source. 1 + rounds passes read the first batches of the run, optim.spectral.rows pairs (None: `rows`), rounded up
    to whole batches. Memory on a device: its rows of one batch, what the trunks make of them, (F + G)^2 sums, and in a round
    n GROUP weights. Communication: the sums of each batch. On the host: an SVD, O(F G max(F, G)).
    """
    config, model, start = trainer.config, trainer.model, time.perf_counter()
    spectral, size = config.optim.spectral, config.train.batch_size
    steps = -(-min(rows, spectral.rows or rows) // size)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=jax.process_index() > 0) as progress:
        passes = _Passes(trainer, batches, steps, progress)
        params = trainer.eval_params(state)
        heads = [jax.tree.map(np.asarray, to_host(params["towers"][tower]["head"])) for tower in TOWERS]
        scale = math.exp(to_host(params["log_scale"]))
        form = form_of_loss(config.objective, params)

        def add_moments(moments: Moments, batch: Batch, params: Any) -> Moments:
            return add(moments, *pooled(model, params, batch))

        def add_weighted(total: Array, batch: Batch, params: Any, heads: Any, means: Any) -> Array:
            return total + weighted(heads, means, *pooled(model, params, batch), batch, form, scale) / steps

        moments = passes.total(add_moments, no_moments(*(head["kernel"].shape[0] for head in heads)), params)
        x = side(heads[0], moments.x_mean, moments.xx / moments.rows, spectral.ridge)
        y = side(heads[1], moments.y_mean, moments.yy / moments.rows, spectral.ridge)
        a = in_coordinates(moments.xy, x, y)
        *heads, rank = _of_process_0(solve(a, x, y))
        means = (moments.x_mean.astype(np.float32), moments.y_mean.astype(np.float32))
        for _ in range(spectral.rounds):
            cross = passes.total(add_weighted, np.zeros(a.shape, np.float32), params, tuple(heads), means)
            a = a + in_coordinates(cross, x, y)
            *heads, rank = _of_process_0(solve(a, x, y))
    print(
        f"heads begin from the SVD of the cross-covariance: {steps * size:,} pairs, {spectral.rounds} power steps, "
        f"{rank} of {config.model.embed_dim} dimensions, {time.perf_counter() - start:.1f} s"
    )
    found = {f"towers/{tower}/head/{name}": value for tower, head in zip(TOWERS, heads, strict=True) for name, value in head.items()}
    return trainer.with_weights(state, found)


def _of_process_0(tree: Any) -> Any:
    """The last digits of an SVD may differ between processes, and parameters must not."""
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree)) if jax.process_count() > 1 else tree
