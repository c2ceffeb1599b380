"""Zero-shot classification of a data set of tensorflow-datasets, and CLIP's prompts beside open_clip's list of them."""

import importlib.util
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from eval_fakes import CONFIG, Tokenizer, Trainer, unit
from PIL import Image

from bacl_jax.config import from_config_dict, to_dict
from bacl_jax.errors import DataError
from bacl_jax.eval import suite
from bacl_jax.eval.encoder import Encoder
from bacl_jax.eval.templates import IMAGENET80

CLASSES = [f"caption_{i}" for i in range(4)]


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (8, 9), (value, value, value)).save(file, "PNG")
    return file.getvalue()


class TinyClasses(tfds.core.GeneratorBasedBuilder):
    """Picture i, of grey value i, is of class i % 3; the last one is broken, and the one before it has no class."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "label": tfds.features.ClassLabel(names=CLASSES),
            "number": np.int64,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), description="classes")

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for i in range(9):
            yield i, {"image": io.BytesIO(png(i) if i < 8 else b"no picture"), "label": -1 if i == 7 else i % 3, "number": i}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    TinyClasses(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def run(prepared, tmp_path, z, **values):
    (tmp_path / "templates.txt").write_text("{}\n")
    values = {"path": "tfds:tiny_classes", "folder": str(prepared), "templates": str(tmp_path / "templates.txt")} | values
    config = from_config_dict(to_dict(CONFIG) | {"eval": to_dict(CONFIG)["eval"] | {"classification": values}})
    return suite.BENCHMARKS["classification"](Encoder(Trainer(), {"z": unit(z), "w": np.eye(4, dtype=np.float32)}, Tokenizer(), config))


def test_by_hand(prepared, tmp_path):
    z = np.eye(4)[[i % 3 for i in range(9)]]
    z[1] = z[0]  # the only picture that is wrong
    for values in ({}, {"path": f"tfds:{prepared}/tiny_classes/1.0.0", "folder": None}):
        found = run(prepared, tmp_path, z, **values)
        m = found.metrics
        assert (m["n"], m["n_entries"], m["n_classes"]) == (7, 9, 4)
        assert m["top1"] == pytest.approx(100 * 6 / 7)
        assert m["mean_class_recall"] == pytest.approx(100 * (1 + 0.5 + 1) / 3)
        assert (m["top1_chance"], m["left_out/unreadable"], m["left_out/columns"]) == (25, 1, 1)
        assert any("holds -1, expected a class from 0 to 3" in one.error for one in found.left_out)


def test_a_feature_without_classes_is_refused(prepared, tmp_path):
    with pytest.raises(DataError, match=r"feature 'number' names no classes; name its ClassLabel in config\.eval\.classification\.label"):
        run(prepared, tmp_path, np.eye(4), label_column="number")
    with pytest.raises(DataError, match="no feature 'colour'"):
        run(prepared, tmp_path, np.eye(4), label_column="colour")


def test_the_prompts_of_imagenet_are_those_of_open_clip():
    folder = importlib.util.find_spec("open_clip").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("zero_shot_metadata", f"{folder}/zero_shot_metadata.py")  # alone, without torch
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    assert [make("{}") for make in theirs.OPENAI_IMAGENET_TEMPLATES] == list(IMAGENET80)
