"""How exact products are: by default accelerators round the operands of float32 ones."""

import contextlib

import jax
import jax.numpy as jnp

from advadapters.errors import pick

PRECISIONS = {"highest": "highest", "default": None}  # jax's names


def in_precision(precision):
    """A context: products that are traced in it have this precision, of PRECISIONS.

    "highest" is real float32, at three to six times the cost on accelerators; "default"
    changes nothing. What jax makes of these products for a derivative takes their
    precision over, wherever the derivative is taken.
    """
    name = pick(PRECISIONS, precision, "precision")
    return jax.default_matmul_precision(name) if name else contextlib.nullcontext()


def differ(dtype, exact, precision):
    """Whether products of `dtype` as they come are others than those of evaluation.

    exact, precision: the type and precision of these.
    """
    if dtype != exact:
        return True
    # Of float32 operands TPUs round by default to bfloat16, recent GPUs to TF32, CPUs not.
    precise = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    asked = precise in ("highest", "float32")
    rounded = exact == jnp.float32 and jax.default_backend() != "cpu" and not asked
    return rounded and precision != "default"
