"""Radii that grow: the formula, the boundary that images reach, and what stays the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from models import small

from advadapters import meshes, networks
from advadapters.attacks import ATTACKS
from advadapters.balls import BALLS
from advadapters.builders.views import (
    need_trained,
    read_attacks,
    read_fixed,
    read_growing,
    read_tricks,
)
from advadapters.errors import UsageError
from advadapters.models import film, vit
from advadapters.sections import Section
from advadapters.training import oat, radius, states, step, twins, views

KEY = jax.random.key(7)
EPS = {"linf": 0.1, "l2": 0.5, "l1": 2.0}
# How far attacks that leave the ball go, in units of eps.
BEYOND = {"pyramid": 31, "n_fgsm": 3}
# Every attack, in each way that depends on a step size; all that are quick to compile.
WAYS = {
    "pgd": dict(steps=3),
    "pgd with steps": dict(steps=3, step_size=0.07),
    "pgd adam": dict(steps=3, optimizer="adam"),
    "apgd": dict(steps=6),
    "malt": dict(steps=3, nearest=2),
    "pma": dict(steps=4),
    "fab": dict(steps=3),
    "square": dict(queries=5),
    "pyramid": dict(steps=2),
    "n_fgsm": {},
}
CASES = [
    (way, norm)
    for way in WAYS
    for norm in (["linf"] if way in BEYOND else BALLS)
    if norm == "linf" or way in ("pgd", "apgd", "square")
]


def partial(way="pgd", norm="linf", **more):
    """An attack as configs are read."""
    settings = dict(norm=norm, eps=EPS[norm]) | WAYS[way] | more
    return functools.partial(ATTACKS[way.split()[0]], **settings)


def growing(way="pgd", norm="linf", **more):
    """It over the first 2.5 epochs of 40 steps: 100 steps."""
    return radius.Growing(partial(way, norm, **more), 2.5, 40)


def batch_at(now, count=8):
    """A batch of step `now`, its images away from the box."""
    batch = tiny.batch(count) | {"step": jnp.full(count, now, jnp.int32)}
    return batch | {"images": 0.3 + 0.4 * batch["images"]}


def linear(images):
    kernel = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    return images.reshape(len(images), -1) @ kernel


@functools.cache
def runs(way, norm):
    """(step -> images by the attack that grows, by the one that does not)."""

    def attacked(attack, now):
        batch = batch_at(now)
        labels = jnp.argmax(linear(batch["images"]), axis=1)
        found = radius.at(attack, batch)(linear, batch["images"], labels, KEY)
        return found, BALLS[norm].norm(found - batch["images"])

    attacks = growing(way, norm), partial(way, norm)
    return [jax.jit(functools.partial(attacked, attack)) for attack in attacks]


@pytest.mark.parametrize("way, norm", CASES)
def test_images_of_a_step_reach_its_radius_and_no_further(way, norm):
    grown, fixed = runs(way, norm)
    most = BEYOND.get(way, 1) * EPS[norm]
    _, whole = fixed(0)
    for now in (0, 1, 25, 99):
        images, norms = grown(now)
        assert np.isfinite(images).all()
        assert norms.max() <= most * now / 100 * (1 + 1e-4) + 1e-7
        # As near the boundary as at the full radius; FAB goes only as far as it must.
        reached = 0 if way == "fab" else 0.98 * whole.max() * now / 100
        assert norms.max() >= reached
    assert grown(0)[1].max() == 0


@pytest.mark.parametrize("way, norm", CASES)
def test_after_the_warm_up_the_attack_is_the_fixed_one(way, norm):
    """Bitwise in PGD; a compiler may round others differently where eps is a constant."""
    grown, fixed = runs(way, norm)
    most = 0 if way.startswith("pgd") else 1e-6
    for now in (100, 101, 10**6):
        np.testing.assert_allclose(grown(now)[0], fixed(now)[0], rtol=0, atol=most)
    assert (grown(1)[0] != fixed(1)[0]).any()


@pytest.mark.parametrize("way", ["pgd", "pgd with steps", "pgd adam", "pyramid"])
def test_after_the_warm_up_lengths_are_bitwise_the_settings(way):
    """0.083333... is a step size that float32 products of its factors would miss."""
    attack = growing(way, eps=0.1)

    def lengths(now):
        settings = radius.at(attack, batch_at(now)).keywords
        return {name: settings[name] for name in ("eps", "step_size")}

    grown = jax.jit(lengths)
    rule = {"pgd": 0.1 * (2.5 / 3), "pgd with steps": 0.07, "pgd adam": 0.1}
    expected = np.float32([0.1, rule.get(way, 0.1 / 6)])
    for now, share in ((100, 1), (10**6, 1), (50, 0.5), (0, 0)):
        found = np.array([grown(now)[name] for name in ("eps", "step_size")])
        np.testing.assert_array_equal(found, np.float32(share) * expected)


def test_steps_keep_their_ratio_to_the_radius():
    """One step from the image goes step_size, whatever the radius would allow."""
    for more, share in ((dict(step_size=0.02), 0.2), (dict(step_size=0.0), 1.0)):
        attack = growing(steps=1, random_start=False, **more)
        batch = batch_at(30)
        found = radius.at(attack, batch)(linear, batch["images"], batch["labels"], KEY)
        moves = np.abs(found - batch["images"])
        np.testing.assert_allclose(moves, 0.3 * share * EPS["linf"], rtol=1e-4)


def test_what_does_not_grow_is_itself():
    attack = partial()
    assert radius.at(attack, {}) is attack and radius.full(attack) is attack
    assert radius.full(growing()).keywords == attack.keywords


FILM = film.Film((0.0, 0.5, 1.0), "random", 8, 0.0)
NORMS = (r"(.*/)?(\w+_)?norm\d?/.*",)


@functools.cache
def method(kind):
    """(attack -> method, its network, its variables) of each kind of method."""
    if kind.startswith("views"):
        net = tiny.network(size=vit.Size(8, 1, 16, 2))
        tree = states.branches(tiny.plain(net), ("class_token",), 2)

        def make(attack):
            attacks = (attack,) * (1 if kind == "views" else 2)
            seen = [
                views.View("clean", (1.0, 0.0), 0.5),
                views.View("adv", (0.0, 1.0), 0.5, attacks),
            ]
            return views.Views(("clean", "adv"), seen, True, 0.0)

        errors = make(partial()).running_errors()
        return make, net, tree | {"stats": tree["stats"] | {"errors": errors}}
    fields = dict(film=FILM) if kind == "oat" else {}
    model = small.model("preact_resnet", "4x1", **fields)
    net = networks.make_network(model, (8, 8, 1))
    made = jax.jit(net.init)(jax.random.key(0))
    tree = states.branches(made, NORMS, 2, True, {}, ("(?!lambda_encoding).*",))
    if kind == "oat":
        return lambda attack: oat.OAT(FILM.lambdas, 0.25, attack, dual=True), net, tree
    return lambda attack: twins.TWINS(0.4, attack), net, tree


def gradients(kind, attack_of, parts=1, devices=1):
    """jit: (step, eps) -> (gradients, stats, metrics) under attack_of(eps)."""
    make, net, tree = method(kind)
    mesh = meshes.make(jax.devices()[:devices])

    def found(now, eps):
        loss = make(attack_of(eps)).loss({1.0: net}, "data")
        each = step.accumulated(step.differentiated(loss), parts)
        each = step.over_devices(each, mesh, meshes.replicated(mesh))
        return each(tree, batch_at(now, 16), KEY)

    return jax.jit(found)


@pytest.mark.parametrize("kind", ["views", "views drawn", "oat", "twins"])
def test_every_method_trains_at_the_radius_of_the_step(kind):
    """As at a fixed radius: of a quarter at step 25 of 100, of the whole at step 100."""
    eps = EPS["linf"]
    grown = gradients(kind, lambda _: growing(step_size=0.6 * eps))
    fixed = gradients(kind, lambda eps: partial(eps=eps, step_size=0.6 * eps))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, grown(25, 0.0), fixed(25, eps / 4))
    jax.tree.map(close, grown(100, 0.0), fixed(100, eps))
    few, many = grown(25, 0.0)[2], grown(100, 0.0)[2]
    assert many["loss"] > few["loss"] + 1e-4


def test_eight_devices_and_parts_train_like_one():
    found = [
        gradients("views", lambda _: growing(norm="l2"), parts, devices)(50, 0.0)
        for parts, devices in ((1, 1), (2, 8))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *found)


def test_a_resumed_run_goes_on_at_the_radius_it_left(mesh):
    """Bitwise, from what a checkpoint holds; the radius is a function of the step alone."""
    make, net, tree = method("views")
    tx = optax.apply_if_finite(optax.sgd(0.1), 5)
    loss = make(radius.Growing(partial(), 0.1, 40)).loss({1.0: net}, "data")
    run = step.make_step(
        loss, lambda batch, key: batch | {"images": batch["images"] / jnp.float32(255)}, tx,
        ema_decay=0.9, accumulate=1, mesh=mesh,
    )  # fmt: skip

    def train(current, start):
        seen = {}
        for now in range(start, 6):
            seen[now] = jax.tree.map(np.array, current)
            put = jax.device_put(seen[now], meshes.replicated(mesh))
            batch = meshes.global_batch(mesh, tiny.raw_batch(16, seed=now))
            current, seen["metrics", now] = run(put, batch, np.uint32(0))
        return seen

    whole = train(jax.tree.map(jnp.array, states.create(tree, tx)), 0)
    for start in (2, 5):
        again = train(whole[start], start)
        for name, found in again.items():
            jax.tree.map(np.testing.assert_array_equal, found, whole[name])


@pytest.mark.parametrize("kind", ["views", "oat", "twins"])
def test_held_out_images_are_attacked_at_the_full_radius(kind):
    checks = method(kind)[0](growing()).checks()
    attacks = [attack for check in checks for attack in check.attacks]
    assert attacks and all(attack.keywords["eps"] == EPS["linf"] for attack in attacks)
    text = "radius grows from 0 to 0.1 over the first 2.5 epochs"
    assert text in "\n".join(method(kind)[0](growing()).describe())
    assert "grows" not in "\n".join(method(kind)[0](partial()).describe())


def test_of_several_attacks_the_norm_tells_which_grows():
    attacks = [growing(norm="l2"), partial(), growing(norm="l1")]
    assert radius.describe(attacks) == (
        ", l2 radius grows from 0 to 0.5 over the first 2.5 epochs"
        ", l1 radius grows from 0 to 2 over the first 2.5 epochs"
    )


def read(name, read=None, **settings):
    settings = dict(name="n_fgsm", norm="linf", eps=0.1, noise=1.0) | settings
    section = {"a": Section(name, settings)}
    if read is None:
        return read_fixed(section, (8, 8, 1))["a"]
    return read_attacks(section, (8, 8, 1), read)["a"]


def test_configs_of_training_and_of_evaluation():
    train = functools.partial(read_growing, epochs=10.0, epoch=40)
    found = read("config.attacks.a", train, eps_warmup=2.5)
    assert found[1:] == (2.5, 40) and found.attack.keywords["eps"] == 0.1
    assert read("config.attacks.a", train, eps_warmup=10.0).epochs == 10.0
    for fixed in (
        read("config.attacks.a", train, eps_warmup=0.0),
        read("config.attacks.a", train),
        read("config.evaluation.suites.a", eps_warmup=0.0),
        read("config.evaluation.suites.a"),
    ):
        assert fixed.keywords == found.attack.keywords
    for name, reader, warmup, message in (
        ("config.attacks.a", train, -1.0, "a.eps_warmup must be at least 0.0, got -1.0"),
        ("config.attacks.a", train, 11.0, "eps_warmup=11 epochs, but training ends after"),
        ("config.evaluation.suites.a", None, 2.5, "=2.5: radii grow in training alone"),
    ):
        with pytest.raises(UsageError, match=message):
            read(name, reader, eps_warmup=warmup)


def test_a_radius_that_grows_for_nobody_is_refused():
    attacks = {"one": growing(), "alarm": partial()}
    need_trained(attacks, [attacks["one"]])
    with pytest.raises(UsageError, match="config.attacks.one.eps_warmup=2.5, but nothing"):
        need_trained(attacks, [attacks["alarm"]])


def test_tricks_go_with_radii_that_grow():
    keys = dict(attack_tricks=("prm",), attack_warmup=2.5)
    net = tiny.network(size=vit.Size(8, 1, 16, 2))
    view = views.View("v", (1.0,), 1.0, (growing(),))
    view = view._replace(**read_tricks(Section("v", keys), view.attacks, net, epoch=40))
    tree = states.branches(tiny.plain(net), (), 1)
    run = jax.jit(lambda batch: views.show(net, view, tree, batch, KEY)[0])
    moves = [jnp.abs(run(batch_at(now)) - batch_at(now)["images"]).max() for now in (0, 50)]
    np.testing.assert_allclose(moves, [0, 0.05], atol=1e-6)
