"""The run-time checker of annotations under pytest: beartype, where an int passes for a float as in PEP 484."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
