"""Widelands' sprites (Debian's widelands-data) as short clips: who does what, and in which direction.

The folder of a worker, animal, ship or building holds init.lua, which names its animations with their frames, rows and columns, and a
sheet <animation>[_<direction>]_1.png for each. The caption is made of the folder's name, its tribe's, the animation's and the direction:
"barbarians lumberjack walk northeast". Clips of fewer than MIN_FRAMES frames are left out.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from bacl_jax.config import DataConfig
from bacl_jax.data import debian, media
from bacl_jax.data.captions import normal
from bacl_jax.data.media import Row
from bacl_jax.data.skips import Skips
from bacl_jax.data.source import DataSet, OnSkip
from bacl_jax.data.video import Sheet
from bacl_jax.errors import DataError

PACKAGE, INSIDE = "widelands-data", "usr/share/games/widelands/data"
MIN_FRAMES = 5
DIRECTIONS = {"e": "east", "ne": "northeast", "nw": "northwest", "se": "southeast", "sw": "southwest", "w": "west"}
_SHEETS = re.compile(r"\bspritesheets\s*=\s*\{")
_NAME = re.compile(r'\bname\s*=\s*"([^"]+)"')
_ENTRY = re.compile(r"(\w+)\s*=\s*\{")
_FIELD = re.compile(r'(\w+)\s*=\s*("?[\w.]+"?)')


@dataclasses.dataclass(frozen=True)
class Animation:
    """An entry of `spritesheets`: its own name, that of its files, and how the frames lie on a sheet."""

    name: str
    basename: str
    frames: int
    rows: int
    columns: int
    directional: bool


def block(text: str, start: int) -> str:
    """What stands between the brace that ends at `start` and its partner."""
    depth = 1
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return text[start:place]
    raise DataError("a brace is never closed", kind="syntax")


def animations(lua: str) -> Iterator[Animation]:
    """The sprite sheets that an init.lua describes."""
    lua = re.sub(r"--.*", "", lua)
    opening = _SHEETS.search(lua)
    inside, at = (block(lua, opening.end()), 0) if opening else ("", 0)
    while entry := _ENTRY.search(inside, at):
        body = block(inside, entry.end())
        at = entry.end() + len(body)
        flat = re.sub(r"\{[^{}]*\}", "", body)
        fields = {name: value.strip('"') for name, value in _FIELD.findall(flat)}
        if {"frames", "rows", "columns"} <= fields.keys():
            frames, rows, columns = (int(fields[name]) for name in ("frames", "rows", "columns"))
            directional = fields.get("directional") == "true"
            yield Animation(entry[1], fields.get("basename", entry[1]), frames, rows, columns, directional)


def rows(folder: Path, config: DataConfig) -> Iterator[Row]:
    """Every clip with its caption, all for training."""
    for lua in sorted(folder.rglob("init.lua")):
        text = lua.read_text(encoding="utf-8", errors="replace")
        name = _NAME.search(text)
        who = normal((name[1] if name else lua.parent.name).replace("_", " "))
        for one in animations(text) if name else ():
            if one.frames < MIN_FRAMES or one.name != one.basename:
                continue
            for direction, word in DIRECTIONS.items() if one.directional else (("", ""),):
                path = lua.parent / f"{one.basename}{'_' if direction else ''}{direction}_1.png"
                if path.is_file():
                    clip = Sheet(path, one.rows, one.columns, one.frames, config.max_pixels)
                    caption = normal(f"{who} {one.name.replace('_', ' ')} {word}")
                    yield Row(str(path.relative_to(folder)), caption, "train", clip=clip, label=lua.parent.parent.name)


def load(config: DataConfig, on_skip: OnSkip | None = None) -> DataSet:
    """The clips of the package, some captions held out. Raises ConfigError where it is not there, and DataError as data/media.py does."""
    folder = debian.folder(PACKAGE, INSIDE, config.path)
    found = list(rows(folder, config))
    if not found:
        raise DataError(f"{folder}: no clip in it; expected init.lua beside its sheets", kind="missing")
    split_of = media.held_out([row.caption for row in found], config)
    placed = [dataclasses.replace(row, split=split_of.get(row.caption, "train")) for row in found]
    return media.data_set("sprites", placed, config, Skips(config.on_error, on_skip))
