"""The code blocks of the documents that take long, after the others of their page; with a tiny model where they say so."""

import pytest
import tiny
from test_docs import ROOT
from test_document import RUN

from benchmarks.document import blocks, prepare, run


@pytest.mark.parametrize("name", [name for name in RUN if any(block.long for block in blocks(ROOT / name))])
def test_what_takes_long_runs(name, tmp_path):
    prepare(tmp_path)
    for block in blocks(ROOT / name):
        if block.run:
            run(block, tmp_path, tiny.FLAGS)
