"""Every config file really runs: two steps of it, small, from the data to an evaluation and a checkpoint."""

import importlib
import io
import tarfile
from pathlib import Path

import jax
import media_files
import numpy as np
import pytest
import small_pairs
import tiny
import vocabularies
from safetensors.numpy import save_file

from bacl_jax import paths
from bacl_jax.config import from_config_dict
from bacl_jax.data import emoji, tar_index
from bacl_jax.interop import layouts
from bacl_jax.models import Model
from bacl_jax.train.checkpoint import Checkpoints
from bacl_jax.train.hooks import Preemption
from bacl_jax.train.workdir import claim_workdir
from launch import beginning, session

CONFIGS = sorted(path.stem for path in Path("configs").glob("*.py") if path.stem not in ("base", "laion400m", "__init__"))
SMALL = {
    "train.steps": 2,
    "train.batch_size": 32,
    "train.log_every": 1,
    "train.eval_every": 0,
    "train.save_minutes": None,
    "optim.warmup_steps": 1,
    "eval.tasks": ("halftrue",),
    "train.keep_best": None,
    "model.embed_dim": 16,
    "model.image.width": 8,
    "model.image.depth": 1,
    "model.text.width": 16,
    "objective.bank_size": 64,
    "objective.groups": 1,
    "objective.cla.width": 16,
    "data.image_size": 16,
    "data.threads": 1,
    "data.prefetch": 1,
}

SMALLER = {  # of the large towers
    "model.image.heads": 2,
    "model.image.patch": 8,
    "model.text.depth": 1,
    "model.text.heads": 2,
    "objective.cla.layers": 1,
    "objective.cla.heads": 2,
    "data.context_length": 16,
    "mesh.fsdp": 1,
}


MEDIA = {  # name of a config -> what makes its data, and the settings that fit them
    "stamps_audio_bacl": (media_files.stamps, {}),
    "stamps_trimodal_bacl": (media_files.stamps, {}),
    "sprites_video_bacl": (media_files.sprites, {"data.video.frames": 2}),
    "wavtext5k_bacl": (media_files.wavtext, {}),
    "webvid10m_bacl": (media_files.webvid, {"data.video.frames": 2}),
    "vast27m_bacl": (media_files.vast, {"data.video.frames": 2}),
    "emoji_spoken_bacl": (media_files.spoken, {}),
}
SMALL_MEDIA = {
    "train.batch_size": 8,
    "data.validation_captions": 2,
    "data.test_captions": 2,
    "data.validation_rows": 2,
    "data.test_rows": 2,
    "data.audio.rate": 8000,
    "data.audio.seconds": 0.5,
    "data.audio.mel_bins": 16,
    "data.audio.window": 200,
    "data.audio.hop": 80,
    "data.audio.bin_width": 4,
    "data.vocab_size": 300,
    "model.audio.width": 16,
    "model.audio.depth": 1,
    "model.audio.heads": 2,
    "model.audio.patch_frames": 8,
    "model.audio.patch_bins": 16,
    "model.audio.stride_frames": 8,
    "model.video.depth": 1,
    "model.video.heads": 2,
    "data.max_error_share": 1.0,
}


def manifest(folder):
    """24 pairs, two of them for validation."""
    return str(small_pairs.squares(folder, lambda number: "train" if number < 22 else "validation", side=20))


def shards(folder):
    """The pairs of `manifest` as two tar shards with their index; a picture of the second is none."""
    rows = Path(manifest(folder)).read_text().splitlines()[1:]
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for row in rows[12 * shard : 12 * shard + 12]:
                picture, caption, _ = row.split(",")
                for name, content in ((picture, (folder / picture).read_bytes()), (f"{picture[:-4]}.txt", caption.encode())):
                    member = tarfile.TarInfo(name)
                    content = b"no picture" if name == "20.png" else content
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    tar_index.build(str(folder / "{0,1}.tar"))
    return str(folder / "{0,1}.tar")


def bert(folder, config):
    """The text tower of a config in a file, as Hugging Face publishes BERT's."""
    model = Model(config, config.data.vocab_size)
    tower = dict(paths.named(jax.jit(model.init)(jax.random.key(1))["towers"]["text"]))
    rows = layouts.BERT.rows("text", config.model.text.depth)
    save_file({row.theirs: row.form.write([np.asarray(tower[path]) for path in row.ours]) for row in rows}, folder / "bert.safetensors")
    return str(folder / "bert.safetensors")


@pytest.fixture(scope="module")
def decoded():
    """Pictures of the emoji are decoded once."""
    decode_all, kept = emoji._decode_all, {}

    def decode(rows, folder, config, skipped, on_skip):
        key = (config.vendors, config.language, config.image_size)
        if key not in kept:
            kept[key] = decode_all(rows, folder, config, skipped, on_skip)
        return kept[key]

    return decode


@pytest.mark.parametrize("name", CONFIGS)
def test_two_steps(name, tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(emoji, "_decode_all", decoded)
    monkeypatch.setattr(session, "make_mesh", lambda config: tiny.one_device())  # eight fake ones take eight times as long
    settings = importlib.import_module(f"configs.{name}").get_config()
    overrides = dict(SMALL)
    if name.startswith(("laion400m", "clip_")):
        overrides |= SMALLER | {"data.tokenizer_path": vocabularies.clip_file(tmp_path), "data.vocab_size": vocabularies.CLIP_SIZE}
    if name.startswith("clip_"):  # the weights are a download; tests/test_interop.py reads such
        overrides |= {"model.image.pretrained": None, "model.text.pretrained": None}
    if name in MEDIA:
        make, own = MEDIA[name]
        overrides |= SMALLER | SMALL_MEDIA | {"data.path": str(make(tmp_path))} | own
    if settings.data.kind == "manifest":
        overrides |= {"data.path": manifest(tmp_path), "data.split_column": "split"}
    if name == "unpaired":
        with Path(overrides["data.path"]).open("a") as file:
            file.writelines(f"{number}.png,,train\n,square number {number},train\n" for number in range(6))
    if settings.data.kind == "webdataset":
        few = {"data.validation_rows": 2, "data.test_rows": 0}
        overrides |= few | {"data.path": shards(tmp_path), "data.on_error": "skip", "data.max_error_share": 1.0}
    if settings.data.kind == "mixture":
        manifest(tmp_path)
        monkeypatch.chdir(tmp_path)
    if name == "emoji_minilm":
        overrides |= {"data.tokenizer_path": vocabularies.wordpiece_file(tmp_path), "data.vocab_size": len(vocabularies.PIECES)}
        overrides |= {"model.text.heads": 2, "model.text.depth": 1}
    settings.update_from_flattened_dict(overrides)
    if name == "emoji_minilm":
        settings.model.text.pretrained = bert(tmp_path, from_config_dict(settings))
    config = from_config_dict(settings)
    claim_workdir(tmp_path / "run", config)
    with Preemption() as preemption, Checkpoints(tmp_path / "run") as checkpoints:
        outcome = session.open_run(config, beginning.read_data(config), checkpoints).loop(checkpoints).run(preemption)
        assert (outcome.status, int(outcome.state.step), int(outcome.state.skipped)) == ("done", 2, 0)
        assert checkpoints.steps() == [2]
        if config.data.tokenizer_path is not None:  # the checkpoint's own tokenizer wins
            Path(config.data.tokenizer_path).write_text("another vocabulary")
            run = session.open_run(config, beginning.read_data(config), checkpoints)
            assert run.tokenizer.vocab_size == config.data.vocab_size
