"""Which points a sweep consists of: its file read and checked, and each point's name derived from what it changes."""

import dataclasses
import difflib
import hashlib
import itertools
import re
import runpy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from absl.flags import FlagHolder

from bacl_jax.config import BestMetric, Config, ConfigError, flatten, sha256
from bacl_jax.train.workdir import check_workdir
from launch.points import Point, config_of

METRICS: dict[str, str] = {  # numbers of which more is better -> the task that gives them
    **dict.fromkeys(get_args(BestMetric), "retrieval"),
    **dict.fromkeys(("halftrue_pairwise", "halftrue_beat_all"), "halftrue"),
    "ael": "localization",
}
SPLIT = {"eval.split": "validation", "eval.report": "validation"}  # of every point: what is chosen by is not what is reported
MOST_POINTS = 10_000
LONGEST_NAME = 120  # bytes

Override = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class SweepFile:
    """What a file defines: `sweep` or, for a search that learns from its points, `suggest`, and then `sampler` and `pruner` if it likes.

    shown: names of further numbers for the pictures.
    """

    path: Path
    sweep: Callable[[], Iterator[Override]] | None
    suggest: Callable[[Any], Override] | None
    sampler: Callable[[int], Any] | None
    pruner: Callable[[], Any] | None
    shown: Sequence[str] = ()

    def call(self, name: str, *arguments: Any) -> Any:
        """What a function of the file gives; what it raises becomes a ConfigError of one line."""
        try:
            found = getattr(self, name)(*arguments)
            return found if name != "sweep" else list(itertools.islice(found, MOST_POINTS + 1))
        except ConfigError as error:
            raise ConfigError(f"--sweep={self.path}: {error}") from error
        except (Exception, SystemExit) as error:  # anything may be wrong with it
            raise _broken(self.path, f"{name}() fails", error) from error


def read(path: Path) -> SweepFile:
    """ConfigError where there is no such file, where it fails, or where it does not define one of `sweep` and `suggest`."""
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, [other.stem for other in Path("configs/sweeps").glob("*.py")], n=1)
        hint = f"did you mean configs/sweeps/{near[0]}.py?" if near else "the sweeps are in configs/sweeps/"
        raise ConfigError(f"--sweep={path}: no such file; {hint}")
    try:
        names = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # anything may be wrong with it
        raise _broken(path, "no sweep can be read from it", error) from error
    functions: dict[str, Any] = {name: names.get(name) for name in ("sweep", "suggest", "sampler", "pruner")}
    if callable(functions["sweep"]) == callable(functions["suggest"]):
        found = "both" if callable(functions["sweep"]) else "neither"
        raise ConfigError(
            f"--sweep={path}: must define sweep(), which yields overrides, or suggest(trial), which returns one; it has {found}"
        )
    shown = names.get("shown", ())
    if not isinstance(shown, tuple | list) or not all(isinstance(name, str) for name in shown):
        raise ConfigError(f"--sweep={path}: shown = {shown!r}: must be a tuple of names of numbers, such as ('i2t_R@10',)")
    return SweepFile(path, **functions, shown=shown)


