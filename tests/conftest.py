"""Eight fake devices for every test: one device is the special case, not the rule.

Programs are compiled without optimization, in one piece, and, where XLA still has them, by
its older emitters (seen: 60 to 95% of the time): the shapes are tiny, and compiling is what
the tests spend their time on. What one test has compiled is kept for the others of the same
session, in this process, its neighbours and the commands that they start.
"""

import atexit
import gc
import os
import shutil
import tempfile
from importlib import metadata

os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the workers find their parent's
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="programs-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

# Two workers have two cores: numpy's threads would spin while they wait for each other
# (seen: 0.5 CPU seconds for a QR of 128 x 128 instead of 0.002).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if metadata.version("jaxlib").startswith("0.10."):  # later ones may not know them
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"

# Tracing makes objects by the million and most of them stay: looking for cycles among them
# as often as Python does costs 5% of the time.
gc.set_threshold(200_000, 50, 50)

import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Every call of an annotated function checks types and shapes, from here on.
jaxtyping.install_import_hook("advadapters", "typechecking.check")

# The others are imported where they are needed: xdist's first process runs no test.


@pytest.fixture
def mesh():
    """All eight devices."""
    from advadapters import meshes

    return meshes.make()


@pytest.fixture
def one_device():
    """A mesh of one device."""
    import jax

    from advadapters import meshes

    return meshes.make(jax.devices()[:1])


@pytest.fixture
def rng():
    """numpy's generator, seeded."""
    import numpy as np

    return np.random.default_rng(0)
