"""What ends a run with one line in place of a traceback. ConfigError is in settings.py, with what raises it.

Imports nothing but Python's own: a door that refuses its command line has loaded no library.
"""


class DataError(ValueError):
    """Data that cannot be used. The message names the place, what was found and what to change; `kind` and `shard` (a file) count it.

    What data or libraries put into the message is made printable, so that it stays one line and says nothing to a terminal.
    """

    def __init__(self, message: str, *, kind: str = "data", shard: str = ""):
        super().__init__("".join(map(_printable, message)))
        self.kind, self.shard = kind, shard


class CheckpointError(RuntimeError):
    """A checkpoint that was asked for is not there, does not match its checksums, or does not fit the data."""


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient."""


class LateError(RuntimeError):
    """A process is alive and did not come to where the others waited for it."""


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else " " if letter.isspace() else letter.encode("unicode_escape").decode()
