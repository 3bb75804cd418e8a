"""What every attack promises, whatever the network does and whatever it is given."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import on_problem

from advadapters import losses, schema
from advadapters.attacks import ATTACKS
from advadapters.attacks.apgd import run_apgd
from advadapters.attacks.fab import run_fab
from advadapters.attacks.versions import run_multitargeted
from advadapters.balls import BALLS
from advadapters.builders.views import read_fixed
from advadapters.errors import UsageError
from advadapters.sections import Section

EPS = {"linf": 0.1, "l2": 0.5, "l1": 2.0}
SHAPE, CLASSES = (6, 6, 6, 1), 5
# How far attacks that leave the ball go, in units of eps.
BEYOND = {"pyramid": 31, "n_fgsm": 3}


def points_of(run):
    """A run that tells more than images as one that gives images."""
    return lambda *args, **settings: run(*args, **settings).points


def cases(norm):
    """{name: attack(logits_fn, images, labels, key)}: every attack in all its ways."""
    targets = {"targets": 1 + jnp.arange(SHAPE[0]) % 2}
    pgd = functools.partial(ATTACKS["pgd"], steps=3)
    apgd = functools.partial(points_of(on_problem(run_apgd)), steps=6)
    fab = functools.partial(points_of(on_problem(run_fab)), steps=3)
    found = {
        "fgsm": functools.partial(ATTACKS["pgd"], steps=1, random_start=False),
        "pgd": pgd,
        "pgd best": functools.partial(pgd, keep="best", restarts=2, loss="dlr"),
        "pgd random": functools.partial(pgd, target="random", loss="margin"),
        "pgd least likely": functools.partial(pgd, target="least_likely"),
        "adam": functools.partial(pgd, optimizer="adam", keep="best", loss="margin"),
        "pgd targets": functools.partial(pgd, loss="dlr", **targets),
        "multitargeted": functools.partial(
            points_of(on_problem(run_multitargeted)), **targets
        ),
        "apgd": apgd,
        "apgd dlr": functools.partial(apgd, loss="dlr"),
        "apgd targets": functools.partial(apgd, loss="dlr", **targets),
        "malt": functools.partial(ATTACKS["malt"], steps=6, nearest=2),
        "pma": functools.partial(ATTACKS["pma"], steps=4),
        "fab": fab,
        "fab random": functools.partial(fab, random_start=True),
        "fab targets": functools.partial(fab, **targets),
        "square": functools.partial(ATTACKS["square"], queries=9),
    }
    if norm == "linf":
        found["n_fgsm"] = ATTACKS["n_fgsm"]
        found["pyramid"] = functools.partial(ATTACKS["pyramid"], steps=2)
    settings = dict(norm=norm, eps=EPS[norm])
    return {name: functools.partial(run, **settings) for name, run in found.items()}


def test_every_attack_and_word_is_among_the_cases():
    names = {name.split()[0] for name in cases("linf")}
    assert names - {"fgsm", "adam", "multitargeted"} == ATTACKS.keys()


def check(norm, images, found, eps=None):
    """In [0, 1], in the ball, finite: asked so that NaN fails."""
    eps = EPS[norm] if eps is None else eps
    for name, points in found.items():
        points = np.asarray(points)
        assert points.shape == images.shape and points.dtype == np.float32, name
        assert np.isfinite(points).all(), (name, points)
        assert points.min() >= 0 and points.max() <= 1, name
        radius = eps * BEYOND.get(name, 1) * (1 + 1e-5)
        assert np.max(BALLS[norm].norm(points - images)) <= radius, name


def weights():
    """Constants that a compiler sees, [D, L]."""
    draw = np.random.default_rng(0)
    return draw.normal(size=(int(np.prod(SHAPE[1:])), CLASSES)).astype(np.float32)


def linear(images):
    return images.reshape(len(images), -1) @ weights()


NETWORKS = {
    "constant gradient": linear,
    "zero gradient": lambda images: linear(jnp.round(images * 255) / 255),
}


def data(rng):
    """Images with pixels in the middle and at the box, and what `linear` says of them."""
    images = np.clip(rng.uniform(-0.2, 1.2, SHAPE), 0, 1).astype(np.float32)
    return jnp.asarray(images), jnp.argmax(linear(images), axis=1)


def together(names, norm, network, images, labels, key, **more):
    """{name: images} of several cases."""
    runs = cases(norm)
    return {n: runs[n](network, images, labels, key, **more) for n in names if n in runs}


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("network", NETWORKS)
def test_constant_and_zero_gradients(network, norm, rng):
    """Known when it is compiled, where compilers rearrange most."""
    images, labels = data(rng)
    names = ("fgsm", "adam", "apgd", "malt", "pma", "fab", "n_fgsm", "pyramid")
    run = functools.partial(together, names, norm, NETWORKS[network], images, labels)
    check(norm, images, jax.jit(run)(jax.random.key(0)))


@jax.custom_vjp
def pretending(images, slope):
    """`linear`, with a gradient that is said to be `slope` [B, H, W, C] for any logit."""
    return linear(images)


pretending.defvjp(
    lambda images, slope: (linear(images), slope),
    lambda slope, seed: (slope * (1 + jnp.sum(seed)), jnp.zeros_like(slope)),
)


def slopes(rng):
    """{name: gradient}: what networks may give."""
    ordinary = rng.normal(size=SHAPE).astype(np.float32)
    spots, some = ordinary.copy(), ordinary.copy()
    spots[:, 0, 0] = np.nan
    some[0], some[1], some[2] = np.nan, np.inf, -np.inf
    return {
        "ordinary": ordinary,
        "zero": 0 * ordinary,
        "not finite at one pixel": spots,
        "not finite on some images": some,
        "denormal": (1e-40 * ordinary).astype(np.float32),
        "tiny": (1e-30 * ordinary).astype(np.float32),
        "huge": (1e37 * ordinary).astype(np.float32),
        "largest": np.sign(ordinary) * np.finfo(np.float32).max,
    }


@pytest.mark.parametrize("norm", BALLS)
def test_any_gradient(norm, rng):
    images, labels = data(rng)
    # The others differ from these in what they climb only.
    names = ("pgd", "adam", "apgd", "malt", "pma", "fab targets", "n_fgsm", "pyramid")

    @jax.jit
    def run(slope, eps):
        network = lambda points: pretending(points, slope)  # noqa: E731
        key = jax.random.key(0)
        return together(names, norm, network, images, labels, key, eps=eps)

    for name, slope in slopes(rng).items():
        found = run(slope, EPS[norm])
        check(norm, images, found)
        if name == "not finite at one pixel":
            moved = {n for n, x in found.items() if np.abs(x - images).max() > 1e-3}
            assert moved >= {"pgd", "adam", "apgd", "malt", "pma"}
        check(norm, images, run(slope, 0.0), eps=0)


def breaks_down(images):
    """Logits that are right everywhere, and no numbers where an image got brighter."""
    score = jnp.mean(images, axis=(1, 2, 3))
    score = score + 0 * jnp.log(0.51 - score)
    return jnp.stack([9 - score, score, 0 * score, 0 * score, 0 * score], axis=1)


@pytest.mark.parametrize("norm", BALLS)
def test_logits_that_are_not_finite_are_a_success(norm):
    images, labels = jnp.full(SHAPE, 0.5), jnp.zeros(SHAPE[0], int)
    names = ("adam", "apgd", "malt", "pma", "multitargeted")
    names += ("square",) if norm == "linf" else ()

    @jax.jit
    def run(key):
        found = together(names, norm, breaks_down, images, labels, key)
        wrong = {
            name: losses.misclassified(breaks_down(points), labels)
            for name, points in found.items()
        }
        return found, wrong

    found, wrong = run(jax.random.key(0))
    check(norm, images, found)
    assert all(wrong[name].all() for name in names)


@pytest.mark.parametrize("norm", BALLS)
def test_traces_under_strict_promotion(norm, rng):
    images, labels = data(rng)
    strict = (jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"))
    noisy = lambda x, key: linear(x)  # noqa: E731
    draws = functools.partial(
        on_problem(run_apgd), norm=norm, eps=EPS[norm], steps=6, expectation=3
    )
    with strict[0], strict[1]:
        for attack in cases(norm).values():
            run = functools.partial(attack, linear)
            found = jax.eval_shape(run, images, labels, jax.random.key(0))
            assert found.shape == SHAPE and found.dtype == jnp.float32
        jax.eval_shape(functools.partial(draws, noisy), images, labels, jax.random.key(0))


WORDS = {
    "pgd": [
        (dict(norm="Linf"), "unknown norm of pgd 'Linf'; there are: linf, l2, l1; did you"),
        (dict(target="most_likely"), "unknown target 'most_likely'; there are: '', random"),
        (dict(keep="worst"), "unknown keep 'worst'; there are: last, best"),
        (dict(optimizer="sgd"), "unknown optimizer 'sgd'; there are: steepest, adam"),
        (dict(loss="ce"), "unknown loss 'ce'; there are: cross_entropy, margin, dlr"),
        (
            dict(loss="margin", targets=jnp.zeros(6, int)),
            "there are: dlr, logit_difference",
        ),
        (dict(steps=0), "steps must be a whole number of at least 1, got 0"),
        (dict(steps=2.0), "steps must be a whole number of at least 1, got 2.0"),
        (dict(restarts=0), "restarts must be a whole number"),
        (dict(step_size=-0.1), "step_size must be a number of at least 0, got -0.1"),
        (dict(random_start="no"), "random_start must be True or False, got 'no'"),
        (dict(eps=8), "eps must be at least 0 and at most 1 for linf"),
        (dict(norm="l2", eps=6.1), "at most 6 for l2, the l2 norm of the whole box"),
        (dict(targets=jnp.full(6, 9), loss="dlr"), "targets run from 9 to 9, but"),
    ],
    "apgd": [
        (dict(loss="ce"), "unknown loss 'ce'"),
        (dict(norm="L2"), "did you mean 'l2'?"),
        (dict(steps=0), "steps must be"),
    ],
    "malt": [
        (dict(norm="Linf"), "unknown norm of malt 'Linf'"),
        (dict(nearest=0), "nearest must be a whole number of at least 1, got 0"),
        (dict(candidates=1.5), "candidates must be a whole number of at least 1, got 1.5"),
    ],
    "pma": [(dict(norm=""), "unknown norm of pma ''"), (dict(restarts=0), "restarts must")],
    "fab": [(dict(norm="linfty"), "did you mean 'linf'?"), (dict(steps=0), "steps must")],
    "square": [(dict(queries=0), "queries must be"), (dict(norm=2), "unknown norm")],
    "pyramid": [
        (dict(norm="l2"), "unknown norm of pyramid 'l2'; there are: linf"),
        (dict(target="randm"), "did you mean 'random'?"),
    ],
    "n_fgsm": [
        (dict(norm="l2"), "unknown norm of n_fgsm 'l2'; there are: linf"),
        (dict(noise=-1.0), "noise must be a number of at least 0"),
    ],
}


def called(attack, change):
    """An attack called with one argument changed."""
    arguments = dict(
        logits_fn=linear,
        images=np.full(SHAPE, 0.5, np.float32),
        labels=np.zeros(SHAPE[0], np.int64),
        key=jax.random.key(0),
        eps=0.1,
        norm="linf",
    )
    steps = {"steps": 1} if attack == "pgd" else {}
    return ATTACKS[attack](**(arguments | steps | change))


def test_words_and_numbers_are_refused_by_name():
    assert WORDS.keys() == ATTACKS.keys()
    for attack, rows in WORDS.items():
        for change, message in rows:
            with pytest.raises(UsageError) as error:
                called(attack, change)
            assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("attack", ATTACKS)
def test_bad_input_of_attacks_called_by_hand(attack):
    images, labels = np.full(SHAPE, 0.5, np.float32), np.zeros(SHAPE[0], np.int64)
    for change, message in (
        (dict(images=255 * images), "images must lie in [0, 1], got 127.5 to 127.5"),
        (dict(images=np.full(SHAPE, 7, np.int32)), "images must be float32 or uint8"),
        (dict(images=images.astype(np.float64)), "images must be float32 or uint8"),
        (dict(images=images[0]), "float32 or uint8 [N, H, W, C] with N > 0, got float32 ["),
        (dict(images=images.transpose(0, 3, 1, 2)), "which has channels first"),
        (dict(images=images * np.nan), "6 of 6 images have pixels of NaN"),
        (dict(images=[[0.5]]), "images must be an array, got list"),
        (dict(labels=labels - 1), "labels run from -1 to -1, but logits_fn has 5 classes"),
        (dict(labels=labels + 2**32), "labels run from 4294967296"),
        (dict(labels=labels[1:]), "labels must be whole numbers [6]"),
        (dict(labels=labels.astype(np.float32)), "labels must be whole numbers [6]"),
        (dict(labels=np.full((6, 3), 0.3)), "labels have 3 classes, but logits_fn has 5"),
        (dict(key=0), "key must be a random key like jax.random.key(0), got 0"),
        (dict(key=jax.random.split(jax.random.key(0))), "one for each of the 6 examples"),
        (dict(logits_fn=lambda x: (linear(x), x)), "got a tuple: choose its logits"),
        (dict(logits_fn=lambda x: linear(x)[:3]), "logits_fn must return [6, classes]"),
    ):
        with pytest.raises(UsageError) as error:
            called(attack, change)
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("attack", ATTACKS)
def test_configs_name_every_attack_and_its_settings(attack):
    """A section with a value for each setting that the signature has, and no other."""
    known = schema.settings_of(ATTACKS[attack])
    numbers = {int: 2, float: 0.1, bool: True}
    own = {
        name: next(iter(setting.allowed.words))
        if isinstance(setting.allowed, schema.OneOf)
        else numbers[setting.kind]
        for name, setting in known.items()
    }
    others = {"logits_fn", "images", "labels", "key", "norm", "eps", "targets", "vary"}
    assert inspect.signature(ATTACKS[attack]).parameters.keys() - others == known.keys()
    settings = dict(name=attack, norm="linf", eps=0.1) | own
    read = lambda c: read_fixed({"a": Section("attacks.a", c)}, SHAPE[1:])["a"]  # noqa: E731
    assert read(dict(settings)).keywords == dict(norm="linf", eps=0.1) | own
    # What a config leaves out is as the signature has it.
    needed = {n: own[n] for n, s in known.items() if s.default is schema.MISSING}
    short = read(dict(name=attack, norm="linf", eps=0.1) | needed).keywords
    defaults = schema.defaults_of(ATTACKS[attack])
    assert short == dict(norm="linf", eps=0.1) | needed | defaults
    images, labels = jnp.full(SHAPE, 0.5), jnp.zeros(SHAPE[0], int)
    run = functools.partial(read(settings), linear)
    found = jax.eval_shape(run, images, labels, jax.random.key(0))
    assert found.shape == SHAPE


def test_what_is_traced_has_a_type_and_a_shape():
    labels, key = np.zeros(2, np.int32), jax.random.key(0)
    run = functools.partial(ATTACKS["pgd"], linear, norm="linf", eps=0.1, steps=1)
    for images in (np.zeros((2, 3, 6, 6), np.float32), np.zeros((2, 6, 6, 1), np.int32)):
        with pytest.raises(UsageError, match="images must be"):
            jax.eval_shape(run, images, labels, key)


def test_bytes_are_attacked_as_floats():
    labels, key = np.zeros(2, np.int32), jax.random.key(0)
    run = functools.partial(ATTACKS["pgd"], linear, norm="linf", eps=0.1, steps=1)
    raw = np.arange(72, dtype=np.uint8).reshape(2, 6, 6, 1)
    floats = raw.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(run(raw, labels, key), run(floats, labels, key))
