"""Writes a trained model for transformers or for open_clip: weights, config, tokenizer, model card.

    python -m launch.export --workdir=runs/vit --format=hf --out=exported
    python -m launch.export --workdir=runs/vit --format=open_clip --out=exported_open_clip --step=600

--workdir  folder of a run of launch.train whose towers have CLIP's form, such as one of configs/emoji_vit_bacl.py.
--format   hf: CLIPModel.from_pretrained(OUT) loads it; open_clip: create_model_and_transforms("local-dir:OUT") does.
--out      the folder to write; one that is there is refused, unless --replace is given.
--step     the checkpoint; the newest readable one if left out.

The parameters are those that evaluation uses: averaged, where the run keeps an average. The layers of BNS and CLA have no place there.
Exit codes: 0 done, 2 bad usage, or a model with a part that the format lacks; else a crash.
"""

import numpy as np
from absl import flags

from bacl_jax.config import ConfigError
from bacl_jax.eval.restore import restore
from bacl_jax.interop import card, export
from bacl_jax.mesh import to_host
from bacl_jax.partition import named_leaves
from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
FORMAT = flags.DEFINE_string("format", None, "hf or open_clip.")
OUT = flags.DEFINE_string("out", None, "Folder to write.")
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest if left out.")
REPLACE = flags.DEFINE_bool("replace", False, "Replace a folder that is there.")


def main() -> None:
    if WORKDIR.value is None or OUT.value is None:
        raise ConfigError("--workdir and --out must be given: --workdir=runs/vit --format=hf --out=exported; --help tells more")
    if FORMAT.value not in export.LAYOUTS:
        raise ConfigError(f"--format={FORMAT.value}: must be one of {', '.join(export.LAYOUTS)}")
    found = restore(WORKDIR.value, STEP.value)
    export.check(found.config, found.tokenizer, FORMAT.value)
    params = to_host({name: found.params[name] for name in ("towers", "log_scale")})
    count = sum(np.size(leaf) for _, leaf in named_leaves(params))
    text = card.card(found.config, found.step, FORMAT.value, card.read_results(WORKDIR.value, found.step), count)
    out = export.write(OUT.value, found.config, found.tokenizer, params, FORMAT.value, text, replace=REPLACE.value)
    print(f"step {found.step}, {count:,} parameters:")
    print("\n".join(str(path) for path in sorted(out.iterdir())))


if __name__ == "__main__":
    command.run(main, __doc__)
