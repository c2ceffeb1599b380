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
from bacl_jax.data.source import DataError
from bacl_jax.settings import describe_field
from bacl_jax.train.checkpoint import CheckpointError
from bacl_jax.train.metrics import NonFiniteError
from bacl_jax.train.processes import LateError

FIELD = re.compile(r"--?(?:no)?config\.([^=]+)")
ONE_LINE = (ConfigError, DataError, CheckpointError)  # become one line on stderr and exit code 2
FAILED = (NonFiniteError, LateError)  # become one line on stderr and exit code 1
HELP = {"-h", "--help", "--helpshort", "--helpfull", "-help", "-?"}


def run(main: Callable[[], None], doc: str | None) -> None:
    """Parses the command line, then calls `main`; bad settings, data or checkpoints become one line on stderr and exit code 2."""

    def guarded(positional: list[str]) -> None:
        absl_logging.set_verbosity(absl_logging.WARNING)
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax tells each step of a save; what fails it logs and raises
        if len(positional) > 1:
            fail(f"{positional[1]!r} is no flag: every argument has the form --name=value")
        try:
            main()
        except ONE_LINE as error:
            fail(str(error))
        except FAILED as error:
            sys.exit(f"error: {error}")

    app.run(guarded, flags_parser=lambda argv: _parse(argv, doc or ""))


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def overridden(settings: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` (nested) with the values of dotted names put in."""
    for name, value in overrides.items():
        *groups, leaf = name.split(".")
        functools.reduce(dict.__getitem__, groups, settings)[leaf] = value
    return settings


def _parse(argv: list[str], doc: str) -> list[str]:
    if HELP & set(argv[1:]):
        fields = "\n\nFields, their defaults and values (configs/base.py says what they mean):\n" + _fields()
        print(doc.strip() + (fields if "config" in flags.FLAGS else ""))
        sys.exit(0)
    known, config = flatten(Config()), None
    for argument in argv[1:]:
        file = re.fullmatch(r"--?config=([^:]*)(:.*)?", argument)
        if file and not (config := Path(file[1])).is_file():
            fail(f"--config={file[1]}: no such file; the configs are in configs/")
        match = FIELD.match(argument)
        if match and match[1] not in known and not any(name.startswith(match[1] + ".") for name in known):
            near = difflib.get_close_matches(match[1], known, n=1)
            fail(f"config.{match[1]} is unknown: " + (f"did you mean --config.{near[0]}?" if near else "--help lists the fields"))
    try:
        return flags.FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        match = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
        if match and match[1] in known:
            fail(f"config.{match[1]} = {match[2]!r}: must be {describe_field(Config, match[1])}; the default is {known[match[1]]!r}")
        fail(str(error).strip().splitlines()[-1])
    except (flags.Error, OSError) as error:
        fail(str(error))
    except Exception as error:  # reading the flags runs the config file, and anything may be wrong with it
        if config is None:
            raise
        frames = [
            f", line {frame.lineno}" for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == config.name
        ]
        fail(f"--config={config}{''.join(frames[-1:])}: no config can be read from it: {type(error).__name__}: {error}")


def _fields() -> str:
    return "\n".join(f"  {f'--config.{name}={value}':<52} {describe_field(Config, name)}" for name, value in flatten(Config()).items())
