"""How long a step takes, by what it computes and moves over what a chip can: a roofline estimate, and the published rates of TPUs.

    seconds = max(FLOPs / peak, bytes beside / memory bandwidth) + bytes alone / memory bandwidth + collective seconds

FLOPs are those of one chip (flops.py, an even share of the mesh's), bytes and collectives those of its compiled program (hlo.py). A
collective takes traffic / rate: an all-reduce sends its bytes twice, every other kind once; a collective-permute sends over one link of the
chip, the others over all of them. Overlap is assumed within the first term: what a matrix product reads and writes, and what is fetched
ahead, moves while the matrix unit works. All else, and every collective, is added in full: a chip runs one instruction after the other.
Units run at their peak: what a program reaches of it is not in the estimate.
"""

import dataclasses
from collections.abc import Sequence

from bacl_jax.train.hlo import Collective, Traffic


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published rates of one chip, in bytes, FLOPs and seconds."""

    hbm: float  # capacity
    flops: float  # bfloat16 peak
    bandwidth: float  # of the main memory
    interconnect: float  # what all links send together: half of the published bidirectional rate
    links: int

    @property
    def dimensions(self) -> int:
        """Of a slice: a chip has a link to either neighbour along each."""
        return self.links // 2


CHIPS = {  # https://cloud.google.com/tpu/docs/ v4, v5e, v5p, v6e: "key chip specifications"
    "v4": Chip(hbm=32e9, flops=275e12, bandwidth=1200e9, interconnect=300e9, links=6),
    "v5e": Chip(hbm=16e9, flops=197e12, bandwidth=819e9, interconnect=200e9, links=4),
    "v5p": Chip(hbm=95e9, flops=459e12, bandwidth=2765e9, interconnect=600e9, links=6),
    "v6e": Chip(hbm=32e9, flops=918e12, bandwidth=1640e9, interconnect=400e9, links=4),
}

PEAKS = {  # dense bfloat16 peak by the name that JAX gives a device; GPUs: https://www.nvidia.com data sheets, without sparsity
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}


def peak_flops(kind: str) -> float | None:
    """FLOPs a second of a device by its `device_kind`, None where they are not known.

    Of a GPU the longest name that it begins with counts, as in "NVIDIA A100-SXM4-80GB"; a TPU's name is whole.
    """
    names = [name for name in PEAKS if kind == name or (name.startswith("NVIDIA") and kind.startswith((f"{name} ", f"{name}-")))]
    return PEAKS[max(names, key=len)] if names else None


def seconds(chip: Chip, flops: float, traffic: Traffic, collectives: Sequence[Collective] = ()) -> float:
    """Estimated time of a step, by the formula above; FLOPs and bytes are those of one chip."""
    computed = max(flops / chip.flops, traffic.beside / chip.bandwidth)
    return computed + traffic.alone / chip.bandwidth + sum(collective_seconds(chip, one) for one in collectives)


def collective_seconds(chip: Chip, one: Collective) -> float:
    """Time of all runs of one kind and size of collective in a step."""
    rate = chip.interconnect / (chip.links if one.kind == "collective-permute" else 1)
    return one.count * one.bytes * (2 if one.kind == "all-reduce" else 1) / rate
