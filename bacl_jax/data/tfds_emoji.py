"""The emoji pairs as a data set of tensorflow-datasets, for those who want them in a trainer of their own.

Needs requirements-tfds.txt; no TensorFlow. Features: image (the PNG file as it is), caption (normalised), vendor, and code, its file's
name. The licences that bacl_jax/data/emoji.py names hold for the copy, too.
"""

import importlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bacl_jax.config import DataConfig
from bacl_jax.data import emoji
from bacl_jax.data.source import SPLITS
from bacl_jax.errors import DataError

VERSION = "1.0.0"


def prepare(config: DataConfig, data_dir: Path) -> Path:
    """Write data_dir/emoji_pairs/1.0.0 in ArrayRecord files, and give that folder: bacl_jax.data.tfds_source.TfdsRows reads it.

    Pictures and splits are those of `bacl_jax.data.emoji.load`: vendors, language and hold-out from `config`, the picture files unread
    beyond their bytes. A folder that is there already is kept as it is, so another config needs another data_dir.

    Raises ConfigError and DataError as `load` does, and DataError of kind "missing" without tensorflow-datasets. Cost: 3 s and 13 MB for
    the two open vendors.
    """
    try:
        tfds: Any = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise DataError(f"this needs tensorflow-datasets ({error}); run: pip install -r requirements-tfds.txt", kind="missing") from error
    emoji.check(config)
    folder = Path(config.path) if config.path else emoji.data_folder()[0]
    rows, _ = emoji.read_rows(folder, config.vendors, config.language)
    splits = emoji.split_rows(rows, config)

    with tfds.core.registered.skip_registration():  # a second call in one process makes the class anew
        builder = _builder(tfds, rows, splits)(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _builder(tfds: Any, rows: Sequence[emoji.Row], splits: Sequence[str]) -> Any:
    class EmojiPairs(tfds.core.GeneratorBasedBuilder):
        """Emoji and their names."""

        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> Any:
            text = tfds.features.Text()
            features = {"image": tfds.features.Image(encoding_format="png"), "caption": text, "vendor": text, "code": text}
            return tfds.core.DatasetInfo(
                builder=self, description=f"Emoji and their names. {emoji.LICENCE_NOTE}", features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in ("train", *SPLITS)}

        def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            for row, its_split in zip(rows, splits, strict=True):
                if its_split == split:
                    features = {"image": io.BytesIO(row.content), "caption": row.caption, "vendor": row.vendor, "code": row.code}
                    yield f"{row.vendor}/{row.code}", features

    return EmojiPairs
