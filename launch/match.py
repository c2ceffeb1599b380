"""Finds captions for the pictures of a manifest that have none, among its rows without a picture, by finished runs; writes the pairs.

    python -m launch.train --config=configs/manifest.py --workdir=runs/a --config.data.path=mixed.csv --config.data.on_error=skip
    python -m launch.train --config=configs/manifest.py --workdir=runs/b --config.data.path=mixed.csv --config.seed=1 ...
    python -m launch.match --workdirs=runs/a,runs/b --manifest=mixed.csv --out=found.csv
    python -m launch.train --config=configs/manifest.py --workdir=runs/c --config.data.path=found.csv

The first runs leave out rows that lack one modality. Two that differ in their seed find fewer wrong captions than one (docs/unpaired.md).

--workdirs      runs of launch.train, separated by commas; their mean cosine decides. The columns of the manifest are those of the first one
--manifest      .csv, .jsonl or .parquet with rows that lack a caption, and rows that lack an image
--out           .csv beside the manifest, since image paths are relative to it: complete rows, and the pictures that got a caption
--share         of the pictures without a caption, the surest, that get one (0.125)
--tau           temperature of the soft assignment, of cosines (0.05)
--truth_column  of the true captions, where they are known: tells how many are found right, and changes nothing else

Exit codes: 0 done, 2 bad usage, config or data, else a crash.
"""

import dataclasses
from pathlib import Path

from absl import flags

from bacl_jax.config import ConfigError
from bacl_jax.eval import found_pairs
from bacl_jax.eval.restore import evaluated_config
from launch import command

WORKDIRS = flags.DEFINE_list("workdirs", None, "Finished runs.")
MANIFEST = flags.DEFINE_string("manifest", None, "Manifest with rows that lack one modality.")
OUT = flags.DEFINE_string("out", None, "Manifest that is written.")
SHARE = flags.DEFINE_float("share", 0.125, "Of the pictures that get a caption.", lower_bound=0.0, upper_bound=1.0)
TAU = flags.DEFINE_float("tau", 0.05, "Temperature of the soft assignment.", lower_bound=1e-4)
TRUTH = flags.DEFINE_string("truth_column", None, "Column of the true captions.")


def main() -> None:
    if not WORKDIRS.value or MANIFEST.value is None or OUT.value is None:
        raise ConfigError(
            "--workdirs, --manifest and --out must be given: --workdirs=runs/first,runs/second --manifest=mixed.csv --out=found.csv"
        )
    read, out = Path(MANIFEST.value), Path(OUT.value)
    if out.suffix != ".csv" or out.resolve() == read.resolve() or out.resolve().parent != read.resolve().parent:
        raise ConfigError(f"--out={out}: must be another .csv in the folder of --manifest={read}, to which image paths are relative")
    data = evaluated_config(WORKDIRS.value[0]).data
    data = dataclasses.replace(data, kind="manifest", path=str(read), truth_column=TRUTH.value)
    found = found_pairs.find(WORKDIRS.value, data, share=SHARE.value, tau=TAU.value, show_progress=True)
    found_pairs.write(found, data, out)
    print(f"{found.summary()}\n{out}")


if __name__ == "__main__":
    command.run(main, __doc__)
