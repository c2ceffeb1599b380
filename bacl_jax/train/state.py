"""What a run carries from step to step."""

from typing import Any

from jaxtyping import Array, Int, UInt32

from bacl_jax.objective.bank import Bank
from bacl_jax.types import pytree


@pytree
class TrainState:
    """One pytree; each field is a checkpoint item of its own.

    step:      updates tried so far, skipped ones included; also the data position.
    params:    float32 parameters.
    opt_state: optax state of the trained parameters (those that config.optim.frozen does not name).
    ema:       averages of the trained parameters, or None.
    bank:      memory bank; where the text is paired with several anchors one each, by the anchor's name.
    rng:       key data of the run's root key; a step's key is fold_in(rng, step).
    nonfinite: consecutive steps skipped for a non-finite loss or gradient.
    skipped:   all skipped steps.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: Any
    ema: dict[str, Any] | None
    bank: Bank | dict[str, Bank]
    rng: UInt32[Array, "2"]
    nonfinite: Int[Array, ""]
    skipped: Int[Array, ""]
