"""Rows that lack a caption or a picture: read from a manifest, two of them in each place of a batch that is no pair's."""

import dataclasses

import numpy as np
import pytest
import tiny
from PIL import Image

from bacl_jax.config import Config, ConfigError, DataConfig, TrainConfig, from_config_dict
from bacl_jax.data import batches, load
from bacl_jax.data.records import ManifestError
from bacl_jax.data.source import hash_ids
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.errors import DataError
from launch import beginning

PAIRS, PICTURES, CAPTIONS = 8, 6, 5


def written(folder, pairs=PAIRS, pictures=PICTURES, captions=CAPTIONS, extra=()):
    """A manifest whose rows are in no order; the caption that a picture truly has is in the column truth, unknown of the first one."""
    for number in range(pairs + pictures + 2):
        Image.new("RGB", (12, 12), (10 * number, 0, 99)).save(folder / f"{number}.png")
    rows = [(f"{number}.png", f"pair {number}", "train", "") for number in range(pairs)]
    rows += [(f"{pairs + n}.png", "", "train", f"truth {n}" if n else "") for n in range(pictures)]
    rows += [("", f"caption {n}", "train", "") for n in range(captions)]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    rows += [(f"{pairs + pictures}.png", "held out", "validation", ""), *extra]
    (folder / "pairs.csv").write_text("image,caption,split,truth\n" + "".join(",".join(row) + "\n" for row in rows))
    return DataConfig(
        kind="manifest",
        path=str(folder / "pairs.csv"),
        split_column="split",
        truth_column="truth",
        unpaired_share=0.5,
        image_size=8,
        augment_scale=0,
        augment_shift=0,
        threads=1,
        prefetch=1,
    )


def read(config, steps=6, batch_size=8):
    dataset = load(config)
    tokenizer = Tokenizer.train(dataset.training_captions(), config)
    stream = batches(dataset, tokenizer, Config(data=config, train=TrainConfig(batch_size=batch_size)), start_step=0)
    return dataset, tokenizer, [next(stream)[1] for _ in range(steps)]


def shown(batch):
    """The number of the file of each place's picture, by its colour."""
    return (batch.inputs["image"].values[:, 0, 0, 0] / 10).round().astype(int)


def test_every_place_has_a_picture_and_a_caption(tmp_path):
    dataset, _, found = read(written(tmp_path))
    assert [(part.name, part.rows, part.beside) for part in dataset.parts()] == [
        ("pairs", PAIRS, False),
        ("pictures", PICTURES, False),
        ("captions", CAPTIONS, True),
    ]
    names = {tuple(hash_ids([caption])[0]): caption for caption in dataset.training_captions()}
    assert len(names) == PAIRS + CAPTIONS
    pictures, captions = [], []
    for batch in found:
        assert batch.paired is not None
        assert batch.paired.sum() == 4
        assert all(present.all() for present in batch.present.values())
        for place, picture in enumerate(shown(batch).tolist()):
            caption = names[tuple(batch.caption_id[place])]
            if batch.paired[place]:
                assert caption == f"pair {picture}"
            else:
                pictures.append(picture - PAIRS)
                captions.append(int(caption.removeprefix("caption ")))
    assert sorted(pictures) == sorted(list(range(PICTURES)) * 4)  # 24 places: four epochs of six pictures
    assert {captions.count(n) for n in range(CAPTIONS)} <= {4, 5}  # and nearly five of five captions


def test_truth_is_what_the_column_says_and_nothing_else_tells_it(tmp_path):
    _, _, found = read(written(tmp_path))
    for batch in found:
        assert batch.truth is not None
        for place, picture in enumerate(shown(batch).tolist()):
            want = f"pair {picture}" if picture < PAIRS else f"truth {picture - PAIRS}"
            known = picture != PAIRS
            np.testing.assert_array_equal(batch.truth[place], hash_ids([want])[0] if known else [0, 0])
            assert known is False or batch.paired[place] or not (batch.truth[place] == batch.caption_id[place]).all()
    blind = dataclasses.replace(written(tmp_path), truth_column=None)
    assert read(blind)[2][0].truth is None


@pytest.mark.parametrize(("pictures", "captions"), [(6, 0), (0, 5)])
def test_pairs_stand_in_for_a_kind_that_is_missing(tmp_path, pictures, captions):
    dataset, _, found = read(written(tmp_path, pictures=pictures, captions=captions))
    assert dataset.parts()[2].name == "stand_ins"
    names = {tuple(hash_ids([caption])[0]): caption for caption in dataset.training_captions()}
    for batch in found:
        for place in np.flatnonzero(~batch.paired):
            picture, caption = shown(batch)[place], names[tuple(batch.caption_id[place])]
            assert (picture >= PAIRS, caption.startswith("pair")) == ((True, True) if pictures else (False, False))


