"""One of several real processes that take the same steps, for long/test_processes.py: `python process_run.py FOLDER N I PORT DEVICES`.

Each variant of `VARIANTS` takes three steps of the tiny model. FOLDER/<variant>/ gets a checkpoint, FOLDER/<variant>.npz the state, in it
the gradients of the last step, and its metrics. restore-<variant> reads the checkpoint in place of the steps. N = 1 joins nobody.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from bacl_jax.config import MeshConfig
from bacl_jax.config_objective import BNSConfig, CLAConfig
from bacl_jax.mesh import compile_anew, make_mesh, process_blocks, spare_threads, to_global, to_host
from bacl_jax.train import step
from bacl_jax.train.checkpoint import Checkpoints, Position
from bacl_jax.train.processes import compile_together, wait_for_all

STEPS = 3
PLAIN = {"bns": BNSConfig(), "cla": CLAConfig()}
VARIANTS = {  # what differs from the tiny config, the mesh of several devices, and the parts in which they see a batch
    "bacl-ring": ({"contrast": "ring", "tile": 4}, MeshConfig(), 1),
    "bacl-dense": ({"contrast": "dense"}, MeshConfig(fsdp=2, fsdp_floor=64), 1),
    "bacl-chunked": ({"contrast": "chunked", "tile": 8}, MeshConfig(tensor=2), 2),
    "sigmoid-ring": ({"kind": "sigmoid", "contrast": "ring", "tile": 2} | PLAIN, MeshConfig(fsdp=2, tensor=2, fsdp_floor=64), 1),
    "sigmoid-dense": ({"kind": "sigmoid", "contrast": "dense"} | PLAIN, MeshConfig(), 1),
    "infonce-ring": ({"contrast": "ring", "tile": 2} | PLAIN, MeshConfig(fsdp=2, fsdp_floor=64), 2),
    "infonce-dense": ({"contrast": "dense"} | PLAIN, MeshConfig(), 1),
}


def recording_gradients(lr):
    """Gradient descent that keeps the gradients of the last step as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params=None: (jax.tree.map(lambda g: -lr * g, grads), grads),
    )


def trainer_of(name):
    objective, mesh_config, parts = VARIANTS[name]
    config = tiny.config(groups=8, **objective)
    if jax.device_count() > 1:
        config = dataclasses.replace(config, mesh=mesh_config, train=dataclasses.replace(config.train, micro_batches=parts))
    step.make_optimizer = lambda optim, steps: recording_gradients(0.1)
    return step.build(config, tiny.VOCABULARY, make_mesh(config.mesh))


def trained(name, trainer):
    """(state, metrics) after STEPS steps."""
    held, blocks = process_blocks(trainer.mesh)
    rows = np.arange(trainer.config.train.batch_size).reshape(blocks, -1)[list(held)].ravel()
    state, metrics = trainer.init(3), {}
    for number in range(STEPS):
        batch = to_global(trainer.mesh, jax.tree.map(lambda x: x[rows], tiny.batch(number, captions=30)))
        if number == 0:
            compile_together(name, trainer.step, state, batch)
        state, metrics = trainer.step(state, batch)
    return state, metrics


def main(folder, processes, process, port, devices, *names):
    jax.config.update("jax_num_cpu_devices", int(devices))
    spare_threads(int(devices))
    if int(processes) > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process), coordinator_bind_address=f"127.0.0.1:{port}")
    compile_anew()
    for name in names:
        trainer = trainer_of(name.removeprefix("restore-"))
        with Checkpoints(f"{folder}/{name.removeprefix('restore-')}") as checkpoints:
            if name.startswith("restore-"):
                restored = checkpoints.restore(trainer.abstract_state(), 64)
                found = (restored.state, {})
            else:
                found = trained(name, trainer)
                checkpoints.save(found[0], Position(STEPS), (), trainer.config, {})
        leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(to_host(found))}
        if process == "0":
            np.savez(f"{folder}/{name}.npz", **leaves)
    wait_for_all("written")


if __name__ == "__main__":
    main(*sys.argv[1:])
