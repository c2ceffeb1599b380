"""Stamps, sprites and clips as data sets: rows, splits, what a row lacks, bad files, and the batches made of them."""

import dataclasses
import json
import os
import types
from collections import Counter

import numpy as np
import pytest
from media_files import sound, sprites, stamps, vast, wavtext, webvid
from PIL import Image

from bacl_jax import data
from bacl_jax.config import Config, ConfigError, DataConfig
from bacl_jax.config_media import AudioDataConfig, ClipsConfig, StampsConfig, VideoDataConfig
from bacl_jax.data import debian
from bacl_jax.data import sprites as sprite_sheets
from bacl_jax.data.loader import anchor_batches
from bacl_jax.data.tokenizer import Tokenizer
from bacl_jax.errors import DataError
from bacl_jax.eval.embeddings import Embeddings

SOUND = AudioDataConfig(rate=8000, seconds=0.5)


def of_stamps(folder, *anchors, **options):
    settings = StampsConfig(**options)
    sizes = {"validation_captions": 3, "test_captions": 4, "image_size": 16}
    return DataConfig(kind="stamps", path=str(folder), anchors=anchors, stamps=settings, audio=SOUND, **sizes)


def batch_of(config, size=8, step=0):
    dataset = data.load(config)
    whole = Config(data=dataclasses.replace(config, threads=1, prefetch=1))
    whole = dataclasses.replace(whole, train=dataclasses.replace(whole.train, batch_size=size))
    return next(data.batches(dataset, Tokenizer.train(dataset.captions, config), whole, start_step=step))[1]


def test_stamps_have_a_row_a_language_and_held_out_ones_are_held_out_in_all(tmp_path):
    dataset = data.load(of_stamps(stamps(tmp_path), "audio", spoken=("fr", "es")))
    assert len(dataset.train) == 2 * (24 - 7)
    assert {name: len(split.source) for name, split in dataset.splits.items()} == {"validation": 6, "test": 8}
    numbers = {name: {row.key.split("thing")[1] for row in split.source.rows} for name, split in dataset.splits.items()}
    numbers["train"] = {row.key.split("thing")[1] for row in dataset.train.rows}
    assert sum(map(len, numbers.values())) == 24
    assert {row.caption.split()[1] for row in dataset.train.rows} == {"fr", "es"}
    assert {row.label for row in dataset.train.rows} == {"animals", "food"}


def test_stamps_with_english_captions_other_languages_in_the_test_and_sound_effects(tmp_path):
    stamps(tmp_path)
    dataset = data.load(of_stamps(tmp_path, "audio", spoken=("fr",), spoken_test=("es",), captions="english"))
    assert all(row.key.startswith("fr/") and row.caption.startswith("a thing") for row in dataset.train.rows)
    assert all(row.key.startswith("es/") for row in dataset.splits["test"].source.rows)
    effects = data.load(of_stamps(tmp_path, "image", "audio", spoken=()))
    assert sum(row.sound is not None for row in effects.train.rows) < len(effects.train)
    assert all(row.sound is not None and row.picture is not None for row in effects.splits["test"].source.rows)
    with pytest.raises(ConfigError, match="nobody speaks xx; allowed: es, fr"):
        data.load(of_stamps(tmp_path, "audio", spoken=("xx",)))


def test_a_share_of_the_rows_lacks_picture_or_sound(tmp_path):
    stamps(tmp_path)
    dataset = data.load(of_stamps(tmp_path, "image", "audio", lacking=0.5))
    found = Counter((row.picture is not None, row.sound is not None) for row in dataset.train.rows)
    assert found == {(True, True): 17, (False, True): 9, (True, False): 8} or found == {
        (True, True): 17,
        (False, True): 8,
        (True, False): 9,
    }
    dropped = data.load(of_stamps(tmp_path, "image", "audio", lacking=0.5, drop_lacking=True))
    complete = [row.key for row in dataset.train.rows if row.picture is not None and row.sound is not None]
    assert [row.key for row in dropped.train.rows] == complete


