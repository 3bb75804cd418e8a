"""Warnings of cascades: gradients that mislead, outputs that depend on the batch."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tiny_cascades import data, network, perceptron

from advadapters.attacks import (
    autoattack,
    masking,
    programs,
    versions,
)
from advadapters.attacks.attacker import Attacker


def warned(function):
    """{check: warning} of what is looked at before white-box attacks."""
    attacker = Attacker(programs.as_partial(function), "linf", 0.05, 16)
    (images, labels), key = data(), jax.random.key(0)
    logits = attacker.logits(images, labels, key)
    stages = versions.stages(("apgd-ce",), "linf", 5)
    found = masking.before(attacker, images, labels, logits, stages, key)
    return {warning["check"]: warning for warning in found}


def test_warnings():
    assert not warned(network())
    assert "softmax" in warned(lambda x: jax.nn.softmax(network()(x)))
    images, labels = data()
    logits = np.asarray(network()(images))
    (told,) = masking.probabilities(np.asarray(jax.nn.sigmoid(logits)))
    assert told["check"] == "sigmoid" and masking.probabilities(logits) == []
    (told,) = masking.chance(np.roll(logits, 1, axis=1), labels)
    assert told["check"] == "chance" and told["right"] <= 4 and told["total"] == 20
    assert masking.chance(logits, labels) == []
    saturated = warned(lambda x: 1000 * network()(x))
    assert saturated["saturated-cross-entropy"]["images"] > 0
    rounded = warned(lambda x: network()(jnp.round(x * 8) / 8))
    assert rounded["zero-gradient"]["images"] == rounded["zero-gradient"]["sample"]
    draws = np.random.default_rng(0)
    random = warned(lambda x: network()(x) + draws.normal())
    assert random["randomised"]["largest_difference"] > 0.01
    masked = masking.square({"clean": 0.9, "apgd-ce": 0.8, "square": 0.5})
    assert masked[0]["check"] == "square-beats-white-box"
    assert masking.square({"clean": 0.9, "apgd-ce": 0.8, "square": 0.7995}) == []
    assert masking.square({"clean": 0.9, "square": 0.5}) == []


def test_a_gradient_of_nan_breaks_nothing():
    def poisoned(images):  # finite logits, gradients that are not
        return network()(images) + 0 * jnp.sqrt(jnp.abs(images - images).sum())

    images, labels = data()
    report = autoattack(
        poisoned, images, labels, jax.random.key(0), norm="linf", eps=1e-5,
        version=("apgd-ce", "fab-t"), steps=5,
    )  # fmt: skip
    (told,) = (w for w in report.warnings if w["check"] == "not-finite-gradient")
    assert told["images"] == told["sample"] == 16
    assert report.robust_accuracy >= 0.75 and np.isfinite(report.images).all()


def test_a_gradient_of_nan_at_one_pixel_hides_nothing():
    """That entry counts as zero: what is found is what is found without the pixel."""

    def spoiled(images):  # the root's derivative there is 0 * inf
        corner = jnp.sqrt(0 * images[:, 0, 0])
        return network()(images) + 0 * corner

    def twin(images):
        return network()(images.at[:, 0, 0].set(jax.lax.stop_gradient(images[:, 0, 0])))

    images, labels = data()
    found = [
        autoattack(
            function, images, labels, jax.random.key(0), norm="l2", eps=0.2,
            version=("apgd-ce", "fab"),
        )
        for function in (spoiled, twin)
    ]  # fmt: skip
    (told,) = (w for w in found[0].warnings if w["check"] == "not-finite-gradient")
    assert told["images"] == told["sample"] == 16
    assert found[0].stages == found[1].stages and found[0].robust_accuracy < 0.6
    np.testing.assert_array_equal(found[0].broken_by, found[1].broken_by)


def test_sign_agreement_of_a_bfloat16_network():
    images, labels = data()
    exact = network()
    coarse = Partial(
        perceptron, jax.tree.map(lambda x: x.astype(jnp.bfloat16), *exact.args)
    )
    assert 0.8 < masking.sign_agreement(coarse, exact, images, labels) < 1
    assert masking.sign_agreement(exact, exact, images, labels) == 1


def warnings_of(function, check, batch_size=16):
    """What one check says of a network on the test's data."""
    attacker = Attacker(programs.as_partial(function), "linf", 0.1, batch_size)
    images, labels = data()
    return check(attacker, images, labels, jax.random.key(0))


def test_rows_that_depend_on_each_other_are_warned_of():
    def in_training(images):  # batch norm with the batch's own statistics
        hidden = network()(images)
        return (hidden - hidden.mean(axis=0)) / (hidden.std(axis=0) + 1e-3)

    def by_place(images):
        return network()(images) + jnp.arange(len(images))[:, None] / len(images)

    for batch_size in (8, 20, 250):
        (told,) = warnings_of(in_training, masking.company, batch_size)
        assert told["check"] == "batch-dependent" and told["images"] > told["sample"] / 2
        assert "train=False" in told["message"] and "use_running_average" in told["message"]
    assert warnings_of(by_place, masking.company)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), network().args)
    for fine in (network(), Partial(perceptron, *half), lambda x: 1e4 * network()(x)):
        assert not warnings_of(fine, masking.company)
