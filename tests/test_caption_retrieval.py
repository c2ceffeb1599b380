"""Retrieval with several captions a picture: files in exactly the published form; every picture is of one grey value."""

import csv
import json
import math

import numpy as np
import pytest
from eval_fakes import CONFIG, Tokenizer, Trainer, unit
from PIL import Image

from bacl_jax.config import ConfigError, from_config_dict, to_dict
from bacl_jax.errors import DataError
from bacl_jax.eval import caption_files, report, suite
from bacl_jax.eval.encoder import Encoder, Shown


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (value, value, value)).save(path)


def settings(**values):
    return from_config_dict(to_dict(CONFIG) | {"eval": to_dict(CONFIG)["eval"] | {"retrieval": values}})


def run(z, w, **values):
    """z[v]: embedding of the picture with grey value v; w[i]: of the text "caption i"."""
    trainer = Trainer()
    found = suite.BENCHMARKS["retrieval"](Encoder(trainer, {"z": unit(z), "w": unit(w)}, Tokenizer(), settings(**values)))
    return found, trainer.encoded_images


def entry(value, captions, split="test", folder="val2014"):
    """As in dataset_coco.json."""
    sentences = [{"tokens": ["caption", str(c)], "raw": f"Caption  {c}", "imgid": value, "sentid": 10 * value + c} for c in captions]
    place = {"filepath": folder} if folder else {}
    name = f"COCO_val2014_{value:012d}.png"
    return place | {"sentids": [], "filename": name, "imgid": value, "split": split, "sentences": sentences, "cocoid": value}


@pytest.fixture
def coco(tmp_path):
    """Pictures 0 to 3 of the split test with captions 0, 1; 2; 3, 4, 5; 0 (the words of picture 0), picture 4 of another split."""
    entries = [entry(0, [0, 1]), entry(1, [2]), entry(2, [3, 4, 5]), entry(3, [0]), entry(4, [6], "restval")]
    for value in range(4):
        picture(tmp_path / "images" / "val2014" / f"COCO_val2014_{value:012d}.png", value)
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return tmp_path / "dataset_coco.json"


def brute_force(z, w, of, k):
    """(i2t, t2i) R@k from the whole matrix, where no two scores tie but those of equal captions, which the caller avoids."""
    scores = z @ w.T
    i2t = [any(of[c] == i for c in np.argsort(-row)[:k]) for i, row in enumerate(scores)]
    t2i = [of[c] in np.argsort(-column)[:k] for c, column in enumerate(scores.T)]
    return 100 * np.mean(i2t), 100 * np.mean(t2i)


def test_matches_a_loop_over_a_score_matrix(tmp_path):
    rng, of, entries = np.random.default_rng(0), [], []
    for value in range(20):
        count = int(rng.integers(1, 6))
        entries.append(entry(value, range(len(of), len(of) + count), folder=""))
        of += [value] * count
        picture(tmp_path / "images" / entries[-1]["filename"], value)
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": entries, "dataset": "flickr30k"}))
    z, w = unit(rng.normal(size=(20, 6))), unit(rng.normal(size=(len(of), 6)))
    found, encoded = run(z, w, path=str(tmp_path / "dataset_flickr30k.json"))
    m = found.metrics
    for k in (1, 5, 10):
        assert (m[f"i2t_R@{k}"], m[f"t2i_R@{k}"]) == pytest.approx(brute_force(z, w, of, k))
    counts = np.bincount(of)
    guessed = [1 - math.comb(len(of) - c, 10) / math.comb(len(of), 10) for c in counts]
    assert m["i2t_R@10_chance"] == pytest.approx(100 * np.mean(guessed))
    assert (m["i2t_R@1_chance"], m["t2i_R@1_chance"], m["t2i_R@5_chance"]) == pytest.approx((100 / 20, 100 / 20, 100 * 5 / 20))
    assert (m["n"], m["n_captions"], m["n_entries"]) == (20, len(of), 20)
    assert encoded == 32  # two batches of 16: each picture once


def test_by_hand_with_a_picture_that_is_missing_and_captions_that_read_the_same(coco, tmp_path):
    (tmp_path / "images" / "val2014" / "COCO_val2014_000000000001.png").unlink()
    # caption 0 stands twice, as one of picture 0 and the only one of picture 3: it ties with itself
    z, w = np.eye(5, 7), np.eye(7)
    w[3:6] = np.eye(7)[[2, 6, 6]]
    z[3] = z[0]
    (found, _) = run(z, w, path=str(coco))
    m = found.metrics
    assert (m["n"], m["n_captions"], m["n_entries"], m["left_out/missing"]) == (3, 6, 4, 1)
    # picture 0 and picture 3 each have one of the two equal captions that fit best, picture 2 has caption 3
    assert m["i2t_R@1"] == pytest.approx(100 * (0.5 + 1 + 0.5) / 3)
    # captions 0, 0: pictures 0 and 3 tie; 1: all tie at 0; 3: right; 4, 5: all tie at 0
    assert m["t2i_R@1"] == pytest.approx(100 * (0.5 + 1 / 3 + 1 + 1 / 3 + 1 / 3 + 0.5) / 6)
    assert [(one.picture, one.reason, one.key) for one in found.left_out] == [("val2014/COCO_val2014_000000000001.png", "missing", "1")]
    (table,) = report.tables({"retrieval": m})
    assert table.title == "retrieval, 3 of 4 images (percent)"
    assert list(table.columns[0].cells) == ["image to text", "image to text, chance", "text to image", "text to image, chance"]