def test_a_batch_holds_what_its_rows_have(tmp_path):
    stamps(tmp_path)
    config = of_stamps(tmp_path, "image", "audio", lacking=1.0)
    batch, again = batch_of(config), batch_of(config)
    assert {*batch.inputs} == {*batch.present} == {"image", "audio", "text"}
    assert batch.inputs["image"].values.shape == (8, 16, 16, 3)
    assert batch.inputs["audio"].values.shape == (8, 4000)
    assert batch.inputs["audio"].mask.shape == (8, 26)
    for name in ("image", "audio"):
        there = batch.inputs[name].values.reshape(8, -1).any(1)
        np.testing.assert_array_equal(batch.present[name], there)
        assert not there.all()
        np.testing.assert_array_equal(batch.inputs[name].values, again.inputs[name].values)


def test_a_bad_stamp_is_raised_or_left_out_and_counted(tmp_path):
    stamps(tmp_path)
    (tmp_path / "food" / "thing0_desc_fr.ogg").write_bytes(b"no sound")
    config = of_stamps(tmp_path, "audio", spoken=("fr",))
    with pytest.raises(DataError, match=r"thing0_desc_fr.ogg: not a readable sound .*data.on_error = skip"):
        data.load(config)
    dataset = data.load(dataclasses.replace(config, on_error="skip"))
    assert dataset.skipped == {"unreadable": 1}
    assert sum(len(split.source) for split in dataset.splits.values()) + len(dataset.train) == 23


def test_sprites_tell_who_does_what_and_where_to(tmp_path):
    settings = {"validation_captions": 4, "test_captions": 6, "image_size": 16, "video": VideoDataConfig(frames=3)}
    config = DataConfig(kind="sprites", path=str(sprites(tmp_path)), anchors=("video",), **settings)
    dataset = data.load(config)
    assert len(dataset.captions) == 6 * 7
    assert {"romans worker0 idle", "romans worker5 walk northeast"} <= {*dataset.captions}
    assert len(dataset.half_true) > 0
    assert batch_of(config).inputs["video"].values.shape == (8, 3, 16, 16, 3)


def test_animations_of_an_init_lua():
    lua = "spritesheets = { walk = { frames = 10, rows = 4, columns = 3, directional = true, hotspot = { 1, 2 } }, -- x = {\n"
    lua += 'eat = { sound_effect = { path = "a", frames = 1 }, basename = "walk", frames = 6, rows = 2, columns = 3 } }'
    walk, eat = sprite_sheets.animations(lua)
    assert walk == sprite_sheets.Animation("walk", "walk", 10, 4, 3, True)
    assert (eat.basename, eat.frames) == ("walk", 6)
    with pytest.raises(DataError, match="never closed"):
        list(sprite_sheets.animations("spritesheets = { walk = {"))


def of_clips(path, *anchors, **options):
    pattern = {name: options.pop(name) for name in ("audio", "video", "label") if name in options}
    small = {"audio": SOUND, "video": VideoDataConfig(frames=3), "image_size": 16, "validation_rows": 2, "test_rows": 2}
    return DataConfig(kind="clips", path=str(path), anchors=anchors, clips=ClipsConfig(**pattern), **{**small, **options})


def test_wavtext5k_as_it_is_published(tmp_path):
    config = of_clips(wavtext(tmp_path), "audio", audio="{fname}", caption_column="description")
    with pytest.raises(DataError, match=r"data row 13: no file for audio in .*remove the row"):
        data.load(config)
    dataset = data.load(dataclasses.replace(config, on_error="skip"))
    assert (len(dataset.train), dataset.skipped) == (8, {"missing": 1})
    assert dataset.train[0].caption.startswith("a tone, number")
    assert batch_of(dataclasses.replace(config, on_error="skip")).inputs["audio"].values.any(1).all()


