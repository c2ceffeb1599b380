"""Fetches a Debian package of data with apt and unpacks it into the user's cache, without installing it and without root.

    python -m launch.fetch --package=tuxpaint-stamps-default

--package  tuxpaint-stamps-default (data.kind = "stamps", 160 MB) or widelands-data (data.kind = "sprites", 380 MB), or both, with a comma
"""

from absl import flags

from bacl_jax.config import ConfigError
from bacl_jax.data import debian, sprites, stamps
from launch import command

PACKAGE = flags.DEFINE_list("package", [], "Packages.")


def main() -> None:
    unknown = sorted({*PACKAGE.value} - {stamps.PACKAGE, sprites.PACKAGE})
    if unknown or not PACKAGE.value:
        raise ConfigError(f"--package={','.join(unknown)}: allowed: {stamps.PACKAGE}, {sprites.PACKAGE}")
    for package in PACKAGE.value:
        print(debian.fetch(package))


if __name__ == "__main__":
    command.run(main, __doc__)
