"""A trainer of a few numbers, for tests of checkpoints and the loop: every step depends on all that a resume must bring back."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bacl_jax.config import Config, MeshConfig, from_config_dict
from bacl_jax.data.order import PartnerLists, batch_rows, with_partners
from bacl_jax.mesh import make_mesh, replicated
from bacl_jax.objective import bank
from bacl_jax.train.state import TrainState

ROWS = 40
TOKENIZER = {"version": "1.0", "model": {"vocab": {"<|pad|>": 0, "zebra": 2, "ant": 1}}}


def tiny_config(**train: Any) -> Config:
    """20 steps of 8 rows, partners every 4 steps, 3 steps late."""
    train = {
        "steps": 20,
        "batch_size": 8,
        "log_every": 1,
        "eval_every": 0,
        "save_every": 5,
        "save_minutes": None,
        "keep_best": None,
    } | train
    bns = {
        "enabled": True,
        "k": 2,
        "pool": 4,
        "drawn_share": 0.0,
        "partner_share": 0.25,
        "partner_k": 3,
        "partner_every": 4,
        "list_delay": 3,
    }
    return from_config_dict(
        {
            "train": train,
            "optim": {"warmup_steps": 1},
            "data": {"threads": 1, "prefetch": 1},
            "objective": {"bank_size": 16, "bns": bns},
        }
    )


class FakeTrainer:
    """params["towers"]["w"] takes in the rows of each batch; `poison` names the step from which on the loss is NaN."""

    def __init__(self, *, ema: bool = True, poison: int | None = None):
        self.mesh = make_mesh(MeshConfig())
        self.ema, self.poison = ema, poison
        self.step = jax.jit(self._step, donate_argnums=0)
        self.partner_lists = jax.jit(self._partner_lists)
        self._jitted_init = jax.jit(self._init, out_shardings=replicated(self.mesh))

    def init(self, seed: int) -> TrainState:
        return self._jitted_init(jax.random.key(seed))

    def _init(self, key: jax.Array) -> TrainState:
        params = {"towers": {"w": jax.random.normal(key, (16, 3))}, "log_scale": jnp.float32(1.5)}
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=({"mu": jnp.zeros(3)}, (), {"count": jnp.int32(0)}),
            ema=jax.tree.map(jnp.copy, params) if self.ema else None,
            bank=bank.empty(16, 4, 3),
            rng=jax.random.key_data(key),
            nonfinite=jnp.int32(0),
            skipped=jnp.int32(0),
        )

    def abstract_state(self) -> Any:
        sharding = replicated(self.mesh)
        shapes = jax.eval_shape(self._init, jax.random.key(0))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)

    def _step(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        change = jnp.sin(batch["index"].astype(jnp.float32)).sum() + jax.random.normal(key)
        params = jax.tree.map(lambda x: 0.9 * x + change, state.params)
        bad = jnp.bool_(self.poison is not None) & (state.step >= (self.poison or 0))
        nonfinite = jnp.where(bad, state.nonfinite + 1, 0)
        new = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt_state=({"mu": state.opt_state[0]["mu"] + change}, (), {"count": state.opt_state[2]["count"] + 1}),
            ema=None if state.ema is None else jax.tree.map(lambda old, x: 0.5 * old + 0.5 * x, state.ema, params),
            bank=dataclasses.replace(
                state.bank, index=jnp.roll(state.bank.index, 8).at[:8].set(batch["index"]), cursor=state.bank.cursor + 8
            ),
            nonfinite=nonfinite,
            skipped=state.skipped + bad,
        )
        return new, {"loss": jnp.where(bad, jnp.nan, change), "nonfinite": nonfinite.astype(jnp.float32), "lr": jnp.float32(0.1)}

    def _partner_lists(self, state: TrainState) -> tuple[jax.Array, jax.Array]:
        spread = (jnp.abs(state.params["towers"]["w"]) * 1000).astype(jnp.int32) % ROWS
        return state.bank.index, spread


def fake_batches(config: Config, seen: list[tuple[int, list[int]]] | None = None) -> Any:
    """Rows of each step as the real pipeline gives them, partners included; `seen` takes (step, rows)."""

    def batches(start: int, partners: PartnerLists) -> Any:
        for step in range(start, 10**6):
            rows = batch_rows(config.seed, step, config.train.batch_size, ROWS)
            current = partners.at(step)
            if current is not None:
                rows = with_partners(rows, current, 0.5, config.seed, step)
            if seen is not None:
                seen.append((step, rows.tolist()))
            yield step, {"index": rows.astype(np.int32)}

    return batches


def assert_same(a: Any, b: Any) -> None:
    """Bit for bit, structure included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), a, b)
