"""A network that was exported, as `reading` opens it.

What is imported is jax and numpy alone. So annotations tell arrays from other things, and
docstrings their shapes, which are checked here in words that users understand.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.core import Tracer

from advadapters.errors import UsageError

TOLERANCE = 1e-3  # by which logits may differ, see `Exported.check`
ArrayLike = jax.Array | np.ndarray | Sequence[Any]
# A mixture, or lambda.
Knob = Mapping[str, float] | ArrayLike | float | int | np.number | None


class Exported:
    """A network that was exported: images and, where it is not fixed, a mixture in.

    Images are [B, H, W, C], uint8 or floats in [0, 1]; normalisation is inside. A mixture
    is {domain: weight}, weights [K] in the order of the domains, or weights for each image
    [B, K]; they sum to 1. A network that is conditioned on lambda takes lambda in their
    place, a number in [0, 1] or one for each image [B]. Every size of a batch is compiled
    once. Gradients work, and so do `jax.jit` and other transformations of JAX, but for
    gradients of gradients.

    Attributes:
      domains: names of the domains; () where the network is fixed, or goes by lambda.
      lambdas: the lambdas that the network knows, () if it takes any in [0, 1]; None if it
        is not conditioned on lambda.
      classes: names of the classes, or their numbers as text.
      shape: (H, W, C) of an image.
      eps: {domain: [{"attack", "norm", "eps"}]}, what each was trained on.
      metadata: all that the file tells, plain values; "source" says where it is from.
    """

    def __init__(
        self,
        metadata: dict[str, Any],
        parameters: dict[str, np.ndarray],
        shared: export.Exported,
        rows: export.Exported | None = None,
    ) -> None:
        self.metadata = metadata
        self.name: str = metadata["name"]
        self.domains: tuple[str, ...] = tuple(metadata["domains"])
        lambdas = metadata.get("lambdas")
        self.lambdas: tuple[float, ...] | None = None if lambdas is None else tuple(lambdas)
        self.classes: tuple[str, ...] = tuple(metadata["classes"])
        self.shape: tuple[int, ...] = tuple(metadata["image"])
        self.eps: dict[str, list[dict]] = metadata["eps"]
        self._parameters = jax.tree.map(jnp.asarray, parameters)
        self._shared = jax.jit(shared.call)
        self._rows = jax.jit(rows.call) if rows else None

    def __repr__(self) -> str:
        side = "x".join(map(str, self.shape))
        domains = f"domains {', '.join(self.domains)}" if self.domains else self.name
        if self.lambdas is not None:
            domains = "lambda " + (", ".join(map(str, self.lambdas)) or "in [0, 1]")
        return f"Exported({domains}, images {side}, {len(self.classes)} classes)"

    def __call__(self, images: ArrayLike, mixture: Knob = None) -> jax.Array:
        """Logits float32 [B, L]; raises UsageError for other images or mixtures."""
        images = self._read_images(images)
        network = self.logits_fn(mixture)
        mixtures = network.args[1:]
        if mixtures and self._is_by_row(mixtures[0]) and len(mixtures[0]) != len(images):
            what = "mixtures" if self.lambdas is None else "lambdas"
            raise UsageError(f"{len(mixtures[0])} {what} for {len(images)} images")
        return network(images)

    def predict(self, images: ArrayLike, mixture: Knob = None) -> np.ndarray:
        """The number of the likeliest class of each image, int [B]."""
        return np.asarray(jnp.argmax(self(images, mixture), axis=-1))

    def logits_fn(self, mixture: Knob = None) -> jax.tree_util.Partial:
        """The network at a mixture as a pure function of float images, for attacks."""
        weights = self._read_mixture(mixture)
        if weights is None:
            return jax.tree_util.Partial(self._shared, self._parameters)
        program = self._rows if self._is_by_row(weights) else self._shared
        return jax.tree_util.Partial(program, self._parameters, weights)

    def _is_by_row(self, knob: Any) -> bool:
        """Whether there is a mixture or lambda for each image."""
        return knob.ndim == (2 if self.lambdas is None else 1)

    def _read_images(self, images: ArrayLike) -> Any:
        if not isinstance(images, jax.Array):
            images = np.asarray(images)
            if np.issubdtype(images.dtype, np.floating):
                images = images.astype(np.float32)
        if images.ndim == 3 and self.shape[2] == 1:
            images = images[..., None]
        if images.shape[1:] != self.shape or not len(images):
            raise UsageError(
                f"images must be [B, {', '.join(map(str, self.shape))}] for this network, "
                f"got {list(images.shape)}: resize them"
            )
        if images.dtype not in (np.float32, np.uint8):
            raise UsageError(f"images must be floats or uint8, got {images.dtype}")
        traced = isinstance(images, Tracer)
        if not traced and images.dtype == np.float32:
            least, most = float(images.min()), float(images.max())
            if not (least >= 0 and most <= 1):
                raise UsageError(
                    f"images must lie in [0, 1], got {least:g} to {most:g}: divide by 255; "
                    "normalisation is inside the network"
                )
        return images if images.dtype == np.float32 else images / np.float32(255)

    def _read_lambda(self, lam: Any) -> Any:
        if lam is None or isinstance(lam, Mapping):
            raise UsageError("this network goes by lambda: give a number in [0, 1]")
        lam = self._as_array(lam)
        if lam.ndim > 1:
            raise UsageError(f"lambda is a number, or one of each image, got {lam.shape}")
        if isinstance(lam, Tracer):
            return lam
        values = np.asarray(lam).reshape(-1)
        known = np.asarray(self.lambdas, np.float32)
        wrong = values[~((values >= 0) & (values <= 1))]
        if not len(wrong) and len(known):
            wrong = values[~np.isin(values, known)]
        if len(wrong):
            words = ", ".join(map(str, self.lambdas or ())) or "any number in [0, 1]"
            raise UsageError(f"lambda {wrong[0]:g}: this network knows {words}")
        return lam

    def _read_mixture(self, mixture: Any) -> Any:
        if self.lambdas is not None:
            return self._read_lambda(mixture)
        count, names = len(self.domains), ", ".join(self.domains)
        if not count:
            if mixture is not None:
                raise UsageError(f"this network is fixed ({self.name}): give no mixture")
            return None
        if mixture is None:
            example = f"{{{self.domains[0]!r}: 1.0}}"
            raise UsageError(f"give a mixture of {names}, such as mixture={example}")
        if isinstance(mixture, Mapping):
            unknown = [name for name in mixture if name not in self.domains]
            if unknown:
                raise UsageError(f"unknown domain {unknown[0]!r}; there are: {names}")
            mixture = [mixture.get(name, 0.0) for name in self.domains]
        mixture = self._as_array(mixture)
        if mixture.ndim not in (1, 2) or mixture.shape[-1] != count:
            raise UsageError(
                f"a mixture has a weight for each of {names}: [{count}], or [B, {count}] "
                f"for one of each image, got {list(mixture.shape)}"
            )
        if not isinstance(mixture, Tracer):
            sums = np.sum(np.asarray(mixture, np.float64), axis=-1)
            if not (np.abs(sums - 1) < 1e-5).all():
                worst = sums.flat[np.argmax(np.abs(sums - 1))]
                raise UsageError(f"weights of a mixture must sum to 1, got {worst:g}")
        return mixture

    def _as_array(self, mixture: Any) -> Any:
        traced = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(mixture))
        try:
            return (jnp if traced else np).asarray(mixture, np.float32)
        except (TypeError, ValueError) as error:
            what = "a mixture is an array of weights"
            what = what if self.lambdas is None else "lambda is a number in [0, 1]"
            raise UsageError(f"{what}: {error}") from None

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Computes logits of stored images again; raises UsageError if they are others.

        arrays: "images" [N, H, W, C], "logits" [M, N, L] and, where the network is not
        fixed, the "mixtures" [M, K] or "lambdas" [M]. Allowed is `TOLERANCE`, times the
        largest logit where that is above 1: this device rounds in another way than the one
        that wrote them.
        """
        mixtures = arrays["mixtures"] if self.domains else arrays.get("lambdas", [None])
        logits = np.stack([np.asarray(self(arrays["images"], w)) for w in mixtures])
        off = np.abs(logits - arrays["logits"]).max()
        if not off <= TOLERANCE * max(1.0, np.abs(arrays["logits"]).max()):
            raise UsageError(
                f"the network computes other logits here than where it was exported, by "
                f"{off:.2g}, on {jax.default_backend()} with jax {jax.__version__}: load "
                "it on another platform, or with check=False"
            )