def test_nothing_depends_on_the_number_of_hosts(tmp_path):
    config = written(tmp_path)
    dataset, tokenizer, whole = read(config, steps=2)
    settings = Config(data=config, train=TrainConfig(batch_size=8))
    parts = [batches(dataset, tokenizer, settings, start_step=1, shard=((host,), 2)) for host in (0, 1)]
    halves = [next(part)[1] for part in parts]
    for name in ("caption_id", "anchor_id", "paired", "truth"):
        np.testing.assert_array_equal(np.concatenate([getattr(half, name) for half in halves]), getattr(whole[1], name))


def test_evaluation_and_audit_see_pairs_alone(tmp_path):
    dataset = load(written(tmp_path))
    assert dataset.train_caption is None
    assert len(dataset.complete()) == PAIRS
    assert {dataset.complete()[row].caption for row in range(PAIRS)} == {f"pair {n}" for n in range(PAIRS)}
    assert "19 pairs" not in dataset.description
    assert f"{PAIRS} complete, {PICTURES} pictures and {CAPTIONS} captions alone" in dataset.description


@pytest.mark.parametrize(
    ("extra", "share", "message"),
    [
        (("0.png", "", "train", ""), 0.0, "or train on such rows, too, with data.unpaired_share"),
        (("", "a caption", "train", ""), 0.0, "the image path is empty; .*data.unpaired_share"),
        (("", "", "train", ""), 0.5, "is empty; write one, or an image path"),
        (("0.png", "", "test", ""), 0.5, "is empty; .*those of test are pairs"),
        (("", "a caption", "validation", ""), 0.5, "the image path is empty; .*those of validation are pairs"),
    ],
)
def test_rows_that_are_refused(tmp_path, extra, share, message):
    pictures, captions = (PICTURES, CAPTIONS) if share else (0, 0)
    config = dataclasses.replace(written(tmp_path, pictures=pictures, captions=captions, extra=[extra]), unpaired_share=share)
    with pytest.raises(ManifestError, match=f"data row .*{message}"):
        load(config)
    left = load(dataclasses.replace(config, on_error="skip"))
    assert sum(left.skipped.values()) == 1


def test_rows_of_which_all_or_none_are_pairs(tmp_path):
    with pytest.raises(ConfigError, match=r"unpaired_share = 0\.5: every training row has a picture and a caption"):
        load(written(tmp_path, pictures=0, captions=0))
    with pytest.raises(ConfigError, match="no training row has a picture and a caption"):
        load(written(tmp_path, pairs=0))


def test_a_row_without_a_picture_says_so(tmp_path):
    dataset = load(written(tmp_path))
    with pytest.raises(DataError, match="has no picture"):
        _ = dataset.train[PAIRS + PICTURES].image


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"unpaired_share": 0.5}}, "must be 0 where data.kind is emoji"),
        ({"objective": {"unpaired": {"enabled": True}}}, "no row lacks a modality"),
        ({"data": {"kind": "manifest", "path": "x", "unpaired_share": 0.5, "features": "y"}}, "features are stored of complete pairs"),
        (
            {"data": {"kind": "manifest", "path": "x", "unpaired_share": 0.5}, "optim": {"spectral": {"enabled": True}}},
            "pictures and captions that are no pairs",
        ),
        (
            {
                "data": {"kind": "manifest", "path": "x", "unpaired_share": 0.5},
                "objective": {"bns": {"enabled": True, "partner_share": 0.5}},
            },
            "are complete pairs",
        ),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(changes)


def test_features_are_not_stored_of_such_rows(tmp_path):
    config = dataclasses.replace(tiny.plain(), data=written(tmp_path))
    with pytest.raises(ConfigError, match="features are stored of complete pairs"):
        beginning.precompute(config, tmp_path / "out", "float32")


def test_captions_alone_seek_no_picture(tmp_path):
    plain = tiny.unpaired()
    config = dataclasses.replace(plain, data=written(tmp_path, pictures=0))
    with pytest.raises(ConfigError, match=r"objective\.unpaired\.enabled = True: every picture .* has a caption"):
        beginning.read_data(config)
    off = dataclasses.replace(plain.objective.unpaired, enabled=False)
    dataset = beginning.read_data(dataclasses.replace(config, objective=dataclasses.replace(plain.objective, unpaired=off)))
    assert len(dataset.train) == PAIRS + CAPTIONS