def test_webvid_as_it_is_published(tmp_path):
    config = of_clips(webvid(tmp_path), "video", video="{page_dir}/{videoid}.mp4", caption_column="name", id_column="videoid")
    dataset = data.load(config)
    assert (len(dataset.train), len(dataset.splits["test"].source)) == (8, 2)
    batch = batch_of(config)
    assert batch.inputs["video"].values.shape == (8, 3, 16, 16, 3)
    first = batch.inputs["video"].values.mean((2, 3, 4))
    assert (np.diff(first, axis=1) >= 0).all()  # each frame is brighter than the one before, or it again
    assert (first[:, 2] > first[:, 0]).all()


def test_vast_as_it_is_published_and_a_clip_without_a_sound_track_lacks_one(tmp_path):
    config = of_clips(
        vast(tmp_path), "video", "audio", video="{clip_id}.mp4", audio="{clip_id}.mp4", caption_column="vast_cap", label="label"
    )
    batch = batch_of(dataclasses.replace(config, validation_rows=0, test_rows=0), size=12)
    assert batch.present["video"].all()
    assert batch.present["audio"].sum() == 8
    assert {row.label for row in data.load(config).train.rows} == {"0", "1"}
    there = np.concatenate([one[1] for one in anchor_batches(data.load(config).train, config, "audio", 5)])
    assert there.sum() == 8 - sum(row.sound is not None for part in data.load(config).splits.values() for row in part.source.rows)
    alone = dataclasses.replace(config, anchors=("audio",), validation_rows=0, test_rows=0)  # then such a clip is a bad row
    with pytest.raises(DataError) as error:
        batch_of(alone, size=12)
    assert error.value.kind == "no_track"
    assert batch_of(dataclasses.replace(alone, on_error="skip"), size=12).inputs["audio"].values.any(1).all()


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_an_empty_field_and_a_pipe_are_no_files(tmp_path, ending):
    """Else the data's folder would be the file of every row without one."""
    for number in range(3):
        sound(tmp_path / f"{number}.wav")
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.png")
    os.mkfifo(tmp_path / "pipe.wav")
    rows = [{"text": f"Row {n}.", "picture": f"{n}.png", "sound": ("0.wav", "", "pipe.wav")[n]} for n in range(3)]
    rows.append({"text": "Nothing.", "picture": " ", "sound": None})
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        path.write_text("\n".join(["text,picture,sound", *(",".join(str(value or "") for value in row.values()) for row in rows)]))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    clips = ClipsConfig(image="{picture}", audio="{sound}", video="{sound}")
    sizes = {"validation_rows": 0, "test_rows": 0, "on_error": "skip", "caption_column": "text"}
    for anchors, expected in ((("image", "audio"), [True, False, False]), (("image", "video"), [True, False, False])):
        dataset = data.load(dataclasses.replace(of_clips(path, *anchors, **sizes), clips=clips))
        assert [row.has(anchors[1]) for row in dataset.train.rows] == expected
        assert dataset.skipped == {"missing": 1}


