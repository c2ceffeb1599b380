"""What is read from the text of a compiled program; and the roofline made of it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bacl_jax.config import MeshConfig
from bacl_jax.mesh import make_mesh
from bacl_jax.train import cost
from bacl_jax.train.hlo import Collective, Program, Traffic, in_memory, total

TPU = """HloModule jit_step, is_scheduled=true

%cond (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (p.1: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p.1 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %sent = f32[8,4]{1,0:T(8,128)S(1)} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %beside = (f32[8,4]{1,0:T(8,128)}, f32[16,4]{1,0:T(8,128)}) fusion(%sent, %x), kind=kLoop, calls=%async_collective_fusion.2
  %y = f32[8,4]{1,0:T(8,128)} get-tuple-element(%beside), index=0
  ROOT %t = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) tuple(%i.1, %y)
}

%async_collective_fusion.2 (q: f32[8,4], r: f32[8,4]) -> (f32[8,4], f32[16,4]) {
  %q = f32[8,4]{1,0:T(8,128)S(1)} parameter(0)
  %r = f32[8,4]{1,0:T(8,128)} parameter(1)
  %all-gather.3 = f32[16,4]{1,0:T(8,128)} all-gather(%r), channel_id=7, dimensions={0}
  %exp = f32[8,4]{1,0:T(8,128)} exponential(%q)
  ROOT %both = (f32[8,4]{1,0:T(8,128)}, /*index=1*/f32[16,4]{1,0:T(8,128)}) tuple(%exp, %all-gather.3)
}

%start (s: f32[8,4]) -> f32[16,4] {
  %s = f32[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.1 = f32[16,4]{1,0:T(8,128)} all-gather(%s), channel_id=7, dimensions={0}
}

%slice (u: f32[100,4], v: s32[]) -> f32[1,4] {
  %u = f32[100,4]{1,0:T(8,128)} parameter(0)
  %v = s32[]{:T(128)} parameter(1)
  ROOT %one = f32[1,4]{1,0:T(8,128)} dynamic-slice(%u, %v, %v), dynamic_slice_sizes={1,4}
}

ENTRY %main (a: f32[8,4], big: f32[100,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0:T(8,128)} parameter(0)
  %big = f32[100,4]{1,0:T(8,128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %row = f32[1,4]{1,0:T(8,128)} fusion(%big, %zero), kind=kLoop, calls=%slice
  %begin = f32[16,4]{1,0:T(8,128)} fusion(%a), kind=kCustom, calls=%start
  %summed = (f32[8,4]{1,0:T(8,128)}, bf16[2]{0:T(256)}) all-reduce(%a, %half), channel_id=3, to_apply=%cond
  %tuple = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) tuple(%zero, %a)
  %while = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) while(%tuple), condition=%cond, body=%body
  ROOT %out = f32[8,4]{1,0:T(8,128)} get-tuple-element(%while), index=1
}
"""


def test_sizes_of_shapes():
    assert total("(bf16[12,64]{1,0:T(8,128)(2,1)}, /*index=1*/pred[3]{0:S(1)}, f32[], s4[3])") == 12 * 64 * 2 + 3 + 4 + 2
    assert in_memory("(f32[8]{0:T(8)S(1)}, f32[2]{0:T(8)})") == 8


def test_collectives_count_as_often_as_they_run_and_once_where_they_run_beside_other_work():
    assert Program(TPU).collectives() == [
        Collective("collective-permute", 8 * 4 * 4, 12),
        Collective("all-gather", 16 * 4 * 4, 1),
        Collective("all-reduce", 8 * 4 * 4 + 2 * 2, 1),
    ]


def test_memory_counts_slices_and_loops_and_no_scratchpad():
    row, x = 4 * 4, 8 * 4 * 4
    sliced = row + row + 4  # the row read and written, and its number
    summed = x + x + 2 * 2
    turn = x + x  # the permute reads x, the fusion writes exp: all else lies in the scratchpad or passes through
    assert Program(TPU).traffic() == Traffic(beside=0, alone=sliced + summed + 12 * turn)


def test_the_text_of_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("module @jit_f {}")


def test_a_scan_of_a_real_program():
    """Five turns of a loop that reads a row of w, multiplies, and sums over the devices."""
    mesh = make_mesh(MeshConfig())
    place = lambda *axes: NamedSharding(mesh, P(*axes))  # noqa: E731

    def loop(x, w):
        def one(x, w):
            return jax.lax.psum(x @ w, "data"), None

        return jax.shard_map(lambda x, w: jax.lax.scan(one, x, w)[0], mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False)(x, w)

    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=place())
    w = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32, sharding=place())
    program = Program(jax.jit(loop).lower(x, w).compile().as_text())
    assert program.collectives() == [Collective("all-reduce", 64 * 32 * 4, 5)]
    least = 5 * (2 * 64 * 32 + 32 * 32) * 4  # x in and out, a row of w: each turn
    traffic = program.traffic()
    assert least / 2 <= traffic.beside
    assert least <= sum(traffic) <= 8 * least


def test_the_estimate_is_the_formula():
    chip = cost.Chip(hbm=1, flops=100, bandwidth=10, interconnect=8, links=4)
    assert cost.seconds(chip, 1000, Traffic(20, 0)) == 10
    assert cost.seconds(chip, 1000, Traffic(200, 0)) == 20
    assert cost.seconds(chip, 1000, Traffic(20, 30)) == 13
    sent = [Collective("all-reduce", 8, 3), Collective("collective-permute", 2, 5), Collective("all-gather", 16, 1)]
    assert cost.seconds(chip, 1000, Traffic(20, 0), sent) == 10 + 3 * 2 * 8 / 8 + 5 * 2 / 2 + 16 / 8
