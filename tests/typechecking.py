"""The run-time checker of annotations under pytest: beartype, where an int passes for a float as in PEP 484."""

import random

from beartype import BeartypeConf, beartype
from beartype._check.code import codemain

# Which item of a list is checked is drawn by a generator of its own: readers that still run ahead when a test ends must not change the
# state of Python's, which Hypothesis watches in the next.
assert codemain.getrandbits is random.getrandbits
codemain.getrandbits = random.Random().getrandbits
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
