"""The train step: encode, BACL, update, bank. Pure functions of a TrainState, jitted once over a mesh."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from bacl_jax import paths, schedules
from bacl_jax.config import Config
from bacl_jax.mesh import by_rows, mesh_of, replicated, spread
from bacl_jax.models import Model
from bacl_jax.objective.bacl import Metrics
from bacl_jax.objective.bank import Bank
from bacl_jax.objective.contrast import check_tiles
from bacl_jax.objective.mmcl_term import form_of
from bacl_jax.objective.partners import partner_lists
from bacl_jax.objective.shards import Shards
from bacl_jax.optim import groups, make_optimizer
from bacl_jax.partition import follow, shardings
from bacl_jax.rules import check_divides
from bacl_jax.train.loss import empty_banks, pushed, step_loss
from bacl_jax.train.state import TrainState
from bacl_jax.types import Batch, Features, Tokens, Trunk


class Trainer:
    """The jitted functions of one config on one mesh; without `training`, one that batch and bank need not divide over."""

    def __init__(self, config: Config, vocab_size: int, mesh: Mesh, stored: Mapping[str, str] | None = None, *, training: bool = True):
        """stored: type of the stored features by modality, of the towers whose trunks the batches bring (Batch.stored)."""
        if training:
            check_divides(mesh.size, config)
            check_tiles(config.objective, config.train.batch_size, mesh.size)
            if config.objective.kind == "mmcl":
                form_of(config.objective.mmcl)  # one that cannot be made is refused before anything runs
        self.config, self.mesh = config, mesh
        self.shards = Shards(mesh, config.objective.tile, config.train.micro_batches)
        self.model = Model(config, vocab_size)
        self.grid = self.model.grid
        self.optimizer = make_optimizer(config.optim, config.train.steps)
        self.encoders: list[Any] = []  # the jitted functions below the next two
        self.anchors = self.model.anchors
        self.encode_image = self._over_devices(self.model.encode_image)
        self.encode_text = self._over_devices(self.model.encode_text)
        self.encode_anchor = {name: self._over_devices(functools.partial(self._encode_anchor, name)) for name in self.anchors}
        self.attend = jax.jit(self.model.attend)
        self.frozen = config.optim.frozen
        paths.check_frozen(self.frozen, jax.eval_shape(self.model.init, jax.random.key(0)))
        self._in_bank = self._stored_captions((stored or {}).get("text"))
        self._shapes = jax.eval_shape(self._init, jax.random.key(0))
        self.shardings = self._lay_out()
        where = (self.shardings, replicated(mesh))
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=where, compiler_options=compiler_options(config, mesh))
        self.partner_lists = jax.jit(self._partner_lists)

    def _over_devices(self, encode: Callable[..., Features]) -> Callable[..., Features]:
        """`encode`(params, rows, ...) jitted, its rows over the batch axes of the mesh that holds `params`, where that has several devices.

        Each device encodes its share of the rows, whole parameters at hand: no number depends on how many devices there are.
        """
        alone, gathered = jax.jit(encode), jax.jit(lambda params, *rows: encode(self._gathered(params), *rows))
        self.encoders += [alone, gathered]

        def over_devices(params: dict[str, Any], *rows: Any) -> Features:
            mesh = mesh_of(params)
            if mesh is None:
                return alone(params, *rows)
            count, placed = len(rows[0]), by_rows(mesh, rows)
            found = (gathered if mesh == self.mesh else alone)(params, *placed)
            return found if len(placed[0]) == count else jax.tree.map(lambda x: x[:count], found)

        return over_devices

    def _encode_anchor(self, name: str, params: dict[str, Any], *rows: Array) -> Features:
        """The tower of an anchor over its raw input, values and, of sound, mask."""
        values, mask = (*rows, None)[:2]
        return self.model.encode_anchor(params, name, self.model.prepare(name, Tokens(values=values, mask=mask)))

    def init(self, seed: int) -> TrainState:
        """A fresh state on the mesh; equal for equal seeds, on any mesh."""
        return jax.jit(self._init, out_shardings=self.shardings)(jax.random.key(seed))

    def with_weights(self, state: TrainState, weights: Mapping[str, np.ndarray]) -> TrainState:
        """The state with other values of some parameters, by path; the average begins with them, too. KeyError for an unknown path."""
        if unknown := set(weights) - {name for name, _ in paths.named(state.params)}:
            raise KeyError(f"no parameters: {', '.join(sorted(unknown))}")

        def replaced(tree: Any) -> Any:
            leaves = [
                jax.make_array_from_callback(leaf.shape, leaf.sharding, weights[name].__getitem__) if name in weights else leaf
                for name, leaf in paths.named(tree)
            ]
            return jax.tree.unflatten(jax.tree.structure(tree), leaves)

        return dataclasses.replace(state, params=replaced(state.params), ema=replaced(state.ema))

    def abstract_state(self) -> Any:
        """Shapes, types and shardings of the state, without computing it: what a restore aims at."""
        return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), self._shapes, self.shardings)

    def abstract_params(self) -> Any:
        """Shapes, types and shardings of what evaluation uses, whole along fsdp."""
        params = self._shapes.params
        return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), params, self._whole(params))

    def _lay_out(self) -> Any:
        """Where each leaf of a state lies: parameters, optimiser and average by partition.py, the bank's slots over all devices."""
        whole, state = replicated(self.mesh), self._shapes
        params = shardings(state.params, self.mesh, self.config.mesh)
        return dataclasses.replace(
            jax.tree.map(lambda _: whole, state),
            params=params,
            opt_state=follow(state.opt_state, state.params, params, whole),
            ema=None if state.ema is None else paths.trained(params, self.frozen),
            bank=jax.tree.map(lambda x: spread(self.mesh) if x.ndim else whole, state.bank),
        )

    def _stored_captions(self, dtype: str | None) -> tuple[Trunk, ...]:
        """Shapes of what the bank keeps of a caption's stored features: those that channel (b) draws and CLA looks at."""
        b, length = self.config.objective.bns, self.config.data.context_length
        if dtype is None or not b.enabled or b.drawn_share == 0 or b.stale:
            return ()
        ids, mask = (jax.ShapeDtypeStruct((1, length), kind) for kind in (jnp.int32, jnp.bool_))
        params = jax.eval_shape(self.model.init, jax.random.key(0))
        trunk = jax.eval_shape(self.model.text_trunk, params, ids, mask)
        if not self.config.objective.cla.enabled:
            trunk = dataclasses.replace(trunk, tokens=None)
        return (jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], jnp.dtype(dtype)), trunk),)

    def eval_params(self, state: TrainState) -> dict[str, Any]:
        """What evaluation uses: the average where there is one, of the frozen parameters these, else the parameters.

        They are whole along fsdp, so that no batch gathers them again, and the towers must not run on parts of them: XLA gives wrong
        convolutions where a kernel is cut along its height or width.
        """
        params = state.params if state.ema is None else paths.replaced(state.params, state.ema)
        return params if self.config.mesh.fsdp == 1 else jax.jit(lambda tree: tree, out_shardings=self._whole(params))(params)

    def _init(self, key: Array) -> TrainState:
        c = self.config
        params = self.model.init(jax.random.fold_in(key, 0))
        trained = paths.trained(params, self.frozen)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=self.optimizer.init(trained),
            ema=None if c.optim.ema_decay is None else jax.tree.map(jnp.copy, trained),
            bank=empty_banks(c, self._in_bank),
            rng=jax.random.key_data(jax.random.fold_in(key, 1)),
            nonfinite=jnp.int32(0),
            skipped=jnp.int32(0),
        )

    def _loss(self, trained: dict[str, Any], state: TrainState, batch: Batch) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, Any]]]:
        """The loss as a function of the trained parameters; the others are the state's. With metrics and what the bank keeps."""
        params = paths.replaced(state.params, trained)
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return step_loss(self.model, self._gathered(params), state, batch, self.config, self.shards)

    def _gathered(self, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters as the model uses them: cut by tensor alone. The compiler gathers each where it is used, and spreads its gradient."""
        if self.config.mesh.fsdp == 1:
            return params
        return jax.lax.with_sharding_constraint(params, self._whole(params))

    def _whole(self, params: Any) -> Any:
        """Where parameters lie that are cut by tensor alone."""
        return shardings(params, self.mesh, dataclasses.replace(self.config.mesh, fsdp=1))

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        c = self.config
        old = paths.trained(state.params, self.frozen)
        (_, (metrics, kept)), grads = jax.value_and_grad(self._loss, has_aux=True)(old, state, batch)
        norms = group_norms(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(sum(norms.values()))

        updates, opt_state = self.optimizer.update(grads, state.opt_state, old)
        trained = cast(dict[str, Any], optax.apply_updates(old, updates))
        if "log_scale" in trained:
            trained["log_scale"] = jnp.minimum(trained["log_scale"], jnp.log(jnp.float32(c.objective.max_scale)))
        trained, opt_state = select(finite, (trained, opt_state), (old, state.opt_state))
        ema = select(finite, average(state.ema, trained, c.optim.ema_decay), state.ema)
        bank = pushed(state.bank, kept, batch, write=finite, shards=self.shards)
        new = TrainState(
            step=state.step + 1,
            params=paths.replaced(state.params, trained),
            opt_state=opt_state,
            ema=ema,
            bank=bank,
            rng=state.rng,
            nonfinite=jnp.where(finite, 0, state.nonfinite + 1),
            skipped=state.skipped + ~finite,
        )
        metrics |= norms | {
            "lr": schedules.learning_rate(c.optim, c.train.steps)(state.step),
            "progress": schedules.progress(state.step, c.train.steps),
            "temperature": jnp.exp(-state.params["log_scale"]),
            "nonfinite": new.nonfinite,
            "skipped": new.skipped,
        }
        return new, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics)

    def _partner_lists(self, state: TrainState) -> tuple[Int[Array, " M"], Int[Array, "M k"]]:
        """Channel (c): a list of drawn partners for every id in the bank, at this step's place in the curriculum."""
        b = self.config.objective.bns
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        alpha = schedules.curriculum(schedules.progress(state.step, self.config.train.steps), b)
        return partner_lists(
            cast(Bank, state.bank),
            lambda *args: self.model.policy(state.params, *args),
            jax.random.fold_in(key, 2),
            alpha=alpha,
            config=b,
            shards=self.shards,
        )


def build(config: Config, vocab_size: int, mesh: Mesh, stored: Mapping[str, str] | None = None, *, training: bool = True) -> Trainer:
    """The trainer of a config; compiles nothing yet. ConfigError where it does not fit the mesh.

    stored: as in Trainer. training=False: for evaluation alone.
    """
    return Trainer(config, vocab_size, mesh, stored, training=training)


def compiler_options(config: Config, mesh: Mesh) -> dict[str, str] | None:
    """On a CPU the compiler merges what is made again with what was made first, and so keeps it after all, unless it is told not to."""
    again = config.model.remat != "none" and mesh.devices.flat[0].platform == "cpu"
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if again else None


def group_norms(grads: dict[str, Any]) -> Metrics:
    """Gradient norm of the model, and of the cross-modal layers and of the policy where there are any."""
    label = groups(grads)
    leaves = list(zip(jax.tree.leaves(grads), jax.tree.leaves(label), strict=True))

    def norm(group: str) -> Array:
        return optax.tree.norm([g for g, name in leaves if name == group])

    return {"grad_norm": norm("model")} | {f"grad_norm_{name}": norm(name) for name in ("cross_attention", "policy") if name in grads}


def average(old: dict[str, Any] | None, new: dict[str, Any], decay: float | None) -> dict[str, Any] | None:
    """decay * old + (1 - decay) * new; None where no average is kept."""
    return None if old is None or decay is None else jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)


def select(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    """new where the condition holds, else old, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
