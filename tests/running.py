"""Whether a process that a test knows by its number still runs."""

from pathlib import Path


def runs(pid):
    """Whether it has not ended; nobody may have asked for the exit code of an orphan."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
