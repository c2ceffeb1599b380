"""The files in configs/: their text is kept in golden/configs, so that a change of any shows as a diff.

`python tests/test_configs.py` writes the golden files anew.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bacl_jax.config import Config, changed_fields, flatten, from_config_dict

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "configs"
LAION = ("laion400m_vitb16_bacl", "laion400m_vitb32_clip", "laion400m_vitl14_bacl")
EMOJI = ("emoji_clip", "emoji_bacl", "emoji_bns", "emoji_cla", "emoji_bacl_paper", "emoji_mmcl")
MEDIA = (
    "stamps_audio_bacl",
    "sprites_video_bacl",
    "stamps_trimodal_bacl",
    "wavtext5k_bacl",
    "webvid10m_bacl",
    "vast27m_bacl",
    "emoji_spoken_bacl",
)
NAMES = (*EMOJI, "emoji_vit_bacl", "emoji_minilm", "manifest", "unpaired", "webdataset", "mixture", "clip_vitb32_bacl", *LAION, *MEDIA)
SHARED = {"base", "laion400m"}  # parts of others, no runs


def read(name):
    settings = importlib.import_module(f"configs.{name}").get_config()
    if settings.data.kind not in ("emoji", "mixture", "stamps", "sprites"):
        settings.data.path = "pairs.csv" if settings.data.kind == "manifest" else "shards"
    return from_config_dict(settings)


def rendered(name):
    return "".join(f"{field} = {value!r}\n" for field, value in flatten(read(name)).items())


@pytest.mark.parametrize("name", NAMES)
def test_text_of_a_config(name):
    assert rendered(name) == (GOLDEN / f"{name}.txt").read_text(), "if this change is wanted: python tests/test_configs.py"


def test_every_file_is_tested():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == SHARED | {*NAMES}


def test_base_holds_every_field_and_no_other():
    """A missing key would fall back to the default, an unknown one is refused."""
    base = importlib.import_module("configs.base").get_config()

    def names(settings, prefix=""):
        for key, value in settings.items():
            yield from names(value, f"{prefix}{key}.") if hasattr(value, "items") else [prefix + key]

    assert set(names(base)) == set(flatten(Config()))
    assert read("emoji_clip") == Config()


def test_every_field_has_a_comment():
    for path in (ROOT / "configs").glob("*.py"):
        for line in path.read_text().splitlines():
            if (
                re.match(r"    \w[\w.]* = ", line)
                and "ConfigDict()" not in line
                and not re.search(r"= (config\.|\w+\(\)$|base\.|laion400m\.(get_config|bacl)\(|\w+_bacl\.get_config\()", line)
            ):
                assert "  # " in line, f"{path.name}: {line}"
                assert "None" not in line.split("#")[0] or "None" in line.split("#")[1], f"{path.name}: meaning of None: {line}"


def test_emoji_configs_differ_in_the_objective_alone():
    for name in EMOJI[1:]:
        changed = changed_fields(read("emoji_clip"), read(name))
        assert changed
        assert all(field.startswith("objective.") for field in changed), changed


def test_what_each_config_is():
    on = {name: (read(name).objective.bns.enabled, read(name).objective.cla.enabled) for name in NAMES}
    assert on == {
        "emoji_clip": (False, False),
        "emoji_bacl": (True, True),
        "emoji_bns": (True, False),
        "emoji_cla": (False, True),
        "emoji_bacl_paper": (True, True),
        "emoji_mmcl": (False, False),
        "manifest": (True, True),
        "unpaired": (False, False),
        "webdataset": (True, True),
        "mixture": (True, True),
        "emoji_vit_bacl": (True, True),
        "emoji_minilm": (True, True),
        "clip_vitb32_bacl": (True, True),
        "laion400m_vitb16_bacl": (True, True),
        "laion400m_vitb32_clip": (False, False),
        "laion400m_vitl14_bacl": (True, True),
    } | dict.fromkeys(MEDIA, (True, True))
    paper = read("emoji_bacl_paper").objective
    assert (paper.bns.pool, paper.bns.policy_bound, paper.cla.layers) == (paper.bns.k, None, 4)
    assert (paper.bns.reweight, paper.bns.partner_share, paper.bns.drawn_share > 0) == (False, 0.0, True)


def test_the_runs_on_laion_are_of_the_sizes_that_they_name():
    b16, b32, l14 = map(read, LAION)
    for config, patch, width, depth, text, batch in (
        (b16, 16, 768, 12, 512, 32768),
        (b32, 32, 768, 12, 512, 32768),
        (l14, 14, 1024, 24, 768, 65536),
    ):
        image = config.model.image
        assert (image.kind, image.patch, image.width, image.depth, config.model.text.width) == ("vit", patch, width, depth, text)
        assert (config.train.batch_size, config.train.steps * batch // 10**6) == (batch, 32 * 400 - (batch == 65536))
        assert (config.data.image_size, config.data.context_length, config.data.vocab_size) == (224, 77, 49408)
    assert (b16.objective.bank_size, b16.mesh.fsdp, l14.mesh.fsdp) == (65536, 1, 16)


def launch(*arguments, door="train"):
    command = [sys.executable, "-m", f"launch.{door}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False)


BACL = "--config=configs/emoji_bacl.py"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("def get_confg():\n    pass\n", "AttributeError: "),
        ("def get_config(:\n", "SyntaxError: "),
        ("import none_such\n", ", line 1: no config can be read from it: ModuleNotFoundError: No module named 'none_such'"),
        ("def get_config():\n    return 3\n", "must"),
    ],
)
def test_a_file_that_is_no_config_is_one_line_and_exit_code_2(tmp_path, content, said):
    (tmp_path / "mine.py").write_text(content)
    done = launch(f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_teaches_the_command_and_the_fields():
    done = launch("--help")
    assert done.returncode == 0
    for part in (
        "python -m launch.train --config=configs/emoji_bacl.py --workdir=",
        f"--config.train.steps={Config().train.steps}",
        "an integer >= 1",
        "Exit codes",
    ):
        assert part in done.stdout


def test_help_lists_the_fields_only_where_they_can_be_set():
    done = launch("--help", door="compare")
    assert done.returncode == 0
    assert "--workers" in done.stdout
    assert "--config." not in done.stdout


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for config in NAMES:
        (GOLDEN / f"{config}.txt").write_text(rendered(config))
