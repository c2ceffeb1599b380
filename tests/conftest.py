"""Eight fake CPU devices, no silent broadcasting between ranks, and every annotated shape of the package checked at run time."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of a test's time is the compiler's. LLVM's optimisations and the newer emitters, which take twice as long, change neither the program
# that XLA made nor the memory it plans. A collective that waits 40 s for a device which gets no core would end the process.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # shared with the processes that the tests start: many run the same program
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="bacl_jax-test-cache-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

os.environ["NPROC"] = "64"  # as bacl_jax/mesh.py:spare_threads does, which comes too late here

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_compilation_cache", False)  # it is for the processes of one device: see bacl_jax/mesh.py:compile_anew
jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("bacl_jax", "typechecking.check")