def _broken(path: Path, what: str, error: BaseException) -> ConfigError:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    where = f", line {lines[-1]}" if lines else ""
    return ConfigError(f"--sweep={path}{where}: {what}: {type(error).__name__}: {error}")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep file on top of a config file with the fields that the command line sets; every point is evaluated on validation.

    metric: what the points are compared by, one of METRICS.
    """

    file: SweepFile
    config: str
    fixed: Override
    metric: str

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            near = difflib.get_close_matches(self.metric, METRICS, n=1, cutoff=0)
            raise ConfigError(f"--metric={self.metric}: did you mean {near[0]}? A sweep is decided by one of {', '.join(METRICS)}")

    def known_points(self, *, needed: bool) -> list[Point]:
        """Those that are known before anything runs, none of a search. ConfigError where a search lacks those that are needed."""
        if needed and self.file.suggest:
            raise ConfigError(
                f"--sweep={self.file.path}: a search with suggest(trial) makes its points as it goes: leave out --point and --sbatch"
            )
        return [] if self.file.suggest else self.points()

    def points(self) -> list[Point]:
        """The points of `sweep`, in its order. ConfigError where there is none, two are the same, or one is wrong."""
        overrides = self.file.call("sweep")
        if not 0 < len(overrides) <= MOST_POINTS:
            few = "no point; it must yield at least one override, such as {'seed': 1}"
            many = f"more than {MOST_POINTS:,} points; take fewer values, or draw them with random()"
            raise ConfigError(f"--sweep={self.file.path}: sweep() yields {many if overrides else few}")
        points = [self.point(override, f"point {number}") for number, override in enumerate(overrides)]
        seen: dict[str, int] = {}
        for number, point in enumerate(points):
            if (first := seen.setdefault(sha256(config_of(point)), number)) != number:
                raise ConfigError(
                    f"--sweep={self.file.path}: points {first} ({points[first].name}) and {number} ({point.name}) train one and the same "
                    "config; leave one of them out"
                )
        return points

    def point(self, override: Override, which: str) -> Point:
        """The point that an override makes. ConfigError, with `which` in it, where it names no field or makes no config."""
        place = f"--sweep={self.file.path}, {which}"
        if not isinstance(override, Mapping):
            raise ConfigError(f"{place}: {override!r} is no override; it must be a dict of fields and values, such as {{'seed': 1}}")
        for name in override:
            self._check_name(str(name), place)
        point = Point(self.config, {**self.fixed, **override, **SPLIT}, {}, "")
        try:
            config = config_of(point)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error
        self._check_metric(config, place)
        values = flatten(config)
        labels = {name: values.get(name, value) for name, value in override.items()}
        return dataclasses.replace(point, labels=labels, name=name_of(labels))

    def chosen(self, point: Point) -> Config:
        """The config of a point as it is trained outside of the sweep: it is reported on the split that its config names."""
        return config_of(dataclasses.replace(point, overrides={**self.fixed, **point.labels}))

    def _check_name(self, name: str, place: str) -> None:
        known = flatten(Config())
        if name not in known:
            near = difflib.get_close_matches(name.removeprefix("config."), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "names are those of configs/base.py, without config."
            raise ConfigError(f"{place}: {name} names no field: {hint}")
        if name in self.fixed:
            raise ConfigError(f"{place}: {name} is set on the command line, too; leave --config.{name} out")
        if name in SPLIT:
            raise ConfigError(f"{place}: {name} must not be set: points are compared on validation; evaluate the best one on test")

    def _check_metric(self, config: Config, place: str) -> None:
        task = METRICS[self.metric]
        if task not in config.eval.tasks:
            raise ConfigError(
                f"{place}: config.eval.tasks = {config.eval.tasks!r}: --metric={self.metric} needs the task {task} among them, or take "
                f"a --metric of {', '.join(config.eval.tasks) or 'a task'}"
            )
        if config.data.kind == "emoji" and config.data.validation_captions == 0:
            raise ConfigError(f"{place}: config.data.validation_captions = 0: must be 1 or more: points are compared on validation")


def check_alone(*given: FlagHolder[Any]) -> None:
    """ConfigError where more than one of these flags is set."""
    names = [flag.name for flag in given if flag.value is not None and flag.value is not False]
    if len(names) > 1:
        raise ConfigError(f"--{names[0]} and --{names[1]}: must not be given together; leave one of them out")


def check_workdirs(points: Sequence[Point], folder: Path) -> None:
    """ConfigError where the folder of a point belongs to another config."""
    for point in points:
        check_workdir(folder / point.name, config_of(point))


def name_of(override: Override) -> str:
    """The name of a point and of its folder: "bns.k=8+seed=1". The order of the fields does not matter.

    Letters that do not belong into a file's name become _, what is longer than LONGEST_NAME is cut; then a digest keeps names apart.
    """
    full = "+".join(f"{name}={override[name]}" for name in sorted(override))
    short = "+".join(f"{'.'.join(name.split('.')[-2:])}={override[name]}" for name in sorted(override)) or "unchanged"
    clean = re.sub(r"[^\w.=+-]+", "_", short)
    if clean == short and len(short.encode()) <= LONGEST_NAME:
        return short
    digest = hashlib.sha256(full.encode()).hexdigest()[:8]
    return f"{clean.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"
