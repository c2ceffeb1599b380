"""Trains in several processes on this machine: launch.train, started so many times, joined over loopback.

    python -m launch.local --processes=4 --config=configs/emoji_bacl.py --workdir=runs/four
    python -m launch.local --processes=2 --devices_per_process=4 --config=configs/emoji_bacl.py --workdir=runs/eight --config.mesh.fsdp=2

The flags are those of launch.train. A process takes one GPU where nvidia-smi lists any (JAX_PLATFORMS=cpu: none), else it plays
--devices_per_process devices on the CPU. Process 0 is shown; the others write to DIR/processes/process_<number>.txt, anew at each start.

SIGTERM and Ctrl-C are passed on: all save and leave with code 0; a second one kills, and so does the end of this process, however it ends.
When one process ends with an error or is killed, the others are ended within 60 s, and one line says which it was. Exit codes: 0 done or
preempted, 2 bad usage or config, 1 a failure.
"""

import socket
import sys
from pathlib import Path

from bacl_jax.config import ConfigError
from launch import command, distributed, supervise, train


def main() -> None:
    if train.CONFIG.value is None or train.WORKDIR.value is None or distributed.PROCESSES.value is None:
        raise ConfigError(
            "--processes, --config and --workdir must be given: --processes=4 --config=configs/emoji_bacl.py --workdir=runs/four"
        )
    if distributed.COORDINATOR.value is not None or distributed.PROCESS.value is not None:
        raise ConfigError("--coordinator and --process are for launch.train: launch.local gives them to the processes that it starts")
    if train.PREEMPTED.value:
        raise ConfigError(
            f"--preempted_code={train.PREEMPTED.value} is for launch.train: launch.local ends with code 0 when it is preempted"
        )
    count, gpus = distributed.PROCESSES.value, supervise.gpus()
    if 0 < gpus < count:
        raise ConfigError(f"--processes={count}, but there are {gpus} GPUs: take that many, or set JAX_PLATFORMS=cpu")
    coordinator = f"--coordinator=127.0.0.1:{_free_port()}"
    commands = [[sys.executable, "-m", "launch.train", *sys.argv[1:], coordinator, f"--process={number}"] for number in range(count)]
    logs = Path(train.WORKDIR.value) / "processes"
    try:
        failure = supervise.Processes(commands, supervise.environments(count, gpus), logs).run()
    except OSError as error:
        raise ConfigError(f"--workdir={train.WORKDIR.value} cannot be written: {error.strerror}; take another --workdir") from None
    if failure is None:
        return
    if failure.line is None:
        sys.exit(failure.code)
    if failure.code == 2:
        command.fail(failure.line)
    sys.exit(f"error: {failure.line}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    command.run(main, __doc__)