def test_paths_that_lead_out_of_the_folder_and_captions_that_are_lists(tmp_path):
    sound(tmp_path / "a.wav")
    rows = [{"file": "a.wav", "told": ["One.", "Two."]}, {"file": "../a.wav", "told": "Three."}, {"file": "a.wav", "told": " "}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = of_clips(tmp_path / "rows.jsonl", "audio", audio="{file}", caption_column="told", validation_rows=0, test_rows=0)
    with pytest.raises(DataError, match="lies outside"):
        data.load(config)
    dataset = data.load(dataclasses.replace(config, on_error="skip"))
    assert dataset.skipped == {"outside": 1, "empty_caption": 1}
    assert (dataset.train[0].caption, dataset.train[0].others) == ("one.", ("two.",))


def test_a_damaged_line_is_left_out_and_captions_are_cleaned(tmp_path):
    """As in a manifest, whose reader it is."""
    sound(tmp_path / "a.wav")
    rows = ['{"file": "a.wav", "told": "A &amp; B"}', '{"file": "a.wav"', '{"file": "a.wav"}', '{"file": "a.wav", "told": null}']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    sizes = {"validation_rows": 0, "test_rows": 0, "on_error": "skip", "clean_captions": True}
    dataset = data.load(of_clips(tmp_path / "rows.jsonl", "audio", audio="{file}", caption_column="told", **sizes))
    assert dataset.skipped == {"syntax": 1, "columns": 1, "empty_caption": 1}
    assert dataset.train[0].caption == "a & b"
    (tmp_path / "rows.json").write_text('{"file": "a.wav"}')
    with pytest.raises(DataError, match=r"rows.json: a dict; write a list of objects"):
        data.load(of_clips(tmp_path / "rows.json", "audio", audio="{file}", caption_column="told"))


def test_evaluation_batches_are_whole_and_the_same_each_time(tmp_path):
    config = of_stamps(stamps(tmp_path), "image", "audio", lacking=0.5)
    source = data.load(config).train
    first, second = (list(anchor_batches(source, config, "audio", 10)) for _ in range(2))
    there = np.concatenate([one[1] for one in first])
    assert len(there) == len(source)
    np.testing.assert_array_equal(there, [source[row].sound is not None for row in range(len(source))])
    assert all(len(rows[0]) == 10 for rows, _ in first)
    for (a, _), (b, _) in zip(first, second, strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_a_row_of_training_that_cannot_be_read_is_left_out_of_evaluations(tmp_path):
    sound(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_bytes(b"no sound")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"file": f"{name}.wav", "told": f"The {name}."}) for name in "aba"))
    config = of_clips(tmp_path / "rows.jsonl", "audio", audio="{file}", caption_column="told", validation_rows=0, test_rows=0)
    source, bad = data.load(config).train, set()
    ((_, there),) = anchor_batches(source, config, "audio", 4, bad)
    assert (there.tolist(), bad) == ([True, False, True], {1})
    with pytest.raises(DataError, match="not a readable sound"):
        list(anchor_batches(source, config, "audio", 4))


@pytest.mark.parametrize("anchor", ["audio", "image"])
def test_such_a_row_has_no_embedding_and_is_no_candidate(tmp_path, anchor):
    """Of training alone, and under data.on_error = skip alone."""
    for name in ("a", "c"):
        sound(tmp_path / f"{name}.wav")
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
    for name in ("b.wav", "b.png"):
        (tmp_path / name).write_bytes(b"neither")
    rows = [{"file": name, "told": f"The {name}.", "part": "validation" if name == "c" else "train"} for name in "abc"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sizes = {"validation_rows": 0, "test_rows": 0, "caption_column": "told", "split_column": "part", "on_error": "skip"}
    settings = of_clips(tmp_path / "rows.jsonl", anchor, **sizes)
    settings = dataclasses.replace(settings, clips=ClipsConfig(audio="{file}.wav", image="{file}.png"))
    dataset = data.load(settings)

    def tower(params, values, mask=None):
        return types.SimpleNamespace(pooled=np.ones((len(values), 4), np.float32) / 2)

    trainer = types.SimpleNamespace(encode_image=tower, encode_anchor={anchor: tower})
    found = Embeddings(trainer, None, dataset, None, Config(data=settings), "validation")
    assert found.encode(dataset.train).any(1).tolist() == [True, False]
    assert found.images.any()
    assert found.other_images[0].shape == (1, 4)
    assert found.other_images[1].shape == (1,)
    with pytest.raises(DataError, match=r"b\."):
        found.encode(list(dataset.train))
    strict = Embeddings(trainer, None, dataset, None, Config(data=dataclasses.replace(settings, on_error="raise")), "validation")
    with pytest.raises(DataError, match=r"b\."):
        strict.encode(dataset.train)


def test_a_package_that_is_nowhere_is_told_with_the_ways_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "CACHE", tmp_path)
    with pytest.raises(ConfigError, match=r"none-such is not there; fetch it with python -m launch.fetch --package=none-such"):
        debian.folder("none-such", "usr/share/none-such", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"apt-get and dpkg-deb not found: .*set --config.data.path=DIR"):
        debian.fetch("none-such")
