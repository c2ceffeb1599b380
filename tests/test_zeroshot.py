import json

import numpy as np
import pytest
from eval_fakes import CONFIG, Tokenizer, Trainer, unit
from PIL import Image

from bacl_jax.config import ConfigError, from_config_dict, to_dict
from bacl_jax.errors import DataError
from bacl_jax.eval import benchmark_report, suite
from bacl_jax.eval.encoder import Encoder
from bacl_jax.eval.zeroshot import TEMPLATES, read_folders, read_templates


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (value, value, value)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Classes 0 to 5, named "caption 0" and so on: pictures 0, 1 of class 0, picture 2 of class 1, none of the others."""
    root = tmp_path / "photos"
    for name in range(6):
        (root / f"caption_{name}").mkdir(parents=True)
    picture(root / "caption_0" / "a.png", 0)
    picture(root / "caption_0" / "deep" / "b.PNG", 1)
    picture(root / "caption_1" / "c.jpg", 2)
    (root / "caption_1" / "notes.txt").write_text("no picture")
    (root / ".hidden").mkdir()
    (root / "list.csv").write_text("")
    (tmp_path / "templates.txt").write_text("{}\n\n")
    return root


def settings(**values):
    return from_config_dict(to_dict(CONFIG) | {"eval": to_dict(CONFIG)["eval"] | {"classification": values}})


def run(z, w, **values):
    return suite.BENCHMARKS["classification"](Encoder(Trainer(), {"z": unit(z), "w": unit(w)}, Tokenizer(), settings(**values)))


def test_by_hand(folders, tmp_path):
    # picture 0 is right; picture 1 has its class sixth; picture 2 ties with one other
    z = [[1, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5], [0, 1, 1, 0, 0, 0]]
    m = run(z, np.eye(6), path=str(folders), templates=str(tmp_path / "templates.txt")).metrics
    assert m["top1"] == pytest.approx(100 * (1 + 0 + 0.5) / 3)
    assert m["top5"] == pytest.approx(100 * (1 + 0 + 1) / 3)
    assert m["mean_class_recall"] == pytest.approx(100 * (0.5 + 0.5) / 2)
    assert m["top1_chance"] == m["mean_class_recall_chance"] == pytest.approx(100 / 6)
    assert m["top5_chance"] == pytest.approx(500 / 6)
    assert (m["n"], m["n_entries"], m["n_classes"]) == (3, 3, 6)


def test_a_collapsed_model_scores_chance(folders, tmp_path):
    m = run(np.ones((3, 2)), np.ones((6, 2)), path=str(folders), templates=str(tmp_path / "templates.txt")).metrics
    for name in ("top1", "top5", "mean_class_recall"):
        assert m[name] == pytest.approx(m[f"{name}_chance"])


def test_a_class_is_the_mean_of_its_normalised_prompts(folders, tmp_path):
    """By the words' numbers: "caption 0" is prompted as 0 and, by the second template, always as 3."""
    (tmp_path / "templates.txt").write_text("{}\ncaption 3 {}\n")
    w = np.eye(6)
    w[0] = [1, 0, 0, 2, 0, 0]  # normalised before the mean, so that its length does not count
    z = [[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]]
    m = run(z, w, path=str(folders), templates=str(tmp_path / "templates.txt")).metrics
    prompts = unit(unit(w) + unit(w)[3])
    scores = unit(z) @ prompts.T
    right = [scores[0].argmax() == 0, scores[1].argmax() == 0, scores[2].argmax() == 1]
    assert right == [True, False, True]
    assert m["top1"] == pytest.approx(200 / 3)


def test_a_broken_picture_is_left_out(folders, tmp_path):
    (folders / "caption_1" / "c.jpg").write_bytes(b"GIF8")
    found = run(np.eye(6), np.eye(6), path=str(folders), templates=str(tmp_path / "templates.txt"))
    assert (found.metrics["n"], found.metrics["n_entries"], found.metrics["left_out/unreadable"]) == (2, 3, 1)
    assert found.left_out[0].picture == "caption_1/c.jpg"
    for path in folders.rglob("*.[pP]*"):
        path.write_bytes(b"")
    found = run(np.eye(6), np.eye(6), path=str(folders), templates=str(tmp_path / "templates.txt"))
    assert "top1" not in found.metrics
    assert benchmark_report.table("classification", found.metrics).row_count == 2


def names(root, tmp_path, file, content):
    (tmp_path / file).write_text(content)
    config = settings(path=str(root), classes=str(tmp_path / file)).eval.classification
    return read_folders(config).names


def test_names_of_classes(folders, tmp_path):
    assert read_folders(settings(path=str(folders)).eval.classification).names == [f"caption {i}" for i in range(6)]
    assert names(folders, tmp_path, "classes.txt", "a\nb\nc c\nd\ne\nf\n") == ["a", "b", "c c", "d", "e", "f"]
    table = {f"caption_{i}": f"thing {i}" for i in range(7)}
    assert names(folders, tmp_path, "classes.json", json.dumps(table)) == [f"thing {i}" for i in range(6)]
    for file, content, said in (
        ("classes.txt", "a\nb\n", "2 names for 6 classes"),
        ("classes.json", "{", "is not JSON"),
        ("classes.json", "[1]", "holds a list; must be an object of folder and name"),
        ("classes.json", json.dumps(table | {"caption_2": ""}), "entry 'caption_2': ''; must be the name"),
    ):
        with pytest.raises(DataError, match=said) as error:
            names(folders, tmp_path, file, content)
        assert "\n" not in str(error.value)


def test_templates(tmp_path):
    assert read_templates("plain") == ("a photo of a {}.",)
    assert len(read_templates("imagenet7")) == 7
    assert len(set(read_templates("imagenet80"))) == 80
    assert read_templates("cifar")[9] == "a photo of the {}."
    assert len(set(read_templates("cifar"))) == 18
    assert all(template.count("{}") == 1 for templates in TEMPLATES.values() for template in templates)
    with pytest.raises(ConfigError, match=r"templates = 'plane': must be one of plain, imagenet7, imagenet80, cifar, .* or a file"):
        read_templates("plane")
    path = tmp_path / "t.txt"
    path.write_text("a {}\nno place\n")
    with pytest.raises(DataError, match=r"t\.txt, line 2: 'no place'; must hold \{\} once"):
        read_templates(str(path))
    path.write_text("\n")
    with pytest.raises(DataError, match=r"t\.txt: holds no template"):
        read_templates(str(path))


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.eval\.classification\.path = None: must name a folder"):
        read_folders(settings().eval.classification)
    with pytest.raises(DataError, match="has 0 folders"):
        read_folders(settings(path=str(tmp_path)).eval.classification)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no picture in the 2 folders"):
        read_folders(settings(path=str(tmp_path)).eval.classification)
