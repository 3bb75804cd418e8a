"""FiLM: features scaled and shifted by what a small network makes of lambda.

Once-for-all adversarial training (OAT, Wang et al. 2020) conditions a network on lambda,
the weight of the adversarial loss, and so sets the trade-off at test time. What is said
here of the published code was read in that code.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.fft import dct

from advadapters.shapes import AnyArray, Float, Num, PRNGKey

Condition = Float[AnyArray, "B E"]  # what a network sees of lambda

ENCODINGS = ("none", "onehot", "dct", "random")
SLOPE = 0.01  # of the leaky ReLUs


class Film(NamedTuple):
    """How a network sees lambda.

    Attributes:
      lambdas: the values that matrix encodings know.
      encoding: in ENCODINGS. "none" gives lambda itself. The others give row j of a matrix
        for the j-th value: of the unit matrix, of its discrete cosine transform, or of a
        random orthogonal matrix.
      size: the number of columns of the matrix.
      center: what is added to the scale. The published code, for batch norm, has 0. For a
        ViT, whose layer norms come before every branch, we take 1, so that the network
        starts as without FiLM.
    """

    lambdas: tuple[float, ...]
    encoding: str
    size: int
    center: float


@functools.cache  # as flax asks for it in every pass that it traces
def encoding_matrix(film: Film) -> Float[np.ndarray, "lambdas size"]:
    """The first rows of the encoding's matrix, one for each lambda, in float32."""
    unit = np.eye(film.size)
    if film.encoding == "dct":
        unit = np.asarray(dct(unit, axis=0))
    elif film.encoding == "random":
        # The legacy generator: its stream is frozen. (The checkpoint has the matrix too.)
        unit, _ = np.linalg.qr(np.random.RandomState(0).randn(film.size, film.size))
    return unit[: len(film.lambdas)].astype(np.float32)


class Encode(nn.Module):
    """The encoding of lambda [B]: [B, 1] for "none", else rows [B, size] of a matrix.

    The matrix is the leaf "matrix". A lambda that is not in the list gets the row of the
    nearest value. Those that users give are refused before, see `OAT.cases_at`.
    """

    film: Film

    @nn.compact
    def __call__(self, lam: Float[AnyArray, " B"]) -> Condition:
        if self.film.encoding == "none":
            return lam[:, None]
        matrix = self.param("matrix", lambda _: jnp.asarray(encoding_matrix(self.film)))
        known = jnp.array(self.film.lambdas)
        return matrix[jnp.argmin(jnp.abs(lam[:, None] - known), axis=1)]


class FiLM(nn.Module):
    """x * (center + gamma) + beta, where gamma and beta [B, C] depend on the condition.

    They are what two dense layers make of it, each with 2 C outputs and a leaky ReLU. The
    first C outputs of the second layer are gamma, the others beta.
    """

    center: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "B ... C"], condition: Condition
    ) -> Float[AnyArray, "B ... C"]:
        width = 2 * x.shape[-1]
        hidden = nn.leaky_relu(_dense(condition, width, "fc1"), SLOPE)
        outputs = nn.leaky_relu(_dense(hidden, width, "fc2"), SLOPE).astype(self.dtype)
        outputs = outputs.reshape(x.shape[0], *[1] * (x.ndim - 2), width)
        gamma, beta = jnp.split(outputs, 2, -1)
        return x * (self.center + gamma) + beta


def _dense(
    x: Float[AnyArray, "B D"], features: int, name: str
) -> Float[AnyArray, "B {features}"]:
    """A dense layer that starts as in torch, uniform within 1 / sqrt(D)."""

    def uniform(key: PRNGKey, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
        return jax.random.uniform(key, shape, dtype, -1, 1) / np.sqrt(x.shape[-1])

    return nn.Dense(features, kernel_init=uniform, bias_init=uniform, name=name)(x)


def filmed(
    film: Film | None,
    x: Float[AnyArray, "B ... C"],
    condition: Condition | None,
    name: str,
) -> Float[AnyArray, "B ... C"]:
    """x through the FiLM of the norm `name`, or x itself where there is no condition."""
    if film is None or condition is None:
        return x
    return FiLM(film.center, x.dtype, name=f"{name}_film")(x, condition)


def condition_of(
    film: Film | None, lam: float | Num[AnyArray, "..."] | None, batch: Any
) -> Condition | None:
    """What a network sees of lambda, None for a network without FiLM.

    It is called inside `nn.compact`, and the module is named "lambda_encoding".

    Args:
      film: how the network is conditioned.
      lam: lambda, [] or [B].
      batch: the number B of images, a symbol where batches of any size are exported.

    Raises:
      ValueError: a network with FiLM gets no lambda.
    """
    if film is None:
        return None
    if lam is None:
        raise ValueError("this network is conditioned on lambda: give lam")
    lam = jnp.broadcast_to(jnp.asarray(lam, jnp.float32), (batch,))
    return Encode(film, name="lambda_encoding")(lam)
