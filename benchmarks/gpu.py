"""Train steps of ViT-B/32 and ViT-B/16 on a GPU, bfloat16, InfoNCE and BACL: pairs a second, MFU and peak memory, by batch size.

    python -m benchmarks.gpu --batches=256,512,1024

Each case has a process of its own; a batch that does not fit is a row that says so. Needs jax[cuda12] and a GPU that nvidia-smi sees,
else it ends with code 2. Writes benchmarks/gpu.json.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from bacl_jax.config import Config, from_config_dict
from bacl_jax.mesh import make_mesh
from bacl_jax.models import Model
from bacl_jax.train import flops
from bacl_jax.train.step import build
from benchmarks.measure import MIB, timed
from benchmarks.ours import random_batch

PATCH = {"vitb32": 32, "vitb16": 16}
PEAK = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "L40": 181e12,
    "V100": 125e12,
}  # dense bfloat16 (V100: float16), FLOP/s
WARM_UP, CALLS = 3, 20


def config_of(tower: str, objective: str, batch: int) -> Config:
    """CLIP's towers (arXiv 2103.00020) at 224 pixels and 77 tokens."""
    on = objective == "bacl"
    return from_config_dict(
        {
            "data": {"image_size": 224, "context_length": 77, "vocab_size": 49408},
            "model": {
                "embed_dim": 512,
                "dtype": "bfloat16",
                "image": {"kind": "vit", "width": 768, "depth": 12, "heads": 12, "patch": PATCH[tower]},
                "text": {"width": 512, "depth": 12, "heads": 8},
            },
            "objective": {"bank_size": 65536, "bns": {"enabled": on}, "cla": {"enabled": on}},
            "train": {"batch_size": batch},
        }
    )


def tower_flops(config: Config) -> float:
    """FLOPs of both towers for one pair, forward and backward (three times forward), matrix products alone.

    What is made again or what BACL encodes again is not counted: MFU says how much of the chip the towers' own work gets.
    """
    model, size, length = Model(config, config.data.vocab_size), config.data.image_size, config.data.context_length
    shape = jax.ShapeDtypeStruct
    image, ids, mask = shape((1, size, size, 3), jnp.uint8), shape((1, length), jnp.int32), shape((1, length), bool)
    params = jax.eval_shape(model.init, jax.random.key(0))
    return 3 * flops.count(
        lambda *given: (model.encode_image(given[0], given[1]), model.encode_text(given[0], *given[2:])), params, image, ids, mask
    )


def measure(config: Config, mesh: jax.sharding.Mesh, *, vocabulary: int, warm_up: int = WARM_UP, calls: int = CALLS) -> dict[str, Any]:
    """Median over steps: ms, pairs_per_s, mfu (None: the device's peak is unknown), peak_mib of the first.

    peak_mib is None where the device does not tell.
    """
    device = jax.devices()[0]
    trainer = build(config, vocabulary, mesh)
    state, batch = trainer.init(0), random_batch(config, vocabulary)

    def step() -> None:
        nonlocal state
        state, metrics = trainer.step(state, batch)
        jax.block_until_ready(metrics)

    for _ in range(warm_up):
        step()
    ms = statistics.median(timed(step, calls)["wall_ms"])
    peak = next((rate for name, rate in PEAK.items() if name in device.device_kind), None)
    pairs = 1e3 * config.train.batch_size / ms
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "device": device.device_kind,
        "ms": round(ms, 2),
        "pairs_per_s": round(pairs, 1),
        "mfu": None if peak is None else round(pairs * tower_flops(config) / (peak * mesh.size), 3),
        "peak_mib": None if memory is None else round(memory / MIB, 1),
    }


def in_own_process(case: dict[str, Any]) -> dict[str, Any]:
    """The case's result; {"error": last line} where its process failed, as where the batch does not fit."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", f"--case={json.dumps(case)}"], capture_output=True, text=True)
    if done.returncode == 0:
        return case | json.loads(done.stdout.splitlines()[-1])
    return case | {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", default="256,512,1024,2048", help="batch sizes")
    parser.add_argument("--case", help="JSON of one case, measured in this process")
    parser.add_argument("--out", default="benchmarks/gpu.json", help="where the results go")
    options = parser.parse_args()
    if options.case is not None:
        config = config_of(**json.loads(options.case))
        print(json.dumps(measure(config, make_mesh(config.mesh), vocabulary=config.data.vocab_size)))
        return
    if shutil.which("nvidia-smi") is None or subprocess.run(["nvidia-smi"], capture_output=True).returncode:
        print("benchmarks.gpu: nvidia-smi finds no GPU here; run it on a machine with one", file=sys.stderr)
        sys.exit(2)
    columns, results = ("tower", "objective", "batch", "ms", "pairs_per_s", "mfu", "peak_mib", "error"), []
    table = Table(*columns)
    for tower in PATCH:
        for objective in ("infonce", "bacl"):
            for batch in options.batches.split(","):
                results.append(in_own_process({"tower": tower, "objective": objective, "batch": int(batch)}))
                table.add_row(*(str(results[-1].get(column, "")) for column in columns))
                Path(options.out).write_text(json.dumps(results, indent=1) + "\n")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
