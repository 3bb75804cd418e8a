"""Counts against closed forms and XLA's own; messages in a program written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from advadapters import costs, hlo
from advadapters.attacks.pgd import pgd
from advadapters.errors import UsageError
from advadapters.training import states, step, views


def counted(function, *arguments):
    """(on paper, with loops once, by the compiler) FLOPs."""
    traced = jax.jit(function).trace(*arguments)
    jaxpr = traced.jaxpr.jaxpr
    compiled = traced.lower().compile().cost_analysis()["flops"]
    return costs.products(jaxpr), costs.products(jaxpr, once=True), compiled


def test_products_in_loops_and_branches():
    a, b = jnp.ones((3, 16, 32)), jnp.ones((3, 32, 64))
    one = 2 * 3 * 16 * 32 * 64
    assert counted(jnp.matmul, a, b) == (one, one, one)

    def looped(a, b):
        body = lambda total, _: (total + jnp.sum(a @ b), None)  # noqa: E731
        return jax.lax.scan(body, 0.0, None, length=7)[0]

    paper, once, compiled = counted(looped, a, b)
    assert (paper, once) == (7 * one, one)
    assert once <= compiled < 1.1 * once  # and the additions

    def branched(a, b):
        small, large = lambda: jnp.sum(a[0] @ b[0]), lambda: jnp.sum(a @ b)
        return jax.lax.cond(a[0, 0, 0] > 0, small, large)

    assert costs.products(jax.make_jaxpr(branched)(a, b).jaxpr) == one


def test_convolutions_and_their_gradients():
    """A strided convolution without padding: 2 h w k k C F, and each gradient as much."""
    images, kernel = jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 8))

    def conv(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    one = 2 * (2 * 4 * 4 * 8) * (3 * 3 * 3)
    assert counted(conv, images, kernel) == (one, one, one)
    gradient = jax.grad(lambda *both: jnp.sum(conv(*both) ** 2), argnums=1)
    paper = costs.products(jax.make_jaxpr(gradient)(images, kernel).jaxpr)
    assert paper == 2 * one
    # Between the strides of an image's gradient there are zeros, which nobody multiplies;
    # its border is padded, by which the count on paper is higher.
    gradient = jax.grad(lambda *both: jnp.sum(conv(*both) ** 2))
    paper = costs.products(jax.make_jaxpr(gradient)(images, kernel).jaxpr)
    assert 2 * one <= paper < 2.5 * one


def test_cotraining_is_counted_as_on_paper(mesh):
    """Per image a step of PGD is 2F + A, a trained view 3F without the images' gradient.

    A is attention's two products, both of whose factors depend on the image. So no weight's
    gradient is built in the attack, and each device does its share.
    """
    rows, steps, side, width = 16, 3, 4, 16

    def attack(logits_fn, images, labels, key):
        return pgd(logits_fn, images, labels, key, norm="linf", eps=0.1, steps=steps)

    seen = [
        views.View("clean", (1.0, 0.0), 0.5),
        views.View("linf", (0.0, 1.0), 0.5, (attack,)),
    ]
    net = tiny.network(size=tiny.vit.Size(width, 2, 32, 2))
    plain = jax.eval_shape(net.init, jax.random.key(0))
    first = jax.eval_shape(lambda: states.branches(tiny.plain(net), ("class_token",), 2))
    gradients = step.over_devices(
        step.differentiated(views.views_loss(net, seen, axis="data")),
        mesh,
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    )
    traced = jax.make_jaxpr(gradients)(first, tiny.batch(rows), jax.random.key(0))
    forward = costs.products(jax.make_jaxpr(net.apply)(plain, jnp.ones((1, 8, 8, 1))).jaxpr)
    tokens = (8 // side) ** 2
    embedding = 2 * tokens * side**2 * width
    # By hand: embedding, per block four D x D and an MLP of 2 D, head.
    attention = 2 * 2 * (tokens + 1) ** 2 * width
    block = 2 * (tokens + 1) * (4 * width**2 + 2 * width * 32) + attention
    assert forward == embedding + 2 * block + 2 * width * 5
    step_of_pgd, view = 2 * forward + 2 * attention, 3 * forward - embedding
    found = costs.products(traced.jaxpr, mesh.size)
    assert found == rows * (steps * step_of_pgd + 2 * view)
    once = costs.products(traced.jaxpr, mesh.size, once=True)
    assert once == rows * (step_of_pgd + 2 * view)


PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%fused (p: f32[8]) -> f32[8] {
  %inner = f32[8]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

%body.1 (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion = f32[8]{0} fusion(%get), kind=kCustom, calls=%fused
}

%condition.1 (state: (s32[], f32[8])) -> pred[] {
  %less = pred[] compare(%i, %n), direction=LT
}

%branch (p: f32[8]) -> f32[8] {
  %start = (f32[2,8]{1,0}, f32[2,8]{1,0}, u32[], u32[]) collective-permute-start(%p)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]{0}) while(%init), condition=%condition.1, body=%body.1
  %choice = f32[8]{0} conditional(%i, %a, %b), branch_computations={%branch, %add}
  %all = (f32[16]{0:T(128)S(1)}, /*index=1*/bf16[4,4]{1,0}) all-reduce(%a, %b)
  %part = f32[3]{0} reduce-scatter(%a), dimensions={0}, to_apply=%add
  %whole = (f32[2]{0}, f32[8]{0}) all-gather-start(%a), dimensions={0}
  %done = f32[8]{0} all-gather-done(%whole)
}
"""


