"""Indexes tar shards, so that training reads their rows in any order.

    python -m launch.index --path='shards/{00000..00099}.tar'
    python -m launch.index --path='https://host/shards/{00000..00099}.tar' --out=shards.index --workers=32 --on_error=skip
    python -m launch.index --path='shards/{00000..00099}.tar' --convert=array_record --out=records
    python -m launch.index --kind=parquet --path='tables/*.parquet' --image_column=jpg --convert=array_record --out=records
    python -m launch.index --kind=manifest --path=pairs.csv --split_column=split --split=train --convert=array_record --out=records

--path      the shards: a range or list in braces, a pattern with *, or a folder; local, http(s), or any URL that fsspec reads
--out       the index file, local; by default shards.index in the folder of the shards
--workers   processes that read local shards, threads that read remote ones; by default one for each core
--convert   writes all rows to ArrayRecord files with checksums instead, into the folder --out; tar shards must be indexed before
--kind      what is converted: webdataset, parquet, array_record, tfds, manifest or emoji; with --split, --image_column, --caption_column,
            --id_column and --split_column where they have other names
--on_error  raise: stop at the first fault; skip: leave out what is bad and count it by kind (docs/data.md)

Stopped, the same command goes on. Exit codes: 0 done, 2 bad usage or data, else a crash.
"""

import os
from pathlib import Path

from absl import flags

from bacl_jax import data
from bacl_jax.config import ConfigError, from_config_dict
from bacl_jax.data import convert, tar_index
from launch import command

PATH = flags.DEFINE_string("path", "", "The shards.")
OUT = flags.DEFINE_string("out", None, "The index file.")
WORKERS = flags.DEFINE_integer("workers", None, "Processes or threads; one for each core if left out.", lower_bound=1)
ON_ERROR = flags.DEFINE_enum("on_error", "raise", ["raise", "skip"], "What a fault leads to.")
CONVERT = flags.DEFINE_enum("convert", None, ["array_record"], "Write all rows in this form.")
KINDS = ["webdataset", "parquet", "array_record", "tfds", "manifest", "emoji"]
KIND = flags.DEFINE_enum("kind", "webdataset", KINDS, "What is converted.")
DEFAULTS = {"split": "train", "image_column": "image", "caption_column": "caption", "id_column": None, "split_column": None}
FIELDS = {name: flags.DEFINE_string(name, default, f"As config.data.{name} of a run.") for name, default in DEFAULTS.items()}


def main() -> None:
    if not PATH.value and KIND.value != "emoji":
        raise ConfigError("--path must be given, as in --path='shards/{00000..00099}.tar'; --help tells more")
    if CONVERT.value is None and KIND.value != "webdataset":
        raise ConfigError(f"--kind={KIND.value} without --convert: only tar shards need an index")
    if CONVERT.value and OUT.value is None:
        raise ConfigError("--out must be given with --convert: the folder of the ArrayRecord files")
    if CONVERT.value:
        fields = {"kind": KIND.value, "path": PATH.value or None, "on_error": ON_ERROR.value}
        config = from_config_dict({"data": fields | {name: column.value for name, column in FIELDS.items()}}).data
        index = convert.write(data.open_records(config), Path(OUT.value or ""), on_error=config.on_error)
    else:
        index = tar_index.build(PATH.value, OUT.value, workers=WORKERS.value or os.cpu_count() or 1, on_error=ON_ERROR.value)
    print("\n".join(index.summary()))


if __name__ == "__main__":
    command.run(main, __doc__)
