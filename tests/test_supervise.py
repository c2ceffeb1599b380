"""Several processes are started and ended together. Here they are shells."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from running import runs

from launch import supervise
from launch.supervise import Processes


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "GRACE_SECONDS", 1.0)

    def run(*scripts):
        processes = Processes([["sh", "-c", script] for script in scripts], [dict(os.environ)] * len(scripts), tmp_path)
        before = time.monotonic()
        failure = processes.run()
        assert time.monotonic() - before < 30
        return failure

    return run


def test_all_end_well(run, tmp_path, capfd):
    assert run("echo first", "echo second") is None
    assert capfd.readouterr().out == "first\n"
    assert (tmp_path / "process_1.txt").read_text() == "second\n"


def test_the_first_that_fails_is_named_and_no_other_stays(run, tmp_path):
    failure = run("sleep 100", "exit 3", f"trap '' TERM; echo $$ > {tmp_path}/pid; sleep 100")
    assert failure.code == 3
    assert failure.line.startswith("process 1 (pid ")
    assert failure.line.endswith(f") ended with exit code 3, its output is in {tmp_path / 'process_1.txt'}; the others were ended")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


REFUSED = "echo other >&2; echo 'error: seed = -1' >&2; exit 2"


def test_what_process_0_has_said_is_not_said_again(run, capfd):
    for scripts in ((REFUSED, REFUSED), (f"sleep 0.5; {REFUSED}", REFUSED), (REFUSED, "sleep 100")):
        failure = run(*scripts)
        assert (failure.code, failure.line) == (2, None)
        assert capfd.readouterr().err.count("error: ") == 1


def test_what_another_process_has_said_is_said_once(run):
    failure = run("sleep 100", REFUSED)
    assert (failure.code, failure.line) == (2, "seed = -1")


def test_a_process_that_was_killed(run):
    failure = run("kill -KILL $$", "sleep 100")
    assert "was ended by SIGKILL, its output is above" in failure.line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_code_is_theirs(run, number):
    threading.Timer(1.0, os.kill, (os.getpid(), number)).start()
    saving = "trap 'exit 0' TERM; while true; do sleep 0.1; done"
    assert run(saving, saving) is None


def test_a_second_signal_kills(run):
    for delay in (1.0, 2.0):
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert "was ended by SIGKILL" in run("trap '' TERM; while true; do sleep 0.1; done").line


LAUNCHER = """
import os, pathlib, sys
from launch.supervise import Processes
child = "import os, pathlib, time; from launch.supervise import end_with_launcher; end_with_launcher();"
child += "pathlib.Path('{folder}/' + str(os.getpid())).touch(); time.sleep(100)"
Processes([[sys.executable, "-c", child]] * 2, [dict(os.environ)] * 2, pathlib.Path("{folder}/logs")).run()
"""


def test_a_killed_launcher_leaves_no_process(tmp_path):
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER.format(folder=tmp_path)], cwd=Path(__file__).parents[1])
    while len(pids := [int(path.name) for path in tmp_path.glob("[0-9]*")]) < 2:
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    before = time.monotonic()
    while any(map(runs, pids)):
        assert time.monotonic() - before < 30
        time.sleep(0.05)
