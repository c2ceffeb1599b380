"""FLOPs of a BACL step over those of an InfoNCE step, for configs/laion400m_vitb16_bacl.py: its own shares, and all rows.

    python -m benchmarks.bacl_over_infonce

Counted from the program (bacl_jax/train/flops.py), nothing runs. Unfrozen: the train step. Frozen: the towers are computed, and
gradients go to all other parameters alone (temperature, cross-modal layers, policy).
"""

import dataclasses
import functools
import json
from typing import Any

import jax
from absl import app

from bacl_jax.config import Config, MeshConfig, from_config_dict
from bacl_jax.config_objective import BNSConfig, CLAConfig
from bacl_jax.mesh import make_mesh
from bacl_jax.train import flops
from bacl_jax.train.ahead import abstract_batch
from bacl_jax.train.step import build
from configs import laion400m_vitb16_bacl as shipped


def rows() -> list[dict[str, Any]]:
    """One dict a comparison: name, flops_ratio, FLOPs of both steps over all devices, and the settings that act."""
    settings = shipped.get_config()
    settings.data.path = "none is read"
    config = from_config_dict(settings)
    o = config.objective
    full = with_objective(config, bns=dataclasses.replace(o.bns, drawn_share=1.0), cla=dataclasses.replace(o.cla, row_share=1.0))
    peers = with_objective(config, bns=BNSConfig(), cla=CLAConfig())
    return [
        row(f"bacl_over_infonce{share}{frozen}", one, peers, frozen == "_frozen")
        for share, one in (("", config), ("_full_share", full))
        for frozen in ("", "_frozen")
    ]


def with_objective(config: Config, **parts: Any) -> Config:
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, **parts))


def row(name: str, config: Config, peer: Config, frozen: bool) -> dict[str, Any]:
    ours, theirs = step_flops(config, frozen), step_flops(peer, frozen)
    o = config.objective
    return {
        "name": name,
        "flops_ratio": ours / theirs,
        "ours_flops": ours,
        "peer_flops": theirs,
        "peer": "InfoNCE step, same towers",
        "cla.layers": o.cla.layers,
        "cla.width": o.cla.width,
        "cla.row_share": o.cla.row_share,
        "bns.drawn_share": o.bns.drawn_share,
    }


@functools.cache
def step_flops(config: Config, frozen: bool) -> float:
    """FLOPs of one step over all devices."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    trainer = build(config, config.data.vocab_size, mesh)
    state, batch = trainer.abstract_state(), abstract_batch(config, mesh)
    if not frozen:
        return flops.count(trainer.step, state, batch)

    def loss(trained: Any, towers: Any, state: Any, batch: Any) -> Any:
        return trainer._loss(trained | {"towers": towers}, state, batch)[0]

    trained = {name: part for name, part in state.params.items() if name != "towers"}
    return flops.count(jax.value_and_grad(loss), trained, state.params["towers"], state, batch)


def main(argv: list[str]) -> None:
    for one in rows():
        print(json.dumps(one), flush=True)


if __name__ == "__main__":
    app.run(main)
