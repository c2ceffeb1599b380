"""One of several real processes that take the same steps, for long/test_processes.py: `python process_run.py FOLDER N I PORT DEVICES`.

Each variant of `VARIANTS` takes three steps of the tiny model; process 0 writes FOLDER/<variant>.npz: the state after them, in it the gradients of
the last one, and its metrics. N = 1 joins nobody.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from bacl_jax.config import BNSConfig, CLAConfig, MeshConfig
from bacl_jax.mesh import make_mesh, process_blocks, to_global, to_host
from bacl_jax.train import step
from bacl_jax.train.processes import compile_together, wait_for_all

STEPS = 3
PLAIN = {"bns": BNSConfig(), "cla": CLAConfig()}
VARIANTS = {
    "bacl-ring": ({"contrast": "ring", "tile": 4}, MeshConfig()),
    "bacl-dense": ({"contrast": "dense"}, MeshConfig(fsdp=2, fsdp_floor=64)),
    "sigmoid-ring": ({"kind": "sigmoid", "contrast": "ring", "tile": 2} | PLAIN, MeshConfig(fsdp=2, tensor=2, fsdp_floor=64)),
    "sigmoid-dense": ({"kind": "sigmoid", "contrast": "dense"} | PLAIN, MeshConfig()),
}


def recording_gradients(lr):
    """Gradient descent that keeps the gradients of the last step as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params=None: (jax.tree.map(lambda g: -lr * g, grads), grads),
    )


def trained(name):
    """(state, metrics) on the host after STEPS steps."""
    objective, mesh_config = VARIANTS[name]
    config = tiny.config(groups=4, **objective)
    if jax.device_count() > 1:
        config = dataclasses.replace(config, mesh=mesh_config)
    step.make_optimizer = lambda optim, steps: recording_gradients(0.1)
    mesh = make_mesh(config.mesh)
    trainer = step.build(config, tiny.VOCABULARY, mesh)
    held, blocks = process_blocks(mesh)
    rows = np.arange(config.train.batch_size).reshape(blocks, -1)[list(held)].ravel()
    state, metrics = trainer.init(3), {}
    for number in range(STEPS):
        batch = to_global(mesh, jax.tree.map(lambda x: x[rows], tiny.batch(number, captions=30)))
        if number == 0:
            compile_together(name, trainer.step, state, batch)
        state, metrics = trainer.step(state, batch)
    return to_host((state, metrics))


def main(folder, processes, process, port, devices, *names):
    jax.config.update("jax_num_cpu_devices", int(devices))
    if int(processes) > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process), coordinator_bind_address=f"127.0.0.1:{port}")
    for name in names:
        leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(trained(name))}
        if process == "0":
            np.savez(f"{folder}/{name}.npz", **leaves)
    wait_for_all("written")


if __name__ == "__main__":
    main(*sys.argv[1:])
