"""Data sets that tensorflow-datasets has prepared as ArrayRecord, read without TensorFlow.

Needs requirements-tfds.txt. Pictures are handed on as they are stored, so nothing of TensorFlow is touched. Preparing a data set
(`tfds.builder(...).download_and_prepare(file_format="array_record")`) is TFDS's own matter, and nothing is downloaded here.
"""

import bisect
import importlib
import itertools
from pathlib import Path
from typing import Any

from bacl_jax.data.stream import Record
from bacl_jax.errors import DataError

_SETTINGS = (
    ValueError,
    NotImplementedError,
    AssertionError,
    OSError,
    KeyError,
    TypeError,
)  # what TFDS raises where a data set is not usable


class TfdsRows:
    """Rows of a split, in the order in which they are stored (bacl_jax.data.stream.Records).

    name:            as TFDS names it, coco_captions/2014:1.1.0 for one, or the folder that holds its dataset_info.json.
    split:           train, validation, "train[:90%]" and so on.
    caption_feature: a text or a list of texts; "captions/text" for a feature inside another. Of a ClassLabel, the class's name.
    key_feature:     a text or a whole number; rows with one key hold the same picture. None: every row is its own, "<name>/<split>#<row>".
    data_dir:        where TFDS keeps its data sets; None: ~/tensorflow_datasets.

    Cost: opening reads the folder's description; a file is opened by the first row that is read from it, and stays open. A look-up is
    one read at a known place.

    Raises DataError with file and row of the split (the first is 1) named. Kinds: missing (the package, the data set, the split, a file, a
    picture), type (prepared in another format), columns (no such feature, or one that holds something else), encoding, empty_caption,
    syntax and checksum (damaged), empty.
    """

    def __init__(
        self,
        name: str,
        split: str,
        image_feature: str = "image",
        caption_feature: str = "caption",
        data_dir: str | None = None,
        *,
        key_feature: str | None = None,
    ) -> None:
        tfds = _package("tensorflow_datasets")
        self._place = f"{name}/{split}"
        self._image, self._caption, self._key = image_feature, caption_feature, key_feature
        self._damage = (RuntimeError, ValueError, IndexError, OSError, _package("google.protobuf.message").DecodeError)
        try:
            self._open(tfds, name, split, data_dir)
        except ImportError as error:
            raise DataError(f"{self._place}: {error}; run: pip install -r requirements-tfds.txt", kind="missing") from error
        except DataError:
            raise
        except _SETTINGS as error:
            kind = "type" if isinstance(error, NotImplementedError) else "missing"
            remedy = 'prepare it with download_and_prepare(file_format="array_record")'
            raise DataError(f"{self._place}: {_first_sentence(error)}; {remedy}, and name its data_dir", kind=kind) from error

    def _open(self, tfds: Any, name: str, split: str, data_dir: str | None) -> None:
        in_folder = (Path(name) / "dataset_info.json").is_file()
        builder = tfds.builder_from_directory(name) if in_folder else tfds.builder(name, data_dir=data_dir)
        features = builder.info.features
        self._check_features(list(features))
        label = features[self._caption.split("/")[0]]
        self.classes: list[str] | None = list(label.names) if isinstance(label, tfds.features.ClassLabel) else None
        files = builder.info.splits[split].file_instructions
        self._files, self._ends = [str(each.filename) for each in files], list(itertools.accumulate(each.take for each in files))
        if len(self) == 0:
            raise DataError(f"{self._place}: the split has no row", kind="empty")
        pictures = [feature for feature, form in features.items() if isinstance(form, tfds.features.Image)]
        self._rows = builder.as_data_source(split, decoders={feature: tfds.decode.SkipDecoding() for feature in pictures})

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard = self._files[bisect.bisect_right(self._ends, index)]
        place = f"{shard}, row {index + 1} of {self._place}"
        try:
            row = self._rows[index]
        except self._damage as error:
            kind = "missing" if not Path(shard).exists() else "checksum" if "hash mismatch" in str(error) else "syntax"
            raise DataError(
                f"{place}: cannot be read ({_first_sentence(error)}); prepare the data set again", kind=kind, shard=shard
            ) from error
        try:
            return self._record(row, index)
        except DataError as error:
            raise DataError(f"{place}: {error}", kind=error.kind, shard=shard) from error

    def _check_features(self, found: list[str]) -> None:
        for feature in filter(None, (self._image, self._caption, self._key)):
            if feature.split("/")[0] not in found:
                names = ", ".join(map(repr, found))
                raise DataError(f"{self._place}: no feature {feature!r}; found: {names}; name image and caption feature", kind="columns")

    def _class(self, label: int) -> str:
        assert self.classes is not None
        if not 0 <= label < len(self.classes):
            raise DataError(f"feature {self._caption!r} holds {label}, expected a class from 0 to {len(self.classes) - 1}", kind="columns")
        return self.classes[label]

    def _record(self, row: dict[str, Any], index: int) -> Record:
        image = _inside(row, self._image)
        if not isinstance(image, bytes):
            raise DataError(f"feature {self._image!r} holds a {type(image).__name__}, expected a picture as stored", kind="columns")
        if not image:
            raise DataError(f"feature {self._image!r} holds no bytes", kind="missing")
        caption = _inside(row, self._caption)
        if self.classes is not None:
            caption = self._class(int(caption))
        texts = [caption] if isinstance(caption, (bytes, str)) else caption
        if not isinstance(texts, (list, tuple)) and not hasattr(texts, "tolist"):
            raise DataError(f"feature {self._caption!r} holds a {type(caption).__name__}, expected a text or texts", kind="columns")
        captions = tuple(_text(each, self._caption) for each in texts)
        if not captions:
            raise DataError(f"feature {self._caption!r} holds no text", kind="empty_caption")
        key = _inside(row, self._key) if self._key else None
        named = "" if key is None else str(int(key)) if hasattr(key, "__index__") else _text(key, self._key or "")
        return Record(image, captions, named or f"{self._place}#{index}", self._place)


def _inside(row: Any, path: str) -> Any:
    """The value of a feature inside features: a dict of lists, or a list of dicts, whose values then form a list."""
    for name in path.split("/"):
        try:
            row = [each[name] for each in row] if isinstance(row, (list, tuple)) else row[name]
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"feature {path!r} is not there", kind="columns") from error
    return row


def _text(value: Any, feature: str) -> str:
    if not isinstance(value, (bytes, str)):
        raise DataError(f"feature {feature!r} holds a {type(value).__name__}, expected a text", kind="columns")
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise DataError(f"feature {feature!r} is not UTF-8 ({error})", kind="encoding") from error


def _first_sentence(error: Exception) -> str:
    """TFDS lists possible causes, or all data sets it knows, behind the first one."""
    return next(iter(str(error).splitlines()), "").split(". ")[0] or type(error).__name__


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        found = f"data of kind tfds needs tensorflow-datasets ({error})"
        raise DataError(f"{found}; run: pip install -r requirements-tfds.txt, or pip install bacl_jax[tfds]", kind="missing") from error
