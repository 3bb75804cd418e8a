"""Views: one forward pass over the domains equals separate networks, weight by weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from advadapters import adapters, losses, rng, trees
from advadapters.attacks.pgd import pgd
from advadapters.training import states, views

NET = tiny.network(drop_path=0.2)
STILL = tiny.network()


def variables(names, domains, seed=0):
    """Branches whose adapter rows all differ."""
    tree = states.branches(tiny.plain(STILL), adapters.patterns(names), domains)
    draw = np.random.default_rng(seed)
    noisy = jax.tree.map(
        lambda leaf: leaf + jnp.float32(0.1 * draw.normal(size=leaf.shape)),
        tree["adapters"],
    )
    return tree | {"adapters": noisy}


def attack(norm, eps=0.1):
    return functools.partial(pgd, norm=norm, eps=eps, steps=2)


COTRAIN = [
    views.View("clean", (1.0, 0.0), 0.4),
    views.View("linf", (0.0, 1.0), 0.6, (attack("linf"),)),
]
FOUR = [
    views.View("clean", (1.0, 0, 0, 0), 0.25),
    views.View("linf", (0, 1.0, 0, 0), 0.25, (attack("linf"),)),
    views.View("l2", (0, 0, 1.0, 0), 0.25, (attack("l2", 0.5),)),
    views.View("l1", (0, 0, 0, 1.0), 0.25, (attack("l1", 2.0),)),
]


def separate(seen, weights_tree, batch, key):
    """The same loss, one ordinary network after the other."""
    total = 0.0
    for view in seen:
        params = trees.plain(weights_tree, view.mixture)
        images = batch["images"]
        for run in view.attacks:
            start = rng.fold(key, "attack", view.name, "start")
            images = run(
                lambda x, p=params: STILL.apply(p, x),
                images,
                batch["labels"],
                rng.by_index(start, batch["index"]),
            )
        rows = losses.cross_entropy(STILL.apply(params, images), batch["labels"])
        total += view.weight * rows.mean()
    return total


@pytest.mark.parametrize(
    "seen, names",
    [
        (COTRAIN, ["norms", "head"]),
        (COTRAIN, ["everything"]),
        (FOUR[:1] + FOUR[2:], ["class_token"]),
    ],
)
def test_one_forward_equals_separate_networks(seen, names):
    tree = variables(names, len(seen[0].mixture))
    batch, key = tiny.batch(), jax.random.key(5)
    loss = views.views_loss(STILL, seen)
    (found, (_, metrics)), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        tree, batch, key
    )
    expected, expected_slopes = jax.jit(
        jax.value_and_grad(functools.partial(separate, seen))
    )(tree, batch, key)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), slopes, expected_slopes
    )
    np.testing.assert_allclose(
        found, sum(v.weight * metrics[f"loss/{v.name}"] for v in seen), rtol=1e-6
    )


def test_a_domain_is_untouched_by_the_other_views():
    tree = variables(["class_token", "norms"], 4)
    loss = views.views_loss(STILL, FOUR[:2])
    slopes = jax.jit(jax.grad(lambda t: loss(t, tiny.batch(), jax.random.key(0))[0]))(tree)
    for leaf in jax.tree.leaves(slopes["adapters"]):
        assert not leaf[2:].any()
        assert leaf[0].any() and leaf[1].any()


def test_alpha_one_is_nominal_training():
    """Weight 0 on the attacked view leaves exactly the clean loss and its gradient."""
    tree = variables(["class_token"], 2)
    seen = [COTRAIN[0]._replace(weight=1.0), COTRAIN[1]._replace(weight=0.0)]
    nominal = [COTRAIN[0]._replace(weight=1.0)]
    batch, key = tiny.batch(), jax.random.key(0)

    def slopes(chosen):
        loss = views.views_loss(STILL, chosen)
        return jax.jit(jax.grad(lambda t: loss(t, batch, key)[0]))(tree)

    found, expected = slopes(seen), slopes(nominal)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def spying(seen):
    """A network that notes, while traced, whether it is called in training behaviour."""

    def apply(plain, images, key=None, index=None):
        seen.append(key is not None)
        return NET.apply(plain, images, key, index)

    def train(plain, images, key, index, pooled):
        seen.append(True)
        return NET.train(plain, images, key, index, pooled)

    return NET._replace(apply=apply, train=train)


@pytest.mark.parametrize("train_mode", [False, True])
def test_attack_mode_is_what_the_view_says(train_mode):
    calls = []

    def probe(logits_fn, images, labels, keys):
        calls.clear()
        first, second = logits_fn(images), logits_fn(images)
        # One mask for the whole attack: it is not chasing a moving network.
        return images + 0 * jnp.sum(first - second)

    seen = [COTRAIN[1]._replace(attacks=(probe,), train_mode=train_mode)]
    tree = variables(["class_token"], 2)
    loss = views.views_loss(spying(calls), seen)
    jax.jit(loss)(tree, tiny.batch(), jax.random.key(0))
    assert calls == [train_mode, train_mode, True]
    text = views.describe(seen[0], ("clean", "linf"))
    assert ("train mode" in text) == train_mode and "linf=1" in text


def test_no_gradient_of_weights_is_built_inside_the_attack():
    """FLOPs on paper: a PGD step is 2 forward passes, a training pass 3 a view."""
    net = tiny.network(size=tiny.vit.Size(64, 2, 256, 2))
    tree = states.branches(tiny.plain(net), ("class_token",), 2)
    batch = tiny.batch(64)

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    forward = flops(
        lambda p, x: net.apply(p, x), trees.plain(tree, (1.0, 0.0)), batch["images"]
    )
    # A loop's body is counted once, so one step is what is seen of PGD.
    loss = views.views_loss(net, COTRAIN)
    step = flops(jax.grad(lambda t, b, k: loss(t, b, k)[0]), tree, batch, jax.random.key(0))
    assert step / forward == pytest.approx(2 + 2 * 3, rel=0.08)
