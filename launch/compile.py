"""Compiles a config's train step ahead of time for a TPU topology, without a TPU, and tells what it needs on each chip.

    python -m launch.compile --config=configs/laion400m_vitb16_bacl.py --topology=v5e:16x16
    python -m launch.compile --config=configs/laion400m_vitb16_bacl.py --topology=v5e:8x8 --out=v5e.json --config.train.batch_size=8192

--config    a file with get_config(), see configs/; its fields are set by --config.<field>=<value>. No data is read.
--topology  a family of v4, v5e, v5p, v6e and the shape of the slice, of two dimensions for v5e and v6e and of three for v4 and v5p:
            v5e:16x16, v5p:4x4x4
--out       JSON file that the report is written to

Needs libtpu: pip install -r requirements-tpu.txt. Where the step does not fit, train.micro_batches is doubled until it does, and the report
written is still that of the config as given. A compile takes minutes. Exit codes: 0 done, 2 bad usage or config, else a crash.
"""

import json
import os
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from bacl_jax.config import ConfigError, from_config_dict
from bacl_jax.train import ahead
from launch import command, compile_page

CONFIG = config_flags.DEFINE_config_file("config", help_string="Python file with get_config().")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU family and slice, as in v5e:16x16.")
OUT = flags.DEFINE_string("out", None, "JSON file that the report is written to.")


def main() -> None:
    if CONFIG.value is None or TOPOLOGY.value is None:
        raise ConfigError("--config and --topology must be given: --config=configs/laion400m_vitb16_bacl.py --topology=v5e:16x16")
    if OUT.value:
        compile_page.check_writable(Path(OUT.value))
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu asks no cloud server what machine it is on
    settings = CONFIG.value
    settings.data.path = settings.data.path or "none is read"  # a manifest without a path is refused, and none is needed here
    config, given = from_config_dict(settings), None
    for tried, report, took in ahead.reports(config, TOPOLOGY.value):
        compile_page.show(tried, report, took)
        given = given or report
        if OUT.value and given is report:
            Path(OUT.value).write_text(json.dumps(report, indent=1) + "\n")
    if tried is not config:
        fits = f"fits with --config.train.micro_batches={tried.train.micro_batches}" if report["fits"] else "fits with no micro-batches"
        print(f"does not fit as given; {fits}")


if __name__ == "__main__":
    command.run(main, __doc__)
