"""Doors to the package: thin commands, each with `--help`."""
