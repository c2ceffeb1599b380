"""Indexes tar shards, so that training reads their rows in any order.

    python -m launch.index --path='shards/{00000..00099}.tar'
    python -m launch.index --path='https://host/shards/{00000..00099}.tar' --out=shards.index --workers=32 --on_error=skip

--path      the shards: a range or list in braces, a pattern with *, or a folder; local, http(s), or any URL that fsspec reads
--out       the index file, local; by default shards.index in the folder of the shards
--workers   processes that read local shards, threads that read remote ones; by default one for each core
--on_error  raise: stop at the first fault; skip: leave out what is bad and count it by kind (docs/data.md)

Reads headers only. A run that was stopped goes on with the same command; shards that the index holds with the same size are not read again.
Exit codes: 0 done, 2 bad usage or data, else a crash.
"""

import os

from absl import flags

from bacl_jax.config import ConfigError
from bacl_jax.data import tar_index
from launch import command

PATH = flags.DEFINE_string("path", None, "The shards.")
OUT = flags.DEFINE_string("out", None, "The index file.")
WORKERS = flags.DEFINE_integer("workers", None, "Processes or threads; one for each core if left out.", lower_bound=1)
ON_ERROR = flags.DEFINE_enum("on_error", "raise", ["raise", "skip"], "What a fault leads to.")


def main() -> None:
    if not PATH.value:
        raise ConfigError("--path must be given, as in --path='shards/{00000..00099}.tar'; --help tells more")
    index = tar_index.build(PATH.value, OUT.value, workers=WORKERS.value or os.cpu_count() or 1, on_error=ON_ERROR.value)
    print(f"{len(index.rows):,} rows in {len(index.shards):,} shards")
    for kind, count in index.left_out.most_common():
        where = [shard for shard in index.shards if kind in shard.left_out]
        print(f"left out, {kind}: {count:,} in {len(where):,} shards, as {where[0].examples[kind]}")


if __name__ == "__main__":
    command.run(main, __doc__)
