"""The files of compositional benchmarks, as their authors publish them: SugarCrepe, SugarCrepe++, Winoground, ARO, VALSE.

Each reader takes a file or a folder of them and gives its entries. A file that has not the published form is a DataError of one line that
names file, entry and field. No picture is opened here.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bacl_jax.errors import DataError
from bacl_jax.eval.encoder import Shown

ARO_PARTS = {"visual_genome_relation": "relation", "visual_genome_attribution": "attribution"}
FAR = 100_000  # pixels that a box may begin left of the picture, or above it; what lies outside is white
VOTES = 2  # VALSE: annotators of three who chose the caption and not the foil, at least


@dataclasses.dataclass(frozen=True)
class Entry:
    """One question of a benchmark.

    file, key: where it stands. pictures, captions: in the order in which the benchmark names them.
    part, category: what it is about, coarse and fine; "" where the benchmark does not say.
    """

    file: str
    key: str
    pictures: tuple[Shown, ...]
    captions: tuple[str, ...]
    part: str = ""
    category: str = ""


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """An entry that is not scored, and why: `reason` in a word, `error` in a sentence."""

    file: str
    key: str
    picture: str
    reason: str
    error: str


Read = tuple[list[Entry], list[LeftOut]]


def counted(left_out: Sequence[LeftOut]) -> dict[str, float]:
    """`left_out/<reason>`: how many."""
    reasons = Counter(one.reason for one in left_out)
    return {f"left_out/{reason}": count for reason, count in sorted(reasons.items())}


class Fields:
    """The fields of one entry of a JSON file, checked as they are asked for."""

    def __init__(self, path: Path, key: str, record: Any):
        self.path, self.key, self.record = path, key, record
        if not isinstance(record, dict):
            raise self.wrong(f"is a {type(record).__name__}", "must be an object of fields")

    def wrong(self, found: str, remedy: str, field: str = "") -> DataError:
        place = f"{self.path}, entry {self.key}" + (f", field {field!r}" if field else "")
        return DataError(f"{place}: {found}; {remedy}", kind="format")

    def value(self, field: str) -> Any:
        if field not in self.record:
            near = ", ".join(map(str, self.record)) or "none"
            raise self.wrong(f"missing; its fields are {near}", "is the file of this benchmark?", field)
        return self.record[field]

    def text(self, field: str) -> str:
        value = self.value(field)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(f"{value!r}", "must be a text that is not empty", field)
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self.wrong(f"{value!r}", "must be Unicode without lone surrogates", field)
        return value

    def optional_text(self, field: str) -> str:
        return self.text(field) if self.record.get(field) else ""

    def number(self, field: str, value: Any, least: int) -> int:
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
        if not whole or value < least:
            raise self.wrong(f"{value!r}", f"must be a whole number >= {least}", field)
        return int(value)


def sugarcrepe(path: Path) -> Read:
    """One JSON file a category, {"0": {"filename", "caption", "negative_caption"}, ...}. Captions: the right one, the wrong one."""
    return [_with_captions(fields, ("caption", "negative_caption")) for fields in _entries(path)], []


def sugarcrepe_pp(path: Path) -> Read:
    """As `sugarcrepe`, a list or an object, with "caption2" besides. Captions: both right ones, the wrong one."""
    return [_with_captions(fields, ("caption", "caption2", "negative_caption")) for fields in _entries(path)], []


def winoground(path: Path) -> Read:
    """JSON lines of {"id", "image_0", "image_1", "caption_0", "caption_1", "tag", "collapsed_tag", ...}; image_i shows caption_i.

    The category is `collapsed_tag` (Object, Relation, Both), where there is one, else `tag`. An image's name has no ending in the published
    file: .png is then added, or .jpg.
    """
    entries = []
    for fields in _lines(path / "examples.jsonl" if path.is_dir() else path):
        names = [fields.text(f"image_{i}") for i in (0, 1)]
        pictures = tuple(Shown((name,) if Path(name).suffix else (f"{name}.png", f"{name}.jpg")) for name in names)
        category = fields.optional_text("collapsed_tag") or fields.optional_text("tag")
        captions = (fields.text("caption_0"), fields.text("caption_1"))
        entries.append(Entry(str(fields.path), fields.key, pictures, captions, category=category))
    return entries, []


def aro(path: Path) -> Read:
    """visual_genome_relation.json, visual_genome_attribution.json or a folder with one or both.

    Lists of {"image_path", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "true_caption", "false_caption", ...}, with "relation_name" or with two
    "attributes", the category. The picture is the part in the box. Captions: the true one, the false one.
    """
    entries = []
    for fields in _entries(path, tuple(ARO_PARTS)):
        part = ARO_PARTS[fields.path.stem]
        x, y = (fields.number(name, fields.value(name), -FAR) for name in ("bbox_x", "bbox_y"))
        width, height = (fields.number(name, fields.value(name), 1) for name in ("bbox_w", "bbox_h"))
        shown = Shown((fields.text("image_path"),), (x, y, width, height))
        captions = (fields.text("true_caption"), fields.text("false_caption"))
        category = fields.text("relation_name") if part == "relation" else _attributes(fields)
        entries.append(Entry(str(fields.path), fields.key, (shown,), captions, part, category))
    return entries, []


def _attributes(fields: Fields) -> str:
    found = fields.value("attributes")
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(one, str) and one for one in found):
        raise fields.wrong(f"{found!r}", "must be a list of two texts", "attributes")
    return "_".join(found)


def valse(path: Path) -> Read:
    """One JSON file a piece, {"<id>": {"image_file", "dataset", "caption", "foil", "mturk": {"caption": votes, ...}, ...}, ...}.

    Captions: the right one, the foil. As the authors ask, an entry counts only where two of three annotators chose the caption and not the
    foil; others are left out as "not_validated". The category is the file's name: two files of one phenomenon are two pieces of VALSE. The
    picture is `dataset`/`image_file` where that is there, else `image_file`: pieces take theirs from different collections.
    """
    entries, left_out = [], []
    for fields in _entries(path):
        votes = fields.value("mturk")
        if not isinstance(votes, dict) or "caption" not in votes:
            raise fields.wrong(f"{votes!r}", "must be an object with the number `caption`", "mturk")
        count = fields.number("mturk.caption", votes["caption"], 0)
        name, captions = fields.text("image_file"), (fields.text("caption"), fields.text("foil"))
        if count < VOTES:
            error = f"{count} of 3 annotators chose the caption and not the foil; {VOTES} are needed"
            left_out.append(LeftOut(str(fields.path), fields.key, name, "not_validated", error))
            continue
        dataset = fields.optional_text("dataset")
        shown = Shown((f"{dataset}/{name}", name) if dataset else (name,))
        entries.append(Entry(str(fields.path), fields.key, (shown,), captions, category=fields.path.stem))
    return entries, left_out


READERS: dict[str, Callable[[Path], Read]] = {
    "sugarcrepe": sugarcrepe,
    "sugarcrepe_pp": sugarcrepe_pp,
    "winoground": winoground,
    "aro": aro,
    "valse": valse,
}


def _with_captions(fields: Fields, names: tuple[str, ...]) -> Entry:
    shown = Shown((fields.text("filename"),))
    return Entry(str(fields.path), fields.key, (shown,), tuple(map(fields.text, names)), category=fields.path.stem)


def _entries(path: Path, stems: tuple[str, ...] = ()) -> Iterator[Fields]:
    """The entries of a JSON file, or of each of a folder in the order of their names; with `stems`, only of files with these names."""
    if path.is_dir():
        files = sorted(file for file in path.glob("*.json") if not stems or file.stem in stems)
        if not files:
            wanted = " or ".join(f"{stem}.json" for stem in stems) or "a .json file"
            raise DataError(f"{path}: {wanted} is not in this folder; correct the path", kind="missing")
    else:
        files = [path]
        if stems and path.stem not in stems:
            raise DataError(f"{path}: must be named {' or '.join(f'{stem}.json' for stem in stems)}, as published", kind="format")
    for file in files:
        found = parse(read_text(file), str(file))
        if isinstance(found, dict):
            records = list(found.items())
        elif isinstance(found, list):
            records = [(str(number), record) for number, record in enumerate(found)]
        else:
            raise DataError(f"{file}: holds a {type(found).__name__}; must be an object or a list of entries", kind="format")
        if not records:
            raise DataError(f"{file}: has no entry; correct the path", kind="empty")
        yield from (Fields(file, key, record) for key, record in records)


def _lines(path: Path) -> Iterator[Fields]:
    lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: has no entry; correct the path", kind="empty")
    for number, line in lines:
        yield Fields(path, f"of line {number}", parse(line, f"{path}, line {number}"))


def read_text(path: Path) -> str:
    """A file in UTF-8. Raises DataError of kind "missing" or "encoding"."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); correct the path", kind="missing") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8", kind="encoding") from error


def parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not JSON ({error}); download it again", kind="syntax") from error
