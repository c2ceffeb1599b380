"""Linear probe: a logistic regression on frozen embeddings of pictures (the measure of arXiv 2103.00020, section 3.2).

Its L2 weight is chosen on a part of the training pictures, then it is fitted to all of them. Dimension legend: N pictures, C classes,
D embedding width.
"""

import functools
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from bacl_jax.config import ConfigError
from bacl_jax.config_eval import ProbeConfig
from bacl_jax.errors import DataError
from bacl_jax.eval.benchmarks import Outcome
from bacl_jax.eval.embeddings import progress
from bacl_jax.eval.encoder import Encoder
from bacl_jax.eval.formats import LeftOut, counted
from bacl_jax.eval.zeroshot import places, read_pictures, recalls
from bacl_jax.settings import how_to_set

FIELD = "config.eval.probe"
FLAT = 1e-6  # gradient norm at which a fit has ended
Linear = tuple[Float[Array, "C D"], Float[Array, " C"]]  # weights and biases


def probe(encoder: Encoder) -> Outcome:
    """The task `probe`: fits on the folder eval.probe.path, tests on eval.probe.test; numbers as of `classification`, in percent.

    `weight`: the chosen L2 weight, the larger of equally good ones; `validation_top1`: what it scored on the part that chose it.
    `n_train`: pictures fitted to. Host and device memory: 4 D bytes a picture, and 4 N C for the scores.
    """
    settings = encoder.config.eval.probe
    folders = [_folder(settings, name) for name in ("path", "test")]
    names, *_ = train = read_pictures(folders[0])
    test = read_pictures(folders[1])
    if unknown := sorted(set(test[0]) - set(names)):
        raise DataError(f"{folders[1]}: class {unknown[0]!r} has no folder in {folders[0]}; both need the same classes", kind="format")
    number = np.asarray([names.index(name) for name in test[0]])
    left_out: list[LeftOut] = []
    z, label = _encoded(encoder, folders[0], train[1], np.asarray(train[2]), left_out)
    if not len(z):
        raise DataError(f"{folders[0]}: none of {len(train[1])} pictures can be read; {left_out[0].error}", kind="unreadable")
    queries, wanted = _encoded(encoder, folders[1], test[1], number[np.asarray(test[2])], left_out)
    weight, found = chosen(z, label, len(names), settings, show_progress=encoder.show_progress)
    metrics = {"weight": weight, "n_train": len(z)} | ({} if found is None else {"validation_top1": found})
    if len(queries):
        model = fit(z, label, weight, zero(len(names), z.shape[1]), steps=settings.steps)
        metrics = recalls(wanted, *places(scores(model, queries), wanted), len(names)) | metrics
    metrics |= {"n": len(queries), "n_entries": len(test[1]), "n_classes": len(names)}
    return Outcome(metrics | counted(left_out), left_out)


def _folder(settings: ProbeConfig, name: str) -> Path:
    value = getattr(settings, name)
    if value is None or not Path(value).is_dir():
        raise ConfigError(f"{FIELD}.{name} = {value!r}: must name a folder with a folder for each class; {how_to_set(f'{FIELD}.{name}')}")
    return Path(value)


def _encoded(encoder: Encoder, root: Path, pictures: list, label: Int[np.ndarray, " N"], left_out: list[LeftOut]):
    """(embeddings, labels) of the pictures that can be read; the others go to `left_out`."""
    z, errors = encoder.pictures(root, pictures)
    for place, error in sorted(errors.items()):
        name = pictures[place].names[0]
        left_out.append(LeftOut(str(root), name, name, error.kind, str(error)))
    good = np.asarray([place not in errors for place in range(len(pictures))])
    return z[good], label[good]


def chosen(
    z: Float[np.ndarray, "N D"], label: Int[np.ndarray, " N"], classes: int, settings: ProbeConfig, *, show_progress: bool = False
) -> tuple[float, float | None]:
    """(the L2 weight of eval.probe.weights that classifies most of the held-out pictures, in percent how many); a single one is not tried.

    The fits begin with the largest weight, each where the one before has ended.
    """
    if len(settings.weights) == 1:
        return settings.weights[0], None
    held = held_out(label, settings.validation_share, settings.seed)
    if not held.any():
        raise ConfigError(
            f"{FIELD}.validation_share = {settings.validation_share}: holds out no picture, and on these the L2 weight is chosen; "
            f"raise it, or give a single {FIELD}.weights"
        )
    model, best = zero(classes, z.shape[1]), (0.0, -1.0)
    weights = sorted(settings.weights, reverse=True)
    for weight in progress(weights, "fitting the probe", len(weights), show_progress):
        model = fit(z[~held], label[~held], weight, model, steps=settings.steps)
        top1 = recalls(label[held], *places(scores(model, z[held]), label[held]), classes)["top1"]
        best = max(best, (weight, top1), key=lambda pair: pair[1])  # the first, so the larger weight, of equal ones
    return best


def held_out(label: Int[np.ndarray, " N"], share: float, seed: int) -> Bool[np.ndarray, " N"]:
    """`share` of each class's pictures, rounded; at least one stays of each class."""
    random, held = np.random.default_rng(seed), np.zeros(len(label), bool)
    for one in np.unique(label):
        rows = random.permutation(np.flatnonzero(label == one))
        held[rows[: min(round(share * len(rows)), len(rows) - 1)]] = True
    return held


def zero(classes: int, width: int) -> Linear:
    return jnp.zeros((classes, width)), jnp.zeros(classes)


@functools.partial(jax.jit, static_argnames="steps")
def fit(z: Float[Array, "N D"], label: Int[Array, " N"], weight: Float[Array, ""] | float, start: Linear, *, steps: int) -> Linear:
    """Minimises mean cross-entropy + weight / 2 |W|^2 by L-BFGS from `start` on; ends after `steps`, or where the gradient is flat."""

    def loss(model: Linear) -> Float[Array, ""]:
        logits = jnp.matmul(z, model[0].T, precision=jax.lax.Precision.HIGHEST) + model[1][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean() + weight / 2 * jnp.sum(model[0] ** 2)

    solver, value_and_gradient = optax.lbfgs(), optax.value_and_grad_from_state(loss)

    def step(carry):
        model, state, count, _ = carry
        value, gradient = value_and_gradient(model, state=state)
        updates, state = solver.update(gradient, state, model, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(model, updates), state, count + 1, optax.tree.norm(gradient)

    def goes_on(carry):
        return (carry[2] < steps) & (carry[3] > FLAT)

    return cast(Linear, jax.lax.while_loop(goes_on, step, (start, solver.init(start), 0, jnp.inf))[0])


def scores(model: Linear, z: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N C"]:
    return z @ np.asarray(model[0]).T + np.asarray(model[1])
