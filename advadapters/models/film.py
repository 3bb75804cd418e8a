"""FiLM: features scaled and shifted by what a small network makes of lambda.

Once-for-All Adversarial Training (OAT, Wang et al. 2020) conditions a network on lambda,
the weight of the adversarial loss, and so sets the trade-off at test time. What is said
here of the published code was read there.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy.fft import dct

ENCODINGS = ("none", "onehot", "dct", "random")
SLOPE = 0.01  # of the leaky ReLUs


class Film(NamedTuple):
    """How a network sees lambda.

    lambdas: the values that matrix encodings know. encoding: "none" gives lambda itself,
    the others row j of a matrix for the j-th value: the unit matrix, the discrete cosine
    transform of it, or a random orthogonal one. size: of the matrix. center: what is
    added to the scale: the published code, for batch norm, has 0; for a ViT, whose layer
    norms come before every branch, we take 1, so that the network starts as without FiLM.
    """

    lambdas: tuple[float, ...]
    encoding: str
    size: int
    center: float


@functools.cache  # as flax asks for it in every pass that it traces
def encoding_matrix(film):
    """float32 [lambdas, size]: the first rows of the encoding's matrix."""
    unit = np.eye(film.size)
    if film.encoding == "dct":
        unit = np.asarray(dct(unit, axis=0))
    elif film.encoding == "random":
        # The legacy generator: its stream is frozen. (The checkpoint has the matrix too.)
        unit, _ = np.linalg.qr(np.random.RandomState(0).randn(film.size, film.size))
    return unit[: len(film.lambdas)].astype(np.float32)


class Encode(nn.Module):
    """lambda [B] -> [B, 1] for "none", else rows [B, size] of the leaf "matrix".

    A lambda that is not in the list gets the row of the nearest value; whoever takes
    lambdas from users refuses it, see `OAT.cases_at`.
    """

    film: Film

    @nn.compact
    def __call__(self, lam):
        if self.film.encoding == "none":
            return lam[:, None]
        matrix = self.param("matrix", lambda _: jnp.asarray(encoding_matrix(self.film)))
        known = jnp.array(self.film.lambdas)
        return matrix[jnp.argmin(jnp.abs(lam[:, None] - known), axis=1)]


class FiLM(nn.Module):
    """x [B, ..., C] -> x * (center + gamma) + beta, both [B, C] of the condition [B, E].

    A hidden layer of 2 C with a leaky ReLU, then 2 C values: gamma, then beta, each
    through a leaky ReLU again.
    """

    center: float
    dtype: Any

    @nn.compact
    def __call__(self, x, condition):
        width = 2 * x.shape[-1]
        hidden = nn.leaky_relu(dense(condition, width, "fc1"), SLOPE)
        made = nn.leaky_relu(dense(hidden, width, "fc2"), SLOPE)
        gamma, beta = jnp.split(
            made.reshape(x.shape[0], *[1] * (x.ndim - 2), width).astype(self.dtype), 2, -1
        )
        return x * (self.center + gamma) + beta


def dense(x, features, name):
    """x [B, D] -> [B, features]; starts as in torch, uniform within 1 / sqrt(D)."""

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1, 1) / np.sqrt(x.shape[-1])

    return nn.Dense(features, kernel_init=uniform, bias_init=uniform, name=name)(x)


def filmed(film, x, condition, name):
    """x through the FiLM of the norm `name`, or x itself where there is no condition."""
    if condition is None:
        return x
    return FiLM(film.center, x.dtype, name=f"{name}_film")(x, condition)


def condition_of(film, lam, batch):
    """The condition [B, E] for lambda ([] or [B]), None for a network without FiLM.

    To be called inside `nn.compact`; the module is "lambda_encoding". Raises ValueError
    if a network with FiLM is not told lambda.
    """
    if film is None:
        return None
    if lam is None:
        raise ValueError("this network is conditioned on lambda: give lam")
    lam = jnp.broadcast_to(jnp.asarray(lam, jnp.float32), (batch,))
    return Encode(film, name="lambda_encoding")(lam)
