"""How exact matrix products are.

By default accelerators round the operands of float32 products to fewer bits.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp

from advadapters.errors import pick

PRECISIONS = {"highest": "highest", "default": None}  # jax's names


def in_precision(precision: str) -> contextlib.AbstractContextManager[None]:
    """A context in which the products that are traced have this precision.

    The products that jax derives from them for a gradient have it too, wherever the
    gradient is taken.

    Args:
      precision: "highest" for real float32, at three to six times the cost on
        accelerators, or "default" to change nothing.

    Raises:
      UsageError: there is no such precision.
    """
    name = pick(PRECISIONS, precision, "precision")
    return jax.default_matmul_precision(name) if name else contextlib.nullcontext()


def differ(dtype: Any, exact: Any, precision: str) -> bool:
    """Whether products in training differ from those of evaluation.

    Args:
      dtype: the type of the products in training.
      exact: the type of the products in evaluation.
      precision: that of the products in evaluation, see `in_precision`.
    """
    if dtype != exact:
        return True
    # Of float32 operands TPUs round by default to bfloat16, recent GPUs to TF32, CPUs not.
    precise = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    rounds = jax.default_backend() != "cpu" and precise not in ("highest", "float32")
    return exact == jnp.float32 and rounds and precision != "default"
