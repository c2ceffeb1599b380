"""Imports point one way (architecture): a module may import from its own layer's package and from the layers below."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"types", "settings", "errors", "agreement"},
    {"rules_media"},
    {"rules"},
    {"config", "config_eval", "config_media", "config_model", "config_objective", "config_watch", "mesh", "schedules"},
    {"partition", "optim", "paths"},
    {"data", "models", "objective"},
    {"addon", "addon_features", "theory"},
    {"train"},
    {"eval", "interop"},
)
SINGLE_FILES = {
    "types",
    "rules",
    "settings",
    "errors",
    "agreement",
    "config",
    "config_eval",
    "config_media",
    "config_model",
    "config_objective",
    "config_watch",
    "mesh",
    "schedules",
    "partition",
    "optim",
    "paths",
    "addon",
    "addon_features",
}  # may import each other within a layer
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MODULES = sorted((ROOT / "bacl_jax").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of all modules and names that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(path: Path) -> str:
    return path.relative_to(ROOT / "bacl_jax").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = part(path)
    if own == "__init__":
        return
    assert own in RANK, f"{own} has no layer"
    for name in imported(path):
        top, *rest = name.split(".")
        assert top not in {"launch", "configs", "tests"}, f"{path} imports {name}"
        if top != "bacl_jax":
            continue
        other = rest[0]
        same_layer = other == own or {other, own} <= SINGLE_FILES
        assert RANK[other] < RANK[own] or (RANK[other] == RANK[own] and same_layer), f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_models_know_flax_and_nothing_pickles(path):
    tops = {name.split(".")[0] for name in imported(path)}
    assert "flax" not in tops or part(path) == "models"
    assert not tops & {"pickle", "cloudpickle", "dill", "joblib", "tensorflow", "torch"}


def test_objective_sees_arrays_and_settings_only():
    for path in (ROOT / "bacl_jax" / "objective").glob("*.py"):
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("bacl_jax.")}
        assert ours <= {"objective", "types", "config_objective", "settings", "mesh", "schedules"}, f"{path}: {ours}"


def test_types_imports_nothing_of_ours():
    assert not [name for name in imported(ROOT / "bacl_jax" / "types.py") if name.startswith("bacl_jax")]


@pytest.mark.parametrize(
    "door",
    ["train", "evaluate", "compile", "index", "precompute", "report", "export", "adopt", "local", "theory", "match", "jobs", "sweep"],
)
def test_a_door_is_short(door):
    assert len((ROOT / "launch" / f"{door}.py").read_text().splitlines()) <= 60
