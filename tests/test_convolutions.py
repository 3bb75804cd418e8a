"""Convolutions on CPUs: their values and gradients, and how they stand in loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.interpreters import mlir

from advadapters import convolutions, hlo
from advadapters.attacks import ATTACKS

LAST, FIRST = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")


def by_hand(x, w, slope, stride, pad, dilation=1):
    """numpy, float64: a convolution NHWC, and what `slope` [N, H, W, O] gives x and w."""
    grown = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = slope.shape[1:3]
    y, to_x, to_w = np.zeros(slope.shape), np.zeros(grown.shape), np.zeros(w.shape)
    for i, j in np.ndindex(*w.shape[:2]):
        there = np.s_[
            :,
            i * dilation : i * dilation + stride * (rows - 1) + 1 : stride,
            j * dilation : j * dilation + stride * (columns - 1) + 1 : stride,
        ]
        y += grown[there] @ w[i, j]
        to_x[there] += slope @ w[i, j].T
        to_w[i, j] = np.einsum("bhwc,bhwo->co", grown[there], slope)
    inside = slice(pad, -pad if pad else None)
    return y, to_x[:, inside, inside], to_w


def conv(x, w, stride, pad, order=LAST, dilation=1, groups=1):
    """A convolution with the same padding on all sides."""
    return jax.lax.conv_general_dilated(
        x, w, (stride,) * 2, ((pad, pad),) * 2, rhs_dilation=(dilation,) * 2,
        dimension_numbers=order, feature_group_count=groups,
    )  # fmt: skip


def turned(array, order, letters):
    """An array whose axes are named by letters, in another order."""
    return jnp.transpose(array, [letters.index(letter) for letter in order])


def in_loop(function, arguments):
    """What a function gives in the second of two turns of a loop.

    What it is given depends on the turn, so that nothing can be taken out of the loop.
    """

    def turn(i, found):
        return function(*jax.tree.map(lambda x: jnp.where(i > 0, x, 0), arguments))

    made = jax.eval_shape(function, *arguments)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made)
    return jax.lax.fori_loop(0, 2, turn, empty)


def numbers(*shapes):
    """An array of normal numbers for each shape, float32."""
    draw = np.random.default_rng(0)
    return [draw.normal(size=shape).astype(np.float32) for shape in shapes]


def cases(kernel):
    """(stride, padding, dilation, order of axes) of convolutions with this kernel."""
    half = kernel // 2
    yield from ((1, half, 1, LAST), (2, half, 1, LAST), (1, 0, 2, LAST))
    yield from ((2, 0, 1, FIRST), (1, half, 1, FIRST), (2, half, 2, FIRST))


@pytest.mark.parametrize("kernel, sides", [(1, (14, 15)), (3, (14, 15)), (7, (14, 15)),
                                           (3, (2, 3)), (3, (1, 2))])  # fmt: skip
def test_values_and_gradients_are_those_by_hand(kernel, sides):
    """In a loop; strides do not meet some of the sides, windows are larger than others."""
    x, w = numbers((2, *sides, 4), (kernel, kernel, 4, 6))
    chosen = [
        case for case in cases(kernel) if min(sides) + 2 * case[1] > case[2] * (kernel - 1)
    ]

    def one(case, x, w):
        stride, pad, dilation, order = case
        parts = turned(x, order[0], "NHWC"), turned(w, order[1], "HWIO")
        return turned(conv(*parts, stride, pad, order, dilation), "NHWC", order[2])

    def every(x, w, slopes):
        found = []
        for case, slope in zip(chosen, slopes, strict=True):
            y, back = jax.vjp(partial(one, case), x, w)
            found.append((y, *back(slope)))
        return found

    shapes = [jax.eval_shape(partial(one, case), x, w).shape for case in chosen]
    slopes = numbers(*shapes)
    found = jax.jit(partial(in_loop, every))((x, w, slopes))
    for (stride, pad, dilation, _), slope, parts in zip(chosen, slopes, found, strict=True):
        expected = by_hand(*map(np.float64, (x, w, slope)), stride, pad, dilation)
        for ours, theirs in zip(parts, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())


def test_mapped_over_and_in_forward_mode():
    """Kernels of their own for each view are groups; derivatives go both ways."""
    x, w, slope = numbers((3, 2, 7, 6, 4), (3, 3, 3, 4, 5), (3, 2, 4, 3, 5))
    towards = numbers(x.shape, w.shape)

    def every(x, w, slope, towards):
        views = jax.vmap(lambda x, w: conv(x, w, 2, 1))
        y, back = jax.vjp(views, x, w)
        return y, *back(slope), jax.jvp(views, (x, w), tuple(towards))[1]

    *found, forward = jax.jit(partial(in_loop, every))((x, w, slope, towards))
    views = zip(*(array.astype(float) for array in (x, w, slope)), strict=True)
    views = [by_hand(*view, stride=2, pad=1) for view in views]
    expected = [np.stack(part) for part in zip(*views, strict=True)]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())
    gain = sum(np.sum(a * b) for a, b in zip(expected[1:], towards, strict=True))
    np.testing.assert_allclose(np.sum(slope * forward), gain, rtol=1e-5)


def network(weights, images):
    """Two strided convolutions, one of them of images NCHW, and the mean: logits [B, 5]."""
    x = jax.nn.relu(conv(images, weights[0], 2, 1))
    x = conv(x.transpose(0, 3, 1, 2), weights[1].transpose(3, 2, 0, 1), 2, 1, FIRST)
    return x.mean((2, 3))


def compiled(function, *arguments):
    """The compiled program of a function."""
    return hlo.computations(jax.jit(function).lower(*arguments).compile().as_text())


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"n_fgsm"}))  # which has no loop
def test_attacks_have_no_slow_convolutions_in_their_loops(name):
    weights = numbers((3, 3, 1, 8), (3, 3, 8, 5))
    batch, key = tiny.batch(), jax.random.key(0)
    settings = dict(norm="linf", eps=0.1) | ({"steps": 2} if name == "pgd" else {})

    def run(weights, images, labels, key):
        logits_fn = partial(network, weights)
        return ATTACKS[name](logits_fn, images, labels, key, **settings)

    program = compiled(run, weights, batch["images"], batch["labels"], key)
    fast, slow = hlo.convolutions_in_loops(program)
    assert fast and not slow


def test_the_rule_is_needed_and_is_for_cpus_only():
    """Without it gradients in loops are slow; programs for others do not see it."""
    x, w = numbers((2, 8, 8, 4), (3, 3, 4, 4))

    def look():
        """(names of slow convolutions, the program for a TPU) of a function of its own."""

        def climb(x, w):
            slope = jax.grad(lambda x: jnp.sum(jnp.sin(conv(x, w, 1, 1))))
            return jax.lax.fori_loop(0, 2, lambda _, x: x + slope(x), x)

        other = jax.jit(climb).trace(x, w).lower(lowering_platforms=("tpu",))
        return hlo.convolutions_in_loops(compiled(climb, x, w))[1], other.as_text()

    slow, ours = look()
    primitive = jax.lax.conv_general_dilated_p
    mlir.register_lowering(primitive, convolutions.BEFORE, platform="cpu")
    try:
        slow_before, theirs = look()
    finally:
        mlir.register_lowering(primitive, convolutions.lower, platform="cpu")
    assert slow_before and not slow
    assert ours == theirs
