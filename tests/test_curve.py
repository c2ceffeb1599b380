import io

import pytest
from rich.console import Console

from bacl_jax.eval import curve

WINOGROUND = {
    "text_score": 30.0,
    "text_score_blind": 20.0,
    "text_score_chance": 25.0,
    "text_score/Object": 9.0,
    "text_score/Object_chance": 25.0,
}
RESULTS = {
    20: {"retrieval": {"i2t_R@1": 12.34, "i2t_R@5": 50.0, "n": 8}},
    3: {"retrieval": {"i2t_R@1": 1.0, "t2i_R@1": 2.0}, "winoground": WINOGROUND},
}


def test_headlines_are_those_of_the_task_or_have_a_chance_beside_them():
    assert curve.headlines("retrieval", RESULTS[3]["retrieval"]) == ["i2t_R@1", "t2i_R@1"]
    assert curve.headlines("winoground", WINOGROUND) == ["text_score"]


def test_steps_come_in_order_and_gaps_stay():
    assert curve.series(RESULTS) == {
        "retrieval": {"i2t_R@1": {3: 1.0, 20: 12.34}, "t2i_R@1": {3: 2.0}},
        "winoground": {"text_score": {3: 30.0}},
    }
    console = Console(file=io.StringIO(), width=100)
    curve.print_table(RESULTS, console)
    text = console.file.getvalue()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    assert rows == [["3", "1.0", "2.0", "30.0"], ["20", "12.3", "-", "-"]]
    assert "2 checkpoints" in text


def test_the_picture_has_something_to_show(tmp_path):
    assert curve.draw(RESULTS, tmp_path / "plots" / "checkpoints.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="nothing to draw"):
        curve.draw({3: {"retrieval": {"n": 0}}}, tmp_path / "none.png")
