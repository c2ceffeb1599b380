"""SugarCrepe in its full size: seven files of 7,511 entries in the published form, with few pictures or none."""

import csv
import json

import numpy as np
import pytest
from eval_fakes import CONFIG, Tokenizer, Trainer, unit
from PIL import Image

from bacl_jax.config import from_config_dict, to_dict
from bacl_jax.eval import benchmark_report, suite
from bacl_jax.eval.encoder import Encoder

SIZES = {"add_att": 692, "add_obj": 2062, "replace_att": 788, "replace_obj": 1652, "replace_rel": 1406, "swap_att": 666, "swap_obj": 245}
TOTAL = 7511


@pytest.fixture
def files(tmp_path):
    """Entry i of a category is about picture i % 2000 of val2017; captions are drawn from 100."""
    (tmp_path / "data").mkdir()
    (tmp_path / "val2017").mkdir()
    for category, size in SIZES.items():
        rows = {
            str(i): {"filename": f"{i % 2000:012d}.jpg", "caption": f"caption {i % 100}", "negative_caption": f"caption {(i + 1) % 100}"}
            for i in range(size)
        }
        (tmp_path / "data" / f"{category}.json").write_text(json.dumps(rows))
    return tmp_path


def run(files):
    settings = {"sugarcrepe": {"path": str(files / "data"), "images": str(files / "val2017")}}
    config = from_config_dict(to_dict(CONFIG) | {"eval": to_dict(CONFIG)["eval"] | settings})
    params = {"z": np.eye(100, dtype=np.float32), "w": unit(np.eye(100))}
    return suite.BENCHMARKS["sugarcrepe"](Encoder(Trainer(), params, Tokenizer(), config))


def test_without_any_picture_all_rows_are_reported_and_none_is_scored(files, tmp_path):
    found = run(files)
    assert sum(SIZES.values()) == TOTAL
    assert found.metrics == {"n": 0, "n_entries": TOTAL, "n_pictures": 0, "left_out/missing": TOTAL}
    path = benchmark_report.write_left_out(tmp_path / "left_out.csv", found.left_out)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == TOTAL
    assert {(row["file"], row["key"]) for row in rows} == {
        (str(files / "data" / f"{category}.json"), str(i)) for category, size in SIZES.items() for i in range(size)
    }
    assert rows[0] | {"error": ""} == {
        "file": str(files / "data" / "add_att.json"),
        "key": "0",
        "picture": "000000000000.jpg",
        "reason": "missing",
        "error": "",
    }


def test_with_three_pictures_their_rows_are_scored(files):
    for value in range(3):
        Image.new("RGB", (32, 32), (value, value, value)).save(files / "val2017" / f"{value:012d}.jpg")
    m = run(files).metrics
    assert (m["n"], m["n_entries"], m["n_pictures"]) == (3 * 7 + 3, TOTAL, 3)  # add_obj shows pictures 0 to 61 twice
    assert m["left_out/missing"] == TOTAL - 24
    assert (m["accuracy"], m["accuracy_chance"]) == (100, 50)
    assert {category: m[f"n/{category}"] for category in SIZES} == dict.fromkeys(SIZES, 3) | {"add_obj": 6}