def test_messages_of_a_program():
    assert hlo.collectives(hlo.computations(PROGRAM), 4) == [
        {"kind": "all-reduce", "count": 2, "bytes": 8 * 4 + 16 * 4 + 16 * 2, "in_loops": 1},
        {"kind": "all-gather", "count": 1, "bytes": 8 * 4, "in_loops": 0},
        {"kind": "reduce-scatter", "count": 1, "bytes": 4 * 3 * 4, "in_loops": 0},
        {"kind": "collective-permute", "count": 1, "bytes": 16 * 4 + 4, "in_loops": 0},
    ]


def test_traffic_of_a_program():
    """What runs, with its operands: neither inside of fusions nor what is on the chip."""
    program = """\
%inside (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %twice = f32[8]{0} add(%p, %p)
}

%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %copy = f32[8]{0} copy(%p), metadata={op_name="a"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0:T(128)} parameter(0)
  %near = (f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)}, u32[]{:S(2)}) copy-start(%a)
  %there = f32[8]{0:T(128)S(1)} copy-done(%near)
  %sum = bf16[100]{0:T(128)} fusion(%a, %there), kind=kLoop, calls=%inside
  ROOT %loop = f32[8]{0} while(%sum), condition=%never, body=%body
}
"""
    # copied near: 32; fused: 32 read, 200 written; in the loop: 32 read, 32 written.
    assert hlo.traffic(hlo.computations(program)) == 32 + 32 + 200 + 64


def test_seconds_are_those_of_the_slowest_part():
    chip = costs.Chip("made up", 1e9, flops=100.0, bandwidth=50.0, link=10.0, exact=1.0)
    sent = [
        {"kind": "all-reduce", "bytes": 40},
        {"kind": "all-gather", "bytes": 20},
    ]
    found = costs.seconds(chip, 4, flops=1200.0, traffic=25.0, collectives=sent)
    # A ring: (n - 1) / n of the bytes out, and for a reduction the same back.
    assert found == {"compute": 3.0, "memory": 0.5, "links": 7.5, "step": 7.5}
    assert costs.seconds(chip, 1, 1.0, 1.0, sent)["links"] == 0


def test_topologies(mesh):
    devices, chip = costs.topology("cpu:8")
    assert devices == list(mesh.devices.flat) and chip is None
    for name, text in (
        ("cpu:9", "only 8 cpu devices here"),
        ("gpu", "only 0 gpu devices here"),
        ("v5e", "unknown topology 'v5e'; there are: TPUs as VERSION:SHAPE"),
        ("v9:4x4", "v4, v5e, v5p, v6e"),
        ("cpu:0", "unknown topology"),
    ):
        with pytest.raises(UsageError, match=text):
            costs.topology(name)


def test_v5e_pods_reach_what_is_told_of_a_whole_pod():
    """Google's page: 51.2 TB/s of all-reduce for 256 chips, 1.6 TB/s across the middle."""
    chip = costs.CHIPS["v5e"]
    assert 256 * chip.link == 51.2e12
    np.testing.assert_allclose(2 * 16 * chip.link / 4, 1.6e12)
