"""The rules that say where a parameter lies."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bacl_jax.config import ConfigError, MeshConfig
from bacl_jax.mesh import make_mesh
from bacl_jax.partition import decide, decisions, follow, shardings, summary

MESH = MeshConfig(data=2, fsdp=2, tensor=2, fsdp_floor=64)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("towers/text/blocks/0/self_attention/query/kernel", (16, 16), P("fsdp", "tensor")),
        ("towers/text/blocks/0/self_attention/out/kernel", (16, 16), P("tensor", "fsdp")),
        ("towers/text/blocks/0/mlp/up/kernel", (16, 64), P("fsdp", "tensor")),
        ("towers/text/blocks/0/mlp/up/bias", (64,), P("tensor")),
        ("towers/text/blocks/0/mlp/down/bias", (16,), P(None)),
        ("towers/text/embedding", (49, 16), P(None, "fsdp")),
        ("towers/image/stem/kernel", (8, 8, 3, 32), P(None, None, None, "fsdp")),
        ("log_scale", (), P()),
    ],
)
def test_a_rule_for_each_kind(path, shape, spec):
    assert decide(path, shape, MESH).spec == spec


def test_without_such_axes_everything_is_whole():
    assert decide("towers/text/embedding", (49, 16), MeshConfig()) == decide("towers/text/embedding", (49, 16), MeshConfig(data=4))
    assert decide("towers/text/embedding", (49, 16), MeshConfig()).spec == P(None, None)


def test_below_the_floor_nothing_is_cut():
    small = decide("towers/text/positions", (3, 7), MESH)
    assert (small.spec, small.why) == (P(None, None), "21 elements < mesh.fsdp_floor = 64")


def test_what_does_not_divide_is_named_with_its_numbers_and_may_be_left_whole():
    with pytest.raises(ConfigError, match=r"towers/x/kernel \[9, 9\]: no axis divides by mesh.fsdp = 2; .*mesh.whole"):
        decide("towers/x/kernel", (9, 9), MESH)
    left = decide("towers/x/kernel", (9, 9), MeshConfig(fsdp=2, fsdp_floor=64, whole=("towers/x/.*",)))
    assert left.spec == P()
    with pytest.raises(ConfigError, match=r"mlp/up/kernel \[16, 9\]: axis 1 does not divide by mesh.tensor = 2"):
        decide("a/mlp/up/kernel", (16, 9), MESH)


def test_a_pattern_that_matches_no_parameter_is_named_beside_some_that_there_are():
    params = {name: np.zeros(3) for name in "abcdefgh"}
    said = r"config\.mesh\.whole: 'b/.\*' matches the whole path of no parameter; there are 8, among them a, c, e, g; set it with"
    with pytest.raises(ConfigError, match=said):
        decisions(params, MeshConfig(whole=("a|b", "b/.*")))


def test_shardings_optimiser_and_summary_follow_the_decisions():
    params = {"a": {"mlp": {"up": {"kernel": np.zeros((16, 64))}}}, "b": np.zeros(3)}
    mesh = make_mesh(MESH)
    where = shardings(params, mesh, MESH)
    assert where["a"]["mlp"]["up"]["kernel"].spec == P("fsdp", "tensor")
    state = {"count": np.zeros(()), "mu": params, "nu": params, "b": np.zeros(5)}
    whole = jax.sharding.NamedSharding(mesh, P())
    found = follow(state, params, where, whole)
    assert found["mu"] == found["nu"] == where
    assert found["count"] == found["b"] == whole  # an equal name of another shape is no parameter
    assert summary(params, MESH) == "1,027 parameters; 1,024 over fsdp, 1,024 over tensor, 3 whole"
    assert str(decisions(params, MESH)[0]) == "a/mlp/up/kernel [16, 64]: axis 1 over tensor, axis 0 over fsdp"
