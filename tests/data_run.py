"""One of several hosts that read the batches of many data sets, for long/test_exact.py.

python data_run.py FOLDER OUT HOSTS HOST FIRST END

FOLDER/<name>.json is the config of one data set. For each step from FIRST until END and each data set a line goes to OUT: name, step, the
rows of this host, and a digest of what it read for each (ids, picture, tokens).
"""

import hashlib
import json
import sys
from pathlib import Path

from bacl_jax import data
from bacl_jax.config import from_config_dict


def pipelines(folder, hosts, host, first):
    for path in sorted(Path(folder).glob("*.json")):
        config = from_config_dict(json.loads(path.read_text()))
        dataset = data.load(config.data)
        tokenizer = data.Tokenizer.train(["a caption 1 2 3"], config.data)
        yield path.stem, data.batches(dataset, tokenizer, config, start_step=first, shard=((host,), hosts))


def digest(batch):
    parts = (batch.caption_id, batch.anchor_id, *(tokens.values for _, tokens in sorted(batch.inputs.items())))
    return [hashlib.sha256(b"".join(part[row].tobytes() for part in parts)).hexdigest()[:16] for row in range(len(batch.index))]


def main(folder, out, hosts, host, first, end):
    with open(out, "a") as file:
        running = dict(pipelines(folder, hosts, host, first))
        for step in range(first, end):
            for name, batches in running.items():
                found, batch = next(batches)
                assert found == step
                print(json.dumps([name, step, batch.index.tolist(), digest(batch)]), file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