def test_a_collapsed_model_scores_what_guessing_does(coco):
    m = run(np.ones((5, 2)), np.ones((7, 2)), path=str(coco))[0].metrics
    for name in (f"{way}_R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)):
        assert m[name] == pytest.approx(m[f"{name}_chance"])


def test_the_first_captions_and_another_split(coco, tmp_path):
    assert run(np.eye(5, 7), np.eye(7), path=str(coco), captions=1)[0].metrics["n_captions"] == 4
    found, _ = run(np.eye(5, 7), np.eye(7), path=str(coco), split="restval")
    assert found.metrics == {"n": 0, "n_captions": 0, "n_entries": 1, "left_out/missing": 1}
    assert report.tables({"retrieval": found.metrics})[0].row_count == 0
    with pytest.raises(DataError, match=r"no picture is of split 'val'; found: restval \(1\), test \(4\); correct config\.eval\.retrieval"):
        run(np.eye(5, 7), np.eye(7), path=str(coco), split="val")


def test_a_manifest_with_a_row_for_each_caption(tmp_path):
    rows = [("a.png", "Caption 0", "test"), ("b.png", "caption 2", "test"), ("a.png", "caption 1", "test"), ("c.png", "caption 3", "train")]
    for value, name in enumerate("abc"):
        picture(tmp_path / f"{name}.png", value)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "text", "part"), *rows])
    columns = {"image_column": "file", "caption_column": "text", "path": str(tmp_path / "pairs.csv")}
    m = run(np.eye(3), np.eye(3)[[0, 0, 1, 2]], **columns)[0].metrics
    assert (m["n"], m["n_captions"], m["i2t_R@1"], m["t2i_R@1"]) == (3, 4, 100, 100)
    m = run(np.eye(3), np.eye(3)[[0, 0, 1, 2]], split_column="part", **columns)[0].metrics
    assert (m["n"], m["n_captions"]) == (2, 3)
    with (tmp_path / "pairs.csv").open("a") as file:
        file.write("a.png,caption 4,train\n")
    with pytest.raises(DataError, match=r"pairs\.csv, data row 5: 'a\.png' is in split 'train', before in 'test'"):
        run(np.eye(3), np.eye(3)[[0, 0, 1, 2]], split_column="part", **columns)
    with (tmp_path / "pairs.csv").open("a") as file:
        file.write("b.png,,test\n")
    with pytest.raises(DataError, match=r"data row 6: column 'text' is empty"):
        run(np.eye(3), np.eye(3)[[0, 0, 1, 2]], **columns)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"annotations": []}, r"entry of the file, field 'images': missing; its fields are annotations"),
        ({"images": {}}, r"field 'images': holds a dict; must be a list"),
        ([], r"is a list; must be an object"),
        ({"images": []}, r"no picture is of split 'test'; found: none"),
        ({"images": [{"filename": "a.jpg", "split": "test"}]}, r"entry 0, field 'sentences': missing"),
        ({"images": [{"filename": "a.jpg", "split": "test", "sentences": []}]}, r"entry 0, field 'sentences': \[\]; must be a list of one"),
        ({"images": [{"filename": "a.jpg", "split": "test", "sentences": [{"raw": " "}]}]}, r"entry 0, sentence 0, field 'raw': ' '; must"),
        ({"images": [{"split": "test", "sentences": [{"raw": "a"}]}]}, r"entry 0, field 'filename': missing"),
    ],
)
def test_a_file_of_another_form_is_one_line(tmp_path, content, said):
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=said) as error:
        caption_files.read(settings(path=str(path)).eval.retrieval)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_where_the_pictures_are(coco, tmp_path):
    folder, found = caption_files.read(settings(path=str(coco)).eval.retrieval)
    assert folder == tmp_path / "images"
    assert found[0].shown == Shown(("val2014/COCO_val2014_000000000000.png", "COCO_val2014_000000000000.png"))
    assert found[0].captions == ("Caption  0", "Caption  1")
    with pytest.raises(ConfigError, match=r"config\.eval\.retrieval\.images = 'no': is no folder"):
        caption_files.read(settings(path=str(coco), images="no").eval.retrieval)
    with pytest.raises(ConfigError, match=r"config\.eval\.retrieval\.path = None: must name"):
        caption_files.read(settings().eval.retrieval)


def test_the_task_runs_on_the_file_only_where_one_is_named(coco):
    assert suite.on_files(settings(), ["retrieval", "aro"]) == ["aro"]
    assert suite.on_files(settings(path=str(coco)), ["retrieval", "halftrue"]) == ["retrieval"]


def test_no_two_splits_write_to_one_folder():
    """Nor does a file that is called as a split of the run's own data."""
    folders = [suite.subfolder_of(settings(path="a/validation.csv", split=split), "retrieval") for split in ("test", "train")]
    assert folders == ["validation_test", "validation_train"]
