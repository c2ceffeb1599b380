"""What the doors share: reading the command line, one-line errors, exit codes (0 done, 2 bad usage or config, else a crash)."""

import difflib
import functools
import logging
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from bacl_jax.config import Config, ConfigError, flatten
from bacl_jax.errors import CheckpointError, DataError, LateError, NonFiniteError
from bacl_jax.settings import Problems, describe_field

Fields = tuple[Any, str]  # the dataclass behind a flag of many fields, and the file that has a comment on each of them
CONFIG: Fields = (Config, "configs/base.py")
ONE_LINE = (ConfigError, DataError, CheckpointError)  # become one line on stderr and exit code 2
FAILED = (NonFiniteError, LateError)  # become one line on stderr and exit code 1
HELP = {"-h", "--help", "--helpshort", "--helpfull", "-help", "-?"}


def run(main: Callable[[], None], doc: str | None, **groups: Fields) -> None:
    """Parses the command line, then calls `main`; bad settings, data or checkpoints become one line on stderr and exit code 2.

    groups: flags of many fields beside --config, whose files lie below configs/ too.
    """

    def guarded(positional: list[str]) -> None:
        absl_logging.set_verbosity(absl_logging.WARNING)
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax tells each step of a save; what fails it logs and raises
        if len(positional) > 1:
            fail(f"{positional[1]!r} is no flag: every argument has the form --name=value")
        try:
            main()
        except Problems as error:
            fail(*error.lines)
        except ONE_LINE as error:
            fail(str(error))
        except FAILED as error:
            sys.exit(f"error: {error}")

    app.run(guarded, flags_parser=lambda argv: _parse(argv, doc or "", groups | {"config": CONFIG}))


def fail(*messages: str) -> NoReturn:
    """One line on stderr for each, exit code 2."""
    for message in messages:
        print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def overridden(settings: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` (nested) with the values of dotted names put in."""
    for name, value in overrides.items():
        *groups, leaf = name.split(".")
        functools.reduce(dict.__getitem__, groups, settings)[leaf] = value
    return settings


def _parse(argv: list[str], doc: str, groups: Mapping[str, Fields]) -> list[str]:
    if HELP & set(argv[1:]):
        print("\n".join([doc.strip(), *(_help(name, *fields) for name, fields in groups.items() if name in flags.FLAGS)]))
        sys.exit(0)
    known, read = {name: flatten(cls()) for name, (cls, _) in groups.items()}, {}
    names = "|".join(groups)
    for argument in argv[1:]:
        file = re.fullmatch(rf"--?({names})=([^:]*)(:.*)?", argument)
        if file:
            read[file[1]] = Path(file[2])
        if file and not read[file[1]].is_file():
            fail(f"--{file[1]}={file[2]}: no such file; the configs are in configs/")
        match = re.match(rf"--?(?:no)?({names})\.([^=]+)", argument)
        if match and not any(f"{name}.".startswith(f"{match[2]}.") for name in known[match[1]]):
            near = difflib.get_close_matches(match[2], known[match[1]], n=1)
            fail(f"{match[1]}.{match[2]} is unknown: " + (f"did you mean --{match[1]}.{near[0]}?" if near else "--help lists the fields"))
    try:
        return flags.FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        match = re.match(rf"flag --({names})\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
        if match and match[2] in known[match[1]]:
            group, name, value = match.groups()
            described = describe_field(groups[group][0], name)
            fail(f"{group}.{name} = {value!r}: must be {described}; the default is {known[group][name]!r}")
        fail(str(error).strip().splitlines()[-1])
    except (flags.Error, OSError) as error:
        fail(str(error))
    except Exception as error:  # reading the flags runs the config file, and anything may be wrong with it
        lines = {Path(frame.filename).resolve(): frame.lineno for frame in traceback.extract_tb(error.__traceback__)}
        places = [(name, path, lines.get(path.resolve())) for name, path in read.items()]
        if not places:
            raise
        name, path, line = max(places, key=lambda place: place[2] or 0)
        where = "" if line is None else f", line {line}"
        fail(f"--{name}={path}{where}: no config can be read from it: {type(error).__name__}: {error}")


def _help(name: str, cls: Any, base: str) -> str:
    fields = (f"  {f'--{name}.{field}={value}':<52} {describe_field(cls, field)}" for field, value in flatten(cls()).items())
    return "\n".join([f"\nFields of --{name}, their defaults and values ({base} says what they mean):", *fields])
