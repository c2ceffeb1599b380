"""Eight fake CPU devices, no silent broadcasting between ranks, and every annotated shape of the package checked at run time."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("bacl_jax", "typechecking.check")
