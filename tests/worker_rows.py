"""Rows of sources, read by two processes at once, for test_workers.py: `python worker_rows.py spawn|fork KIND=PATH ...`.

Each source is opened and used here before it is handed on. Prints, as JSON, a digest of each row as this process read it, and as the
others did.
"""

import hashlib
import json
import multiprocessing
import sys

from bacl_jax.config import DataConfig
from bacl_jax.data import open_records


def digest(task):
    records, row = task
    return hashlib.sha256(repr(records[row]).encode()).hexdigest()


def main(method, *sources):
    result = {}
    opened = {}
    for source in sources:
        kind, _, path = source.partition("=")
        image = "image" if kind == "tfds" else "jpg"
        opened[kind] = open_records(DataConfig(kind=kind, path=path, image_column=image))
        result[kind] = {"own": [digest((opened[kind], row)) for row in range(len(opened[kind]))]}
    with multiprocessing.get_context(method).Pool(2) as pool:
        for kind, records in opened.items():
            result[kind]["others"] = pool.map(digest, [(records, row) for row in range(len(records))], chunksize=3)
    print(json.dumps(result))


def forked(*sources):
    """The sources are not copied: the children use what was open in their parent, while it reads as well."""
    global inherited
    inherited = {}
    for source in sources:
        kind, _, path = source.partition("=")
        inherited[kind] = open_records(DataConfig(kind=kind, path=path, image_column="image" if kind == "tfds" else "jpg"))
        inherited[kind][0]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        asked = {kind: pool.map_async(_inherited, [(kind, row) for row in range(len(records))]) for kind, records in inherited.items()}
        own = {kind: [digest((records, row)) for row in range(len(records))] for kind, records in inherited.items()}
        print(json.dumps({kind: {"own": own[kind], "others": asked[kind].get(60)} for kind in inherited}))


def _inherited(task):
    kind, row = task
    return digest((inherited[kind], row))


if __name__ == "__main__":
    method, *sources = sys.argv[1:]
    if method == "fork":
        forked(*sources)
    else:
        main(method, *sources)
