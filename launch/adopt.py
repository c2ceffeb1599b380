"""Makes a workdir of published weights, with a checkpoint of step 0: what takes a run takes the published model then.

    python -m launch.adopt --path=clip-vit-base-patch32 --workdir=runs/published
    python -m launch.evaluate --workdir=runs/published --tasks=sugarcrepe --config.eval.sugarcrepe.path=sugar-crepe/data

--path     folder of a dual encoder as Hugging Face or open_clip publish it, with its config and its tokenizer.json; package:name/folder is
           one in an installed Python package. Safetensors alone are read.
--workdir  folder to make. One that has a checkpoint is refused.
--config.<field>=<value> sets a field of the config that it gets: --config.data.kind and data.path for tasks on data of your own,
           --config.data.tokenizer_path where the tokenizer is elsewhere, and what the folder does not tell, as model.image.pixels.

The config describes the towers as the folder does. Exit codes: 0 done, 2 bad usage, config or weights, else a crash.
"""

from typing import Any, cast

from absl import flags
from ml_collections import config_flags

from bacl_jax.config import Config, ConfigError, default_config_dict, from_config_dict, to_dict
from bacl_jax.interop import described
from bacl_jax.train.workdir import lock_workdir
from launch import beginning, command

CONFIG = config_flags.DEFINE_config_dict("config", default_config_dict())
PATH = flags.DEFINE_string("path", None, "Folder of the published model.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder to make.")


def main() -> None:
    if PATH.value is None or WORKDIR.value is None:
        raise ConfigError("--path and --workdir must be given: --path=clip-vit-base-patch32 --workdir=runs/published; --help tells more")
    overrides = cast(Any, flags.FLAGS["config"]).override_values
    config = from_config_dict(command.overridden(to_dict(Config()), described(PATH.value, overrides) | overrides))
    with lock_workdir(WORKDIR.value):
        beginning.adopt(config, WORKDIR.value)
    print(f"{WORKDIR.value} holds {PATH.value} as step 0")


if __name__ == "__main__":
    command.run(main, __doc__)
