"""Compiles a config's train step for a TPU topology on a machine without one, and tells what it needs: memory, FLOPs, traffic, time.

Nothing is computed and no parameter is made: the step is compiled for shapes. All numbers are those of one chip.
"""

import dataclasses
import importlib.util
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from bacl_jax import paths
from bacl_jax.config import Config, ConfigError
from bacl_jax.data.inputs import nothing
from bacl_jax.mesh import BATCH_AXES, batch_sharding, make_mesh, replicated, spread
from bacl_jax.objective.contrast import contrast
from bacl_jax.objective.pairs import Groups
from bacl_jax.objective.similarity import Rows
from bacl_jax.objective.tile import Side
from bacl_jax.train import cost, flops
from bacl_jax.train.hlo import Program
from bacl_jax.train.step import Trainer, build
from bacl_jax.types import Batch, Tokens

Report = dict[str, Any]


def devices(topology: str) -> list[Any]:
    """The chips of a topology such as "v5e:16x16". ConfigError where there is none of that name, or no libtpu."""
    family = _check_topology(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("libtpu, the compiler for TPUs, is missing: pip install -r requirements-tpu.txt")
    chip = {"chip_config_name": "megacore"} if family == "v4" else {}  # one device a chip, as JAX has it there; the others are so unasked
    try:
        return list(topologies.get_topology_desc(topology, "tpu", **chip).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"--topology={topology}: libtpu knows no such topology: {error}") from error


def _check_topology(topology: str) -> str:
    """The family of a topology that libtpu may be asked for: what it cannot lay out it answers with many lines, or ends the process."""
    family, _, shape = topology.partition(":")
    if family not in cost.CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ConfigError(f"--topology={topology}: must be a family of {', '.join(cost.CHIPS)} and a shape, as in v5e:16x16 or v5p:4x4x4")
    sizes, dimensions = [int(size) for size in shape.split("x")], cost.CHIPS[family].dimensions
    if len(sizes) != dimensions:
        example = f"{family}:{'x'.join(['4'] * dimensions)}"
        raise ConfigError(f"--topology={topology}: a shape of {len(sizes)} dimensions; {family} has {dimensions}, as in {example}")
    if sizes[0] % 2 or sizes[1] % 2:
        near = "x".join(str(size + size % 2) for size in sizes[:2])
        rest = "".join(f"x{size}" for size in sizes[2:])
        raise ConfigError(f"--topology={topology}: the first two sizes must be even, for a host has 2x2 chips; take {family}:{near}{rest}")
    return family


def abstract_batch(config: Config, mesh: Mesh) -> Batch:
    """Shapes, types and shardings of a global batch."""
    where = batch_sharding(mesh)

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.train.batch_size, *shape), dtype, sharding=where)

    length = config.data.context_length
    text = Tokens(values=rows((length,), jnp.int32), mask=rows((length,), jnp.bool_))
    return Batch(
        inputs={name: Tokens(**nothing(name, config.data, rows)._asdict()) for name in config.data.anchors} | {"text": text},
        present={name: rows((), jnp.bool_) for name in (*config.data.anchors, "text")},
        caption_id=rows((2,), jnp.uint32),
        anchor_id=rows((2,), jnp.uint32),
        index=rows((), jnp.int32),
        paired=rows((), jnp.bool_) if config.data.unpaired_share else None,
        truth=rows((2,), jnp.uint32) if config.data.unpaired_share and config.data.truth_column else None,
    )


def compile_ahead(config: Config, topology: str) -> tuple[Report, float]:
    """The report of a config on a topology and the seconds that the compiler took; the vocabulary is taken to be data.vocab_size.

    A report has the keys topology, fits, hbm_bytes, loss_temp_bytes, flops, step_seconds, collectives. Where the step does not fit into the
    memory that the compiler knows of it gives no program: then step_seconds is None, collectives are empty, and the total is what it says.
    """
    mesh, chip = make_mesh(config.mesh, devices(topology)), cost.CHIPS[topology.partition(":")[0]]
    trainer = build(config, config.data.vocab_size, mesh)
    state, batch = trainer.abstract_state(), abstract_batch(config, mesh)
    work = flops.count(trainer.step, state, batch) / mesh.size
    hbm: dict[str, int] = {name: held(getattr(state, field)) for name, field in KINDS.items()}
    seconds, parts, start = None, [], time.perf_counter()
    compiled, needed = compiled_step(trainer, state, batch)
    took = time.perf_counter() - start
    if compiled is not None:
        program = Program(compiled.as_text() or "")
        parts = program.collectives()
        seconds = cost.seconds(chip, work, program.traffic(), parts)
    rest = max(needed - sum(hbm.values()), 0)
    hbm["activations"] = min(activation_bytes(trainer), rest)
    hbm["temp"] = rest - hbm["activations"]
    report = {
        "topology": topology,
        "fits": needed <= chip.hbm,
        "hbm_bytes": {"total": needed} | hbm | {"limit": int(chip.hbm)},
        "loss_temp_bytes": loss_temp_bytes(config, trainer),
        "flops": work,
        "step_seconds": seconds,
        "collectives": [dataclasses.asdict(one) for one in parts],
    }
    return report, took


