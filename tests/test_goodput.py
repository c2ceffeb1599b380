"""Where the time of a run goes: additive, and right over stops, kills and the work that these cost."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bacl_jax.train import goodput
from bacl_jax.train.goodput import ACTIVITIES, Goodput, Start, cut_back, process_began, read, shares, summary, totals

ROOT = Path(__file__).parents[1]


def start(step, *, clean=False, **seconds):
    return Start(0.0, sum(seconds.values()), step, clean, {name: float(seconds.get(name, 0)) for name in ACTIVITIES})


def test_every_moment_belongs_to_one_activity(tmp_path):
    began = time.monotonic()
    account = Goodput(tmp_path, began=began)
    account.resume(0, 0, {})
    time.sleep(0.02)
    account.switch("steps")
    with account.spent("evaluation"):
        time.sleep(0.03)
        with account.spent("compilation"):
            time.sleep(0.01)
    with pytest.raises(KeyError), account.spent("data"):
        raise KeyError
    account.step = 7
    account.close(clean=True)
    (found,) = read(tmp_path)
    spent = found.seconds
    assert found.step == 7
    assert found.clean
    assert spent["start"] >= 0.02
    assert spent["evaluation"] >= 0.03
    assert spent["compilation"] >= 0.01
    assert sum(spent.values()) <= time.monotonic() - began
    assert sum(spent.values()) == pytest.approx(found.ended - found.began, abs=1e-5)
    assert sum(shares(totals([found])).values()) == pytest.approx(1)


def test_a_process_that_goes_on_from_a_checkpoint_takes_over_the_account(tmp_path):
    first = Goodput(tmp_path)
    first.resume(0, 0, {})
    first.switch("steps")
    time.sleep(0.02)
    number, kept = first.mark()
    time.sleep(0.03)
    first.step = 9
    first.close(clean=False)  # it went on for 0.03 s after the checkpoint of step 5
    second = Goodput(tmp_path)
    second.resume(5, number, kept)
    second.close(clean=True)
    before, after = read(tmp_path)
    assert before.seconds["steps"] == pytest.approx(kept["steps"])
    assert before.seconds["lost"] >= 0.03
    assert sum(before.seconds.values()) == pytest.approx(before.ended - before.began, abs=1e-5)
    assert (after.step, second.mark()[0]) == (5, 2)


def test_what_is_lost():
    kept = {"steps": 10.0, "start": 5.0}
    killed = start(9, start=5, steps=14, data=2)
    for step, saved_by, expected in (
        (7, 1, {"start": 5, "steps": 10, "lost": 6}),  # from its checkpoint of step 7
        (0, 0, {"start": 5, "steps": 0, "lost": 16}),  # it had saved nothing
    ):
        (found,) = cut_back([killed], step, saved_by, kept)
        assert {name: found.seconds[name] for name in expected} == expected
        assert sum(found.seconds.values()) == sum(killed.seconds.values())
    (again,) = cut_back(cut_back([killed], 7, 1, kept), 7, 1, kept)
    assert again.seconds["lost"] == 6


def test_a_start_that_left_by_itself_lost_nothing():
    left = start(9, clean=True, start=5, steps=14, checkpoint=2)
    assert cut_back([left], 9, 1, {"steps": 14.0}) == [left]
    (older,) = cut_back([left], 7, 1, {"steps": 10.0, "start": 5.0})  # its last checkpoint turned out to be damaged
    assert older.seconds["lost"] == 6


def test_a_start_that_saved_nothing_cost_its_whole_time():
    first, second = start(5, clean=True, steps=9), start(8, start=3, steps=4)
    kept, lost = cut_back([first, second], 5, 1, {"steps": 9.0})
    assert kept == first
    assert (lost.seconds["start"], lost.seconds["steps"], lost.seconds["lost"]) == (3, 0, 4)


def test_lines_that_are_not_whole_are_left_out(tmp_path):
    assert read(tmp_path) == []
    whole = json.dumps({"began": 1.0, "ended": 2.0, "step": 3, "clean": True, "seconds": dict.fromkeys(ACTIVITIES, 1)})
    (tmp_path / goodput.FILE).write_text(f'{whole}\n{{"began": 1}}\n[]\n{whole[:30]}\n')
    assert [one.step for one in read(tmp_path)] == [3]


def test_the_summary():
    starts = [start(5, start=10, steps=80, data=5, lost=5), start(9, clean=True, start=10, steps=90)]
    assert summary(starts) == "goodput 85.0% of 0:03:20 in 2 starts: data 2.5%, start 10.0%, lost 2.5%"


def test_a_process_knows_when_it_began():
    code = "import time; time.sleep(0.5); from bacl_jax.train.goodput import process_began; print(time.monotonic() - process_began())"
    before = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.5 <= float(done.stdout) <= time.monotonic() - before
    assert process_began() < time.monotonic()


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    account = Goodput(tmp_path)
    (tmp_path / f"{goodput.FILE}.tmp").mkdir()
    account.resume(0, 0, {})
    account.close(clean=True)
    assert "goodput.jsonl cannot be written" in caplog.text
