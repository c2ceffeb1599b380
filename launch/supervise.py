"""Processes that make one run on this machine: started together, stopped together, and none outlives another that failed."""

import contextlib
import dataclasses
import math
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

GRACE_SECONDS = 10.0  # after one has failed, for the others to end by themselves and say what they saw; then they are killed
LAUNCHED = "BACL_JAX_LAUNCHED"  # environment variable of a process whose standard input ends when its launcher does
ERROR = "error: "  # how the line starts in which a process says why it ends with code 2


@dataclasses.dataclass(frozen=True)
class Failure:
    """code: exit code of the process that failed first, negative for a signal; line: what is left to say of it, None: nothing.

    A process that ends with code 2 has said in one line why; that of process 0 was shown, and those of the others are most often the same.
    """

    code: int
    line: str | None


class Processes:
    """Process i is `commands[i]` with the variables `environments[i]`. The output of the first is shown, that of the others is in `logs`.

    Each is a process group of its own: a Ctrl-C on the terminal reaches this one alone, which passes it on. Its standard input is a pipe
    that ends with this process, however that ends: see `end_with_launcher`.
    """

    def __init__(self, commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], logs: Path):
        self._planned, self._logs = list(zip(commands, environments, strict=True)), logs
        self._events: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # number of a process that has ended; None: a signal to stop
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def run(self) -> Failure | None:
        """Starts them and waits for them: None when all ended with code 0, else the first that did not. It always returns.

        SIGTERM and Ctrl-C are passed on, as SIGTERM; a second one kills. OSError where `logs` cannot be written.
        """
        with handled(self._stop):
            try:
                self._start()
                return self._wait()
            finally:
                self._send(signal.SIGKILL)

    def log(self, number: int) -> Path:
        return self._logs / f"process_{number}.txt"

    def _start(self) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        for number, (command, environment) in enumerate(self._planned):
            with contextlib.ExitStack() as stack:
                output = None if number == 0 else stack.enter_context(self.log(number).open("wb"))
                variables = dict(environment) | {LAUNCHED: "1"}
                process = subprocess.Popen(
                    command, env=variables, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
                )
            self._running[number] = process
            threading.Thread(target=self._watch, args=(number, process), daemon=True).start()

    def _wait(self) -> Failure | None:
        failure, asked, killed_at, codes = None, 0, math.inf, {}
        while self._running:
            try:
                number = self._events.get(timeout=None if failure is None else max(killed_at - time.monotonic(), 0.1))
            except queue.Empty:
                self._send(signal.SIGKILL)
                continue
            if number is None:
                asked += 1
                self._send(signal.SIGTERM if asked == 1 else signal.SIGKILL)
                continue
            process = self._running.pop(number)
            codes[number] = process.returncode
            if failure is None and process.returncode != 0:
                failure, killed_at = self._describe(number, process), time.monotonic() + GRACE_SECONDS
        return Failure(2, None) if failure and failure.code == codes[0] == 2 else failure

    def _describe(self, number: int, process: "subprocess.Popen[bytes]") -> Failure:
        code = process.returncode
        if code == 2 and number > 0:
            lines = self.log(number).read_text(errors="replace").splitlines()
            if said := [line for line in lines if line.startswith(ERROR)]:
                return Failure(code, said[-1].removeprefix(ERROR))
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        where = "above" if number == 0 else f"in {self.log(number)}"
        return Failure(code, f"process {number} (pid {process.pid}) {how}, its output is {where}; the others were ended")

    def _watch(self, number: int, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        with process.stdin:
            process.wait()
        self._events.put(number)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._events.put(None)

    def _send(self, number: int) -> None:
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


@contextlib.contextmanager
def handled(handler: Any) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def end_with_launcher() -> None:
    """From here on this process is killed when its launcher has ended, be it by SIGKILL. One that `Processes` did not start goes on."""
    if LAUNCHED in os.environ:
        threading.Thread(target=_kill_at_end_of_input, daemon=True).start()


def _kill_at_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def environments(count: int, gpus: int) -> list[dict[str, str]]:
    """The variables of each process: this one's, and one GPU where there are any."""
    return [dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": str(number)} if gpus else {}) for number in range(count)]


def gpus() -> int:
    """GPUs that nvidia-smi lists; 0 where there is none or where JAX_PLATFORMS is cpu."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0
    return len([line for line in listed.splitlines() if line.startswith("GPU ")])