def compiled_step(trainer: Trainer, state: Any, batch: Any) -> tuple[Any | None, int]:
    """(the compiled step, bytes that it needs on a device); None where it needs more than the compiler knows the device to have.

    Of state and batch only shapes, types and shardings are looked at.
    """
    try:
        compiled = trainer.step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise
        return None, needed
    m: Any = compiled.memory_analysis()
    held = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return compiled, held + m.temp_size_in_bytes + m.generated_code_size_in_bytes


KINDS = {"params": "params", "optimizer": "opt_state", "bank": "bank"}  # kind of memory -> field of the state


def held(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _needed(message: str) -> int | None:
    """Bytes that the compiler says it needs where they are more than the chip has; None where it failed of something else."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
    if "RESOURCE_EXHAUSTED" not in message or not found:
        return None
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def activation_bytes(trainer: Trainer) -> int:
    """What the towers keep for their backward pass, of the rows that a chip encodes at a time.

    The difference of what two and what one such set of rows keeps: so parameters, which do not grow with the rows, drop out.
    """
    config, mesh, model = trainer.config, trainer.mesh, trainer.model
    rows = config.train.batch_size // math.prod(mesh.shape[axis] for axis in BATCH_AXES) // config.train.micro_batches

    def kept(rows: int) -> int:
        def shape(dims: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((rows, *dims), dtype)

        length, anchors = config.data.context_length, config.data.anchors

        def residuals(params: Any, given: dict[str, Tokens], ids: Any, mask: Any) -> Any:
            def towers(trained: Any) -> Any:
                whole = paths.replaced(params, trained)
                seen = {name: model.encode_anchor(whole, name, model.prepare(name, one)) for name, one in given.items()}
                return seen, model.encode_text(whole, ids, mask)

            return jax.vjp(towers, paths.trained(params, trainer.frozen))[1]

        text = shape((length,), jnp.int32), shape((length,), jnp.bool_)
        given = {name: Tokens(**nothing(name, config.data, shape)._asdict()) for name in anchors}
        found = jax.eval_shape(residuals, trainer.abstract_state().params, given, *text)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(found))

    return kept(2 * rows) - kept(rows)


def loss_temp_bytes(config: Config, trainer: Trainer) -> int:
    """Temporary memory of the contrastive term alone, forward and backward, compiled for the same chips."""
    mesh, o = trainer.mesh, config.objective
    apart, whole = spread(mesh), replicated(mesh)

    def shape(*dims: int, dtype: Any = jnp.float32, where: NamedSharding = apart) -> Any:  # stands for an array
        return jax.ShapeDtypeStruct(dims, dtype, sharding=where)

    size, width = config.train.batch_size, config.model.embed_dim
    candidates = o.bns.pool if o.bns.enabled and o.bns.reweight else 0
    groups = Groups.of(size, o.groups, trainer.shards)
    drawn = groups.count * groups.share(o.bns.drawn_share) if o.bns.enabled and o.bns.drawn_share > 0 else 0

    def ids(rows: int) -> dict[str, Any]:
        return {name: shape(rows, 2, dtype=jnp.uint32) for name in ("caption_id", "anchor_id")}

    side = Side(x=shape(size, width), candidate=shape(size, candidates, dtype=jnp.int32), weight=shape(size, candidates), **ids(size))
    columns = Rows(x=shape(drawn, width), valid=shape(drawn, dtype=jnp.bool_), **ids(drawn))
    scalar = shape(where=whole)

    def term(z: Any, w: Any, extra: Any, scale: Any, bias: Any, rows: Side, others: Side, drawn: Rows) -> Any:
        rows, others = dataclasses.replace(rows, x=z), dataclasses.replace(others, x=w)
        drawn = dataclasses.replace(drawn, x=extra)
        return contrast(rows, others, drawn, scale=scale, bias=bias, config=o, shards=trainer.shards)[0]

    gradient = jax.jit(jax.value_and_grad(term, argnums=(0, 1, 2, 3, 4)), out_shardings=(whole, (apart, apart, apart, whole, whole)))
    memory: Any = gradient.lower(side.x, side.x, columns.x, scalar, scalar, side, side, columns).compile().memory_analysis()
    return memory.temp_size_in_bytes


def reports(config: Config, topology: str) -> Iterator[tuple[Config, Report, float]]:
    """(config, report, seconds) of the config, then with twice as many micro-batches, and so on until it fits or the rows do not divide."""
    while True:
        report, took = compile_ahead(config, topology)
        yield config, report, took
        parts = 2 * config.train.micro_batches
        chips = len(devices(topology))
        if report["fits"] or config.train.batch_size % math.lcm(config.objective.groups, chips * parts):
            return
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batches=parts))
