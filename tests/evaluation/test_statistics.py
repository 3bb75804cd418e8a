"""Batch statistics estimated anew, against the batch's own."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from advadapters import networks
from advadapters.evaluation import statistics
from advadapters.models import preact_resnet


def test_with_the_estimate_a_batch_is_normalised_by_itself(mesh):
    model = preact_resnet.PreActResNet(
        size=preact_resnet.read_size("4x1x1"),
        norm="batch",
        classes=5,
        mean=(0.5,),
        std=(0.25,),
    )
    net = networks.make_network(model, (8, 8, 1))
    net = net._replace(at=lambda variables, knob: variables)
    plain = jax.jit(net.init)(jax.random.key(3))
    one, two = tiny.raw_batch(16, seed=1), tiny.raw_batch(16, seed=2)
    estimate = statistics.make_estimate(net, mesh)
    asked = [(estimate, networks.Knob(np.ones(1, np.float32)))]
    (found,) = statistics.means(asked, plain, [one], mesh)
    images = jnp.asarray(one["images"], jnp.float32) / 255

    def trained(images):
        args = (jax.random.key(0), jnp.arange(16), False)
        return net.train(plain, images, *args)[0]

    own = jax.vmap(jax.vmap(trained, axis_name="data"), axis_name="views")
    expected = jax.jit(own)(images[None, None])[0, 0]
    got = jax.jit(net.evaluate)(plain | {"batch_stats": found}, images)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    (other,) = statistics.means(asked, plain, [two], mesh)
    (both,) = statistics.means(asked, plain, [one, two], mesh)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose((a + b) / 2, c, rtol=1e-5, atol=1e-6),
        found, other, both,
    )  # fmt: skip
