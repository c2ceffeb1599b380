"""The rows of `make bench`: what our side and the peer's do, and which of a process's two memory figures is compared.

Imported by both environments: standard library alone.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Side:
    """One process of a row: `python -m benchmarks.<program> <case> <arguments as JSON>`. memory: the figure of it that is compared."""

    program: str  # "peers" runs in the peers' environment, "ours" and "shards" in this one
    case: str
    arguments: dict[str, Any]
    memory: str | None = (
        "over_import_mib"  # or over_inputs_mib, temp_mib, family_mib (see measure.py); None: spread over processes, not compared
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """Two sides that take turns. calls: of each in a turn. rounds: turns of each."""

    name: str
    peer_name: str
    ours: Side
    peer: Side
    calls: int = 3
    rounds: int = 3


OPEN_CLIP = "open_clip 3.3.0, torch 2.13.0, eager"
LEAN = {"remat": "dots"}  # matrix products are kept, the rest is made again: on a CPU the least time
LEANEST = {"remat": "full"}  # the least memory
WHOLE, LOSS, SEARCH = {"batch": 256}, {"dim": 512}, {"queries": 1024, "bank": 65536, "dim": 512, "k": 32}
PICTURES = {
    "batch": 256,
    "size": 64,
    "batches": 20,
}  # a call reads 20 batches, many more than are read ahead; the folder of the pictures is added when they are there

SHARDS = {"batch": 64, "size": 224, "batches": 120}  # of which up to ten are read ahead while the other side has its turn


def _shards(program: str, case: str, form: str = "few", **arguments: Any) -> Side:
    return Side(program, case, {"form": form, **SHARDS, **arguments}, "family_mib")


def _loss(size: int, calls: int) -> Row:
    arguments = {"size": size, **LOSS}
    ours, peer = Side("ours", "loss", arguments, "temp_mib"), Side("peers", "loss", arguments, "over_inputs_mib")
    return Row(f"loss_{size}", OPEN_CLIP, ours, peer, calls)


ROWS = (
    Row("train_step", OPEN_CLIP, Side("ours", "train_step", {"batch": 128, "model": LEAN}), Side("peers", "train_step", {"batch": 128})),
    Row(
        "train_step_remat",
        OPEN_CLIP,
        Side("ours", "train_step", {"batch": 128, "model": LEANEST}),
        Side("peers", "train_step", {"batch": 128}),
    ),
    _loss(8192, 2),
    Row(
        "loss_32768_self",
        "ours at n = 8,192: open_clip would need over 12 GiB",
        Side("ours", "loss", {"size": 32768, **LOSS}, "temp_mib"),
        Side("ours", "loss", {"size": 8192, **LOSS}, "temp_mib"),
        calls=1,
        rounds=1,
    ),
    Row(
        "topk",
        "faiss-cpu 1.14.3, IndexFlatIP",
        Side("ours", "topk", SEARCH, "temp_mib"),
        Side("peers", "topk", SEARCH, "over_inputs_mib"),
        calls=5,
    ),
    Row(
        "gradcache",
        "ours, whole batch",
        Side("ours", "train_step", {**WHOLE, "micro_batches": 4, "model": {}}),
        Side("ours", "train_step", {**WHOLE, "model": {}}),
    ),
    Row(
        "bacl_over_infonce",
        "ours, InfoNCE",
        Side("ours", "emoji_step", {"variant": "bacl"}),
        Side("ours", "emoji_step", {"variant": "clip"}),
        calls=5,
    ),
    Row(
        "pipeline",
        "torch DataLoader, a process a core, Pillow",
        Side("ours", "pipeline", PICTURES),
        Side("peers", "pipeline", PICTURES, memory=None),
        calls=1,
    ),
    Row("shards", "open_clip 3.3.0's webdataset pipeline", _shards("shards", "ours"), _shards("peers", "shards"), calls=1),
    Row(
        "shards_grain",
        "grain 0.2.18 with Pillow, processes",
        _shards("shards", "ours"),
        _shards("shards", "grain", workers=2),
        calls=1,
    ),
    Row("shards_many", "ours, 10 shards in place of 10,000", _shards("shards", "ours", "many"), _shards("shards", "ours"), calls=1),
)
