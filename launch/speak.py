"""Has the captions of the emoji pairs read aloud by eSpeak NG, for configs/emoji_spoken_bacl.py. The speech is synthetic.

    pip install -r requirements-media.txt espeakng-loader
    python -m launch.speak --out=emoji_spoken

--out       folder that is written: pairs.csv, pictures, sounds; it must not be there
--language  of the captions and the voice, as config.data.language
"""

from pathlib import Path

from absl import flags

from bacl_jax import data
from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import speech
from launch import command

OUT = flags.DEFINE_string("out", None, "Folder that is written.")
LANGUAGE = flags.DEFINE_string("language", "en", "Language of the captions and of the voice.")


def main() -> None:
    if OUT.value is None:
        raise ConfigError("--out must be given: --out=emoji_spoken")
    out = Path(OUT.value)
    speech.check(out)
    count = speech.write(data.load(DataConfig(language=LANGUAGE.value)), LANGUAGE.value, out)
    print(f"{out}: {count:,} rows of synthetic speech; --config=configs/emoji_spoken_bacl.py --config.data.path={out / 'pairs.csv'}")


if __name__ == "__main__":
    command.run(main, __doc__)
