"""AutoAttack: any class count, any batching, resuming, warnings, bad input."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.tree_util import Partial

from advadapters import meshes
from advadapters import rng as keys_by_name
from advadapters.attacks import autoattack, cascade, checks, resume, suites, sweep
from advadapters.attacks.apgd import checkpoints
from advadapters.attacks.report import from_plain, merge, to_plain
from advadapters.attacks.square import side_lengths
from advadapters.balls import BALLS
from advadapters.errors import UsageError

EPS = {"linf": 0.03, "l2": 0.2, "l1": 0.8}
PROGRAMS = {}  # of all tests that attack the same network


def short(version="standard", norm="linf"):
    """Settings that cut the loops of a version; the code is the same."""
    takes = [name for stage in suites.stages(version, norm, 10) for name in stage.takes]
    known = dict(steps=10, queries=30)
    return {name: value for name, value in known.items() if name in takes}


def perceptron(params, images):
    """A network of one hidden layer, quick to compile."""
    first, second = params
    return jnp.tanh(images.reshape(images.shape[0], -1) @ first) @ second


@functools.cache
def network(classes=5, seed=0):
    with jax.ensure_compile_time_eval():  # what is kept must be no tracer of a first caller
        keys = jax.random.split(jax.random.key(seed))
        first = 0.3 * jax.random.normal(keys[0], (64, 16))
        second = 0.5 * jax.random.normal(keys[1], (16, classes))
    return Partial(perceptron, (first, second))


def data(count=20, classes=5):
    """Images with the labels that the network gives, but for every fifth."""
    images = np.asarray(tiny.batch(count)["images"])
    labels = np.array(jnp.argmax(network(classes)(images), axis=1))
    labels[::5] = (labels[::5] + 1) % classes
    return images, labels


def run(classes=5, count=20, norm="linf", key=None, **settings):
    images, labels = data(count, classes)
    settings = dict(eps=EPS[norm], batch_size=16, programs=PROGRAMS) | settings
    settings = short(settings.get("version", "standard"), norm) | settings
    key = jax.random.key(0) if key is None else key
    return autoattack(network(classes), images, labels, key, norm=norm, **settings)


@pytest.mark.parametrize("norm", BALLS)
def test_report(norm):
    report = run(norm=norm)
    images, labels = data()
    assert list(report.stages) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    accuracies = list(report.stages.values())
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] == 0.8
    assert report.clean_accuracy == 0.8
    assert report.robust_accuracy == accuracies[-1] == report.robust.mean() < 0.8
    assert report.intervals["robust"][0] <= report.robust_accuracy
    # What is said to be broken is broken, by points in the ball and the box.
    wrong = np.asarray(jnp.argmax(network()(report.images), axis=1)) != labels
    np.testing.assert_array_equal(wrong, ~report.robust)
    assert report.norms.max() <= EPS[norm] * (1 + 1e-5)
    assert report.images.min() >= 0 and report.images.max() <= 1
    np.testing.assert_array_equal(report.images[report.robust], images[report.robust])
    assert set(report.broken_by[::5]) == {"clean"}
    assert set(report.broken_by) <= {"", "clean", "apgd-ce", "apgd-t", "fab-t", "square"}
    np.testing.assert_array_equal(report.broken_by == "", report.robust)
    assert report.costs["apgd-ce"]["forwards"] > 0


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes(classes):
    report = run(classes=classes, version=("apgd-t", "fab-t"))
    assert report.robust_accuracy <= report.clean_accuracy == 0.8
    found = [w for w in report.warnings if w["check"] == "few-classes"]
    assert bool(found) == (classes < 4)
    report = run(classes=classes, version=("apgd-dlr",))
    assert ("few-classes" in {w["check"] for w in report.warnings}) == (classes < 3)


@pytest.mark.parametrize("version", ["plus", "rand", ("multitargeted",)])
def test_other_versions(version):
    if version == "rand":
        images, labels = data()

        def noisy(images, key):
            return network()(images + 0.01 * jax.random.normal(key, images.shape))

        report = autoattack(
            noisy, images, labels, jax.random.key(0), norm="linf", eps=0.05, version="rand",
            steps=5,
        )  # fmt: skip
        assert list(report.stages) == ["clean", "apgd-ce", "apgd-dlr"]
    else:
        report = run(version=version)
        names = ("apgd-ce", "apgd-dlr", "fab", "fab-random", "square", "apgd-t", "fab-t")
        assert tuple(report.stages)[1:] == (names if version == "plus" else version)
    assert report.robust_accuracy < report.clean_accuracy


def test_fast_and_then_standard():
    """What "fast" breaks stays broken by the same attack; standard's parts find no less."""
    fast, both = (run(version=version) for version in ("fast", "fast+standard"))
    names = [stage.name for stage in suites.stages("fast", "linf", 5)]
    assert list(fast.stages) == ["clean", *names]
    assert list(both.stages) == ["clean", *names, "apgd-ce", "apgd-t", "fab-t", "square"]
    broken = ~fast.robust
    assert broken.any() and not both.robust[broken].any()
    np.testing.assert_array_equal(both.broken_by[broken], fast.broken_by[broken])
    np.testing.assert_array_equal(both.images[broken], fast.images[broken])
    assert set(both.broken_by[fast.robust]) <= {"", *suites.STANDARD}
    images, labels = data()
    wrong = np.asarray(jnp.argmax(network()(fast.images), axis=1)) != labels
    np.testing.assert_array_equal(wrong, broken)


def test_rounds_follow_the_norm_and_the_classes():
    def rounds(version, norm, classes):
        return {s.name: s.rounds for s in suites.stages(version, norm, classes)}

    standard = {"apgd-ce": 1, "apgd-t": 9, "fab-t": 9, "square": 1}
    assert rounds("standard", "linf", 10) == rounds("standard", "l2", 1000) == standard
    assert rounds("standard", "l1", 10) == standard | {"apgd-ce": 5, "apgd-t": 5}
    # What "fast" shares with "standard" is the same attack, run once.
    assert rounds("fast", "l1", 10) == {"apgd-ce": 5, "malt": 5}
    both = {"apgd-ce": 5, "malt": 5, "apgd-t": 5, "fab-t": 9, "square": 1}
    assert rounds("fast+standard", "l1", 10) == both
    assert rounds("standard", "linf", 3) == standard | {"apgd-t": 2, "fab-t": 2}
    plus = rounds("plus", "linf", 10)
    assert plus["fab"] + plus["fab-random"] == plus["apgd-dlr"] == 5
    assert all(s.settings["expectation"] == 20 for s in suites.stages("rand", "linf", 10))


def test_schedules_of_the_original():
    due, windows = checkpoints(100)
    after = [int(i) + 1 for i in np.flatnonzero(due)]
    assert after == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [int(windows[i - 1]) for i in after] == [22, 19, 16, 13, 10, 7, 6, 6]
    sides = side_lengths(5000, (28, 28), smallest=1)
    assert [int(sides[q]) for q in (0, 11, 51, 201, 501, 1001, 2001, 4001)] == [
        25, 18, 13, 9, 6, 4, 3, 2,
    ]  # fmt: skip
    assert all(side % 2 == 1 and side >= 3 for side in side_lengths(5000, (28, 28), 3))


def test_results_do_not_depend_on_batches_or_devices(mesh):
    version = ("apgd-t", "fab-t", "square")
    first, second, third = (
        run(version=version, **change)
        for change in (dict(), dict(batch_size=7), dict(mesh=mesh))
    )
    for other in (second, third):
        assert first.stages == other.stages
        np.testing.assert_array_equal(first.broken_by, other.broken_by)
        # Rounding differs with the shape of a batch, and signs magnify it.
        assert (np.abs(first.images - other.images) > 1e-4).mean() < 0.01


def test_parts_of_a_set_are_the_set(tmp_path):
    """As several processes attack it, each its own images; and their journals."""
    images, labels = data()
    settings = short() | dict(norm="linf", eps=EPS["linf"], programs=PROGRAMS)
    settings |= dict(batch_size=16, key=jax.random.key(0), quiet=True)
    whole = autoattack(network(), images, labels, **settings)
    numbers = [np.arange(first, 20, 3) for first in (2, 0, 1)]
    for _ in range(2):  # the second time from the journals
        parts = [
            autoattack(
                network(), images[part], labels[part], numbers=part,
                resume=tmp_path / str(part[0]), **settings,
            )
            for part in numbers
        ]  # fmt: skip
        told = json.loads(json.dumps([to_plain(part) for part in parts]))
        found = merge([from_plain(one) for one in told], numbers)
        for name in ("robust", "share", "broken_by"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
        np.testing.assert_allclose(found.norms, whole.norms, rtol=1e-4)
        assert found.stages == pytest.approx(whole.stages)
        assert found.intervals["robust"] == pytest.approx(whole.intervals["robust"])
        forwards = [r.costs["square"]["forwards"] for r in parts]
        assert found.costs["square"]["forwards"] == sum(forwards)
    with pytest.raises(UsageError, match="without the images that were attacked"):
        _ = found.images
    own = [part.images for part in parts]
    for part, points in zip(numbers, own, strict=True):
        np.testing.assert_allclose(points, whole.images[part], atol=1e-5)
    six = dict(images=images[:6], labels=labels[:6], resume=tmp_path / "six")
    six |= settings | dict(version=("square",), steps=None)
    autoattack(network(), numbers=np.arange(6), **six)
    with pytest.raises(UsageError, match="holds a run with another numbers"):
        autoattack(network(), numbers=np.arange(6) + 1, **six)
    for wrong in ([0] * 20, np.arange(19), np.arange(20) - 1, np.arange(20) / 2):
        with pytest.raises(UsageError, match="numbers must be 20 different whole"):
            autoattack(network(), images, labels, numbers=wrong, **settings)


def test_one_compilation_per_attack_and_shape():
    version, programs = ("apgd-ce", "square"), {}
    for again in (False, True):  # and none where what is compiled is handed on
        report = run(version=version, count=24, batch_size=24, programs=programs)
        compiled = [c["compile_seconds"] > 0 for c in report.costs.values()]
        assert compiled == [not again] * 2
    images, labels = data()
    traces = []

    def counting(images):
        traces.append(images.shape)
        return network()(images)

    autoattack(
        counting, images, labels, jax.random.key(0), norm="linf", eps=0.001,
        version=("apgd-t",), batch_size=16, steps=3,
    )  # fmt: skip
    # Nothing breaks at this radius: four rounds over the same images, one program.
    assert len([shape for shape in traces if shape[0] == 8]) <= 3


@pytest.fixture
def compilations():
    """A list to which every compilation is added, of whatever program."""
    found = []

    def seen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(seen)
    yield found
    jax.monitoring.unregister_event_duration_listener(seen)


def test_calls_share_what_is_compiled(compilations):
    """Other radii, other parameters, other settings bound in the same way: nothing anew."""
    images, labels = data()
    settings = dict(norm="linf", version=("apgd-t", "square"), steps=4, queries=5)
    settings |= dict(batch_size=16, quiet=True)

    def scaled(params, images, train, factor):
        assert not train
        return factor * perceptron(params, images)

    def again(seed, eps):
        bound = Partial(scaled, *network(seed=seed).args, train=False, factor=2.0)
        key = jax.random.key(seed)
        return autoattack(bound, images, labels, key, eps=eps, **settings)

    first = again(0, 0.05)
    assert compilations and all(c["compile_seconds"] > 0 for c in first.costs.values())
    compilations.clear()
    for seed, eps in ((0, 0.05), (0, 0.02), (1, 0.05), (2, 0.1)):
        found = again(seed, eps)
        assert not compilations
        assert all(c["compile_seconds"] == 0 for c in found.costs.values())
        if (seed, eps) == (0, 0.05):
            np.testing.assert_array_equal(found.images, first.images)
    assert len(found.index) != len(first.index)  # so there were other rows to run


def test_what_a_function_closes_over_may_change():
    images, labels = data()
    held, kept = [network()], set(cascade.PROGRAMS)
    settings = dict(norm="linf", eps=0.05, version=("square",), queries=3, batch_size=16)

    def logits_fn(images):
        return held[0](images)

    def clean(logits_fn):
        key = jax.random.key(0)
        return autoattack(logits_fn, images, labels, key, **settings).clean_accuracy

    assert clean(logits_fn) == 0.8
    held[0] = network(seed=1)
    wrong = np.asarray(jnp.argmax(held[0](images), axis=1)) != labels
    assert clean(logits_fn) == (~wrong).mean() != 0.8
    assert cascade.PROGRAMS.keys() == kept  # none of them outlives its call


def test_the_last_programs_are_kept(monkeypatch):
    monkeypatch.setattr(cascade, "KEPT", 2)
    kept = {}
    attacker = cascade.Attacker(network(), "linf", 0.1, 16, programs=kept)
    images, labels = data()

    def seconds(count):
        keys = jax.random.split(jax.random.key(0), count)
        rows = (images[:count], labels[:count], keys)
        return attacker.call(cascade.forward, (0,), rows)[1]["compile_seconds"]

    assert all(seconds(count) > 0 for count in (1, 2))
    assert seconds(1) == 0 and seconds(3) > 0  # which takes the place of 2
    assert seconds(1) == 0 and seconds(2) > 0 and len(kept) == 2


def test_rows_of_calls():
    """Padding is bought where it is cheaper than compiling, and only there."""
    attacker = cascade.Attacker(network(), "linf", 0.1, 250)
    sizes = {250}

    def rows(count, work):
        calls = list(attacker.batches(np.arange(count), sizes, work))
        found = np.concatenate([left for left, _ in calls])
        np.testing.assert_array_equal(found, np.arange(count))
        assert all(len(left) <= rows for left, rows in calls)
        return [rows for _, rows in calls]

    one = attacker.compiling / 100  # a hundred rows cost what a program does
    assert rows(901, one) == [250, 250, 250, 250]  # 99 rows of padding
    assert rows(149, one) == [149] and sizes == {149, 250}
    assert rows(100, one) == [149] and rows(250, one) == [250]
    assert rows(440, 3 * one) == [220, 220]
    assert rows(25, 10 * one) == [25] and rows(24, 10 * one) == [25]
    assert rows(20, 0) == [20]  # what rows cost is not known
    spread = cascade.Attacker(network(), "linf", 0.1, 250, mesh=meshes.make())
    assert [r for _, r in spread.batches(np.arange(20), set(), one)] == [24]


def test_progress_is_told():
    news = []
    run(version=("apgd-ce", "apgd-t"), progress=lambda **n: news.append(n))
    assert news[0]["stage"] == "apgd-ce" and news[-1]["stage"] == "apgd-t"
    assert all(n["done"] <= n["total"] and n["round"] <= n["rounds"] for n in news)


def test_sweep_and_union():
    images, labels = data()
    threats = [("linf", 0.01), ("linf", 0.1), ("l2", 0.3)]
    found = sweep(
        network(), images, labels, jax.random.key(0), threats=threats,
        version=("apgd-ce",), steps=10, programs=PROGRAMS, batch_size=16,
    )  # fmt: skip
    accuracies = [report.robust_accuracy for report in found.reports]
    assert accuracies[0] > accuracies[1]
    assert found.union_accuracy <= min(accuracies) and found.warnings == []
    worse = found.reports[0]._replace(robust_accuracy=0.0)
    better = found.reports[1]._replace(robust_accuracy=0.5)
    (told,) = checks.monotone([worse, better])
    assert told["check"] == "not-monotone"


def warned(function):
    """{check: warning} of what is looked at before white-box attacks."""
    attacker = suites.Attacker(suites.as_partial(function), "linf", 0.05, 16)
    (images, labels), key = data(), jax.random.key(0)
    logits = attacker.logits(images, labels, key)
    stages = suites.stages(("apgd-ce",), "linf", 5)
    found = checks.before(attacker, images, labels, logits, stages, key)
    return {warning["check"]: warning for warning in found}


def test_warnings():
    assert not warned(network())
    assert "softmax" in warned(lambda x: jax.nn.softmax(network()(x)))
    images, labels = data()
    logits = np.asarray(network()(images))
    (told,) = checks.probabilities(np.asarray(jax.nn.sigmoid(logits)))
    assert told["check"] == "sigmoid" and checks.probabilities(logits) == []
    (told,) = checks.chance(np.roll(logits, 1, axis=1), labels)
    assert told["check"] == "chance" and told["right"] <= 4 and told["total"] == 20
    assert checks.chance(logits, labels) == []
    saturated = warned(lambda x: 1000 * network()(x))
    assert saturated["saturated-cross-entropy"]["images"] > 0
    rounded = warned(lambda x: network()(jnp.round(x * 8) / 8))
    assert rounded["zero-gradient"]["images"] == rounded["zero-gradient"]["sample"]
    draws = np.random.default_rng(0)
    random = warned(lambda x: network()(x) + draws.normal())
    assert random["randomised"]["largest_difference"] > 0.01
    masked = checks.square({"clean": 0.9, "apgd-ce": 0.8, "square": 0.5})
    assert masked[0]["check"] == "square-beats-white-box"
    assert checks.square({"clean": 0.9, "apgd-ce": 0.8, "square": 0.7995}) == []
    assert checks.square({"clean": 0.9, "square": 0.5}) == []


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


def test_square_runs_on_a_black_box():
    """A callback has no gradient, and may not be mapped over."""
    weights = jax.tree.map(np.asarray, network().args[0])

    def outside(images):
        assert isinstance(np.asarray(images), np.ndarray) and images.ndim == 4
        first, second = weights
        return np.tanh(np.asarray(images).reshape(len(images), -1) @ first) @ second

    def black_box(images):
        shape = jax.ShapeDtypeStruct((len(images), 5), jnp.float32)
        return jax.pure_callback(outside, shape, images)

    images, labels = data()
    settings = dict(norm="linf", eps=0.1, version=("square",), batch_size=16, queries=500)
    key = jax.random.key(0)
    report = autoattack(black_box, images, labels, key, **settings)
    plain = autoattack(network(), images, labels, key, **settings)
    np.testing.assert_array_equal(report.broken_by, plain.broken_by)
    assert report.clean_accuracy == 0.8 and report.robust_accuracy < 0.8


def test_settings_bound_to_a_network_stay_what_they_are():
    """What is no array in a Partial goes into its function: `if train` must work."""

    def apply(params, scale, images, train, mode):
        if train or mode != "eval":
            raise AssertionError
        return scale * params(images)

    images, labels = data()
    bound = Partial(apply, network(), 2.0, train=False, mode="eval")
    report = autoattack(
        bound, images, labels, jax.random.key(0), norm="linf", eps=0.03,
        version=("apgd-ce",),
    )  # fmt: skip
    assert report.clean_accuracy == 0.8 and report.robust_accuracy < 0.8
    arrays = jax.tree.leaves(suites.as_partial(bound))
    assert [leaf.shape for leaf in arrays] == [(64, 16), (16, 5)]


def test_products_of_a_network_are_float32_unless_asked_otherwise():
    images, labels = data()
    lines = {"highest": [], "default": []}

    def seen(precision):
        def logits_fn(images):
            lines[precision].append(jax.config.jax_default_matmul_precision)
            return network()(images)

        return logits_fn

    for precision in lines:
        autoattack(
            seen(precision), images, labels, jax.random.key(0), norm="linf", eps=0.03,
            version=("square",), precision=precision,
        )  # fmt: skip
    assert set(lines["highest"]) == {"highest"} and set(lines["default"]) == {None}


def test_sign_agreement_of_a_bfloat16_network():
    images, labels = data()
    exact = network()
    coarse = Partial(
        perceptron, jax.tree.map(lambda x: x.astype(jnp.bfloat16), *exact.args)
    )
    assert 0.8 < checks.sign_agreement(coarse, exact, images, labels) < 1
    assert checks.sign_agreement(exact, exact, images, labels) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(eps=-0.1), "eps must be at least 0 and at most 1 for linf, .*got -0.1"),
        (dict(eps=8.0), "at most 1"),
        (dict(eps=np.ones((2, 2))), "eps must be at least 0"),
        (dict(eps=np.nan), "eps must be at least 0"),
        (dict(eps=np.inf, norm="l2"), "at least 0 and at most 8 for l2.*, got inf"),
        (dict(eps=8.1, norm="l2"), "at most 8 for l2, the l2 norm of the whole box"),
        (dict(eps=64.1, norm="l1"), "at most 64 for l1, the l1 norm of the whole box"),
        (dict(eps="0.1"), "eps must be at least 0"),
        (dict(key=0), "key must be a random key like jax.random.key\\(0\\), got 0"),
        (dict(key=jax.random.split(jax.random.key(0))), "key must be one key"),
        (dict(version="rand"), "'rand' calls logits_fn\\(images, key\\), but it takes"),
        (dict(logits_fn=lambda x, key: x), "calls logits_fn\\(images\\), but it takes"),
        (dict(norm="l7"), "unknown norm 'l7'; there are: linf, l2, l1"),
        (dict(norm="Linf"), "linf, l2, l1; did you mean 'linf'\\?"),
        (dict(norm=["linf"]), "unknown norm \\['linf'\\]; there are"),
        (dict(batch_size=2.0), "batch_size must be a whole number of at least 1, got 2.0"),
        (dict(batch_size=0), "batch_size must be a whole number of at least 1, got 0"),
        (dict(version="best"), "unknown suite 'best'; there are: standard, plus, rand"),
        (dict(version=("cw",)), "unknown attack 'cw'; there are: apgd-ce"),
        (dict(images=np.zeros((2, 8, 8, 1))), "images must be float32"),
        (
            dict(images=np.full((2, 8, 8, 1), 2, np.float32)),
            "images must lie in \\[0, 1\\]",
        ),
        (
            dict(images=np.full((2, 8, 8, 1), np.nan, np.float32)),
            "2 of 2 images have pixels of NaN or infinity",
        ),
        (dict(images=np.zeros((2, 3, 8, 8), np.float32)), "which has channels first"),
        (dict(images=np.zeros((2, 1, 8, 8), np.float32)), "which has channels first"),
        (dict(labels=np.zeros(3, int)), "labels must be whole numbers \\[2\\]"),
        (dict(labels=np.zeros(2)), "labels must be whole numbers"),
        (dict(labels=np.array([0, -1])), "labels run from -1 to 0"),
        (dict(labels=np.array([0, 2**32])), "labels run from 0 to 4294967296"),
        (dict(labels=np.zeros((2, 5))), "labels must be whole numbers"),
        (dict(labels=np.array([0, 5])), "labels run from 0 to 5, but logits_fn has 5"),
        (
            dict(logits_fn=lambda x: jnp.zeros((len(x), 5)) * jnp.nan),
            "NaN or infinity on all 2",
        ),
        (dict(logits_fn=lambda x: jnp.zeros((3, 5))), "logits_fn must return"),
        (dict(logits_fn=lambda x: jnp.zeros((len(x), 1))), "at least two classes"),
        (dict(logits_fn=lambda x: (network()(x), x)), "got a tuple: choose its logits"),
    ],
)
def test_bad_input_in_one_line(change, message):
    arguments = dict(
        logits_fn=network(),
        images=np.zeros((2, 8, 8, 1), np.float32),
        labels=np.zeros(2, int),
        key=jax.random.key(0),
        norm="linf",
        eps=0.1,
    )
    with pytest.raises(UsageError, match=message) as error:
        autoattack(**(arguments | change))
    assert "\n" not in str(error.value)


def test_any_number_and_any_key():
    report = run(version=("apgd-ce",), eps=np.float32(0.03))
    for change in (dict(eps=jnp.float32(0.03)), dict(key=jax.random.PRNGKey(0))):
        other = run(version=("apgd-ce",), **dict(eps=np.float32(0.03)) | change)
        assert isinstance(other.eps, float) and report.eps == other.eps
        np.testing.assert_array_equal(report.images, other.images)


def test_old_keys_of_every_generator():
    for name in ("threefry2x32", "rbg", "unsafe_rbg"):
        new, old = jax.random.key(3, impl=name), jax.random.PRNGKey(3, impl=name)
        with jax.default_prng_impl(name):
            assert checks.random_key(old) == new
    old = jax.random.PRNGKey(3, impl="rbg")  # while another generator is the default
    assert checks.random_key(old) == jax.random.key(3, impl="rbg")
    assert keys_by_name.per_example(old, 3).shape == (3,)
    with pytest.raises(ValueError, match="one for each of the 3 examples, got \\[2\\]"):
        keys_by_name.per_example(jax.random.split(jax.random.key(0)), 3)


def test_no_call_is_larger_than_a_batch():
    images, labels = data(count=40)
    seen = []

    def watched(images):
        seen.append(len(images))
        return network()(images)

    autoattack(
        watched, images, labels, jax.random.key(0), norm="l2", eps=0.1,
        version=("apgd-ce",), batch_size=16,
    )  # fmt: skip
    assert max(seen) == 16


@pytest.fixture
def pretend(monkeypatch):
    """Attacks that break images by number, stage and round, to see the loop around."""

    def attack(self, stage, state, index, rows, targets, key, round_):
        names = [f"{stage.name} {round_} {i}" for i in index]
        broken = np.array([zlib.crc32(name.encode()) % 12 == 9 for name in names])
        cost = dict.fromkeys(state.costs[stage.name], 0) | dict(forwards=len(index))
        points, odd = np.clip(state.images[index] + 0.01, 0, 1), np.zeros(len(index), bool)
        share = np.float32(~broken)
        return cascade.Batch(index, points, share, odd, odd, cost)

    monkeypatch.setattr(suites.Attacker, "attack", attack)
    monkeypatch.setattr(checks, "before", lambda *_: [])


def test_resumed_after_any_batch(tmp_path, pretend):
    whole = run(count=40, batch_size=8, resume=tmp_path / "whole")
    files = sorted((tmp_path / "whole").glob("batch-*.npz"))
    assert len(set(whole.broken_by)) == 6 and len(files) > 20
    for cut in range(len(files)):
        part = tmp_path / f"part{cut}"
        shutil.copytree(tmp_path / "whole", part)
        for file in files[cut:]:
            (part / file.name).unlink()
        resumed = run(count=40, batch_size=8, resume=part)
        assert resumed.stages == whole.stages
        np.testing.assert_array_equal(resumed.broken_by, whole.broken_by)
        np.testing.assert_array_equal(resumed.images, whole.images)
        np.testing.assert_array_equal(resumed.norms, whole.norms)
        assert resumed.costs == whole.costs


def test_foreign_files_in_a_folder_to_resume(tmp_path, pretend):
    whole = run(batch_size=8, resume=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    np.savez(tmp_path / "batch-000900.npz", images=np.zeros(3))
    with (tmp_path / "batch-000001.npz").open("rb") as raw, np.load(raw) as file:
        batch = {name: file[name] for name in file.files}
    np.savez(tmp_path / "batch-000901.npz", **batch | dict(index=batch["index"] + 99))
    np.savez(tmp_path / "batch-000902.npz", **batch | dict(name="cw"))
    assert run(batch_size=8, resume=tmp_path).stages == whole.stages
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UsageError, match="holds batches but no manifest.json"):
        run(batch_size=8, resume=tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UsageError, match="holds no settings"):
        run(batch_size=8, resume=tmp_path)


def test_the_batches_of_a_random_network_belong_to_its_run(tmp_path, pretend):
    images, labels = data()

    def again(batch_size):
        autoattack(
            lambda x, key: network()(x), images, labels, jax.random.key(0), norm="l2",
            eps=0.1, version="rand", batch_size=batch_size, resume=tmp_path,
        )  # fmt: skip

    again(16)
    again(16)
    with pytest.raises(UsageError, match="another batch_size"):
        again(8)


def test_a_sweep_is_resumed(tmp_path, pretend):
    images, labels = data()
    news = []

    def again(threats):
        return sweep(
            network(), images, labels, jax.random.key(0), threats=threats,
            resume=tmp_path / "sweep", progress=lambda **n: news.append(n),
        )  # fmt: skip

    for threats, message in (
        ([("linf", 0.03), ("l2", np.inf)], "eps must be"),
        ([("linf", 0.03), ("l7", 1.0)], "unknown norm"),
        ([("linf", 0.03), "l2"], "must be pairs"),
        ([], "threats is empty"),
    ):
        with pytest.raises(UsageError, match=message):
            again(threats)
    assert not news and not (tmp_path / "sweep").exists()
    threats = [("linf", 0.03), ("linf", jnp.float32(0.5)), ("l2", 0.3)]
    first, count = again(threats), len(news)
    second = again(threats)
    assert count and len(news) == count
    assert first.union_accuracy == second.union_accuracy
    folders = sorted(folder.name for folder in (tmp_path / "sweep").iterdir())
    assert folders == ["l2-0.3", "linf-0.03", "linf-0.5"]


WIDE = """
import sys
sys.path[:0] = {paths!r}
import jax, test_suites
from advadapters.attacks import autoattack
assert jax.numpy.ones(1).dtype == "float64"
images, labels = test_suites.data(8)
network = test_suites.network()
few = ("fab-random", "square")  # APGD's other losses come below
for norm, version in dict(linf=few, l2=("apgd-t", "fab-t", "multitargeted")).items():
    report = autoattack(
        network, images, labels, jax.random.key(0), norm=norm, eps=1e-4, version=version,
        **test_suites.short(version))
    assert report.images.dtype == "float32" and len(report.stages) == 1 + len(version)
    print(norm, report.robust_accuracy)
noisy = lambda x, key: network(x) + 0.01 * jax.random.normal(key)
autoattack(noisy, images, labels, jax.random.key(0), norm="l1", eps=0.1, version="rand",
    steps=4)
"""


def test_with_64_bits_enabled():
    here = os.path.dirname(__file__)
    code = WIDE.format(paths=[here, os.path.dirname(here)])
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env=os.environ | {"JAX_ENABLE_X64": "1"},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-2000:]
    assert out.stdout.split()[::2] == ["linf", "l2"]


def test_a_resumed_run_is_the_whole_run(tmp_path):
    whole = run(batch_size=8)

    class Stop(Exception):
        pass

    def stop_after(batches):
        left = [batches]

        def progress(**_):
            left[0] -= 1
            if not left[0]:
                raise Stop

        return progress

    for batches in (1, 3, 2):  # three interruptions, each further on
        with pytest.raises(Stop):
            run(batch_size=8, resume=tmp_path / "state", progress=stop_after(batches))
    done = len(list((tmp_path / "state").glob("batch-*.npz")))
    assert done == 6
    # A file cut short by a kill is done again.
    last = sorted((tmp_path / "state").glob("batch-*.npz"))[-1]
    last.write_bytes(last.read_bytes()[:50])
    rest = []
    resumed = run(
        batch_size=8, resume=tmp_path / "state", progress=lambda **n: rest.append(n)
    )
    assert resumed.stages == whole.stages
    np.testing.assert_array_equal(resumed.broken_by, whole.broken_by)
    np.testing.assert_allclose(resumed.images, whole.images, atol=1e-5)
    again = []
    run(batch_size=8, resume=tmp_path / "state", progress=lambda **n: again.append(n))
    assert rest and not again


def test_another_run_is_not_resumed(tmp_path):
    run(version=("apgd-ce",), resume=tmp_path)
    for change, message in (
        (dict(eps=0.06), "another eps"),
        (dict(norm="l2", eps=0.05), "another norm"),
        (dict(count=15), "another images, labels, shape"),
    ):
        with pytest.raises(UsageError, match=message):
            run(version=("apgd-ce",), resume=tmp_path, **change)
    images, labels = data()
    other = network(seed=3)
    with pytest.raises(UsageError, match="another network"):
        autoattack(
            other, images, labels, jax.random.key(0), norm="linf", eps=EPS["linf"],
            version=("apgd-ce",), steps=10, resume=tmp_path,
        )  # fmt: skip
    (tmp_path / "manifest.json").write_text("[")
    with pytest.raises(UsageError, match="cannot use"):
        run(version=("apgd-ce",), resume=tmp_path)


SCRIPT = """
import sys, jax
sys.path[:0] = {paths!r}
import test_suites
test_suites.many(resume={folder!r})
"""


def many(**settings):
    """A cascade of many batches."""
    settings = dict(norm="l2", eps=0.3, version=("apgd-ce", "apgd-t"), **settings)
    return run(count=64, batch_size=8, **settings)


def test_a_real_kill_loses_at_most_one_batch(tmp_path):
    here, folder = os.path.dirname(__file__), tmp_path / "s"
    code = SCRIPT.format(paths=[here, os.path.dirname(here)], folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 200
    while len(list(folder.glob("batch-*.npz"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = len(list(folder.glob("batch-*.npz")))
    assert kept >= 3 and json.loads((folder / "manifest.json").read_text())
    news = []
    resumed, whole = many(resume=folder, progress=lambda **n: news.append(n)), many()
    assert len(list(folder.glob("batch-*.npz"))) == kept + len(news)
    assert resumed.stages == whole.stages
    np.testing.assert_array_equal(resumed.robust, whole.robust)


def test_the_suite_needs_no_other_part_of_the_package():
    code = (
        "import sys; from advadapters.attacks import autoattack;"
        "print([m for m in sys.modules if m.startswith('advadapters.')"
        " and m.split('.')[1] in ('builders', 'training', 'data', 'models', 'commands')],"
        " 'flax' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[] False"


def test_a_random_network_is_judged_on_draws_that_no_attack_saw():
    """One that ignores its image and is right in 70% of draws is 70% robust."""

    def coin(images, key):
        right = jax.random.bernoulli(key, 0.7, images.shape[:1])
        return jax.nn.one_hot(jnp.where(right, 0, 1), 5) + 0 * images[:, 0, 0]

    images = data(64)[0]
    report = autoattack(
        coin, images, np.zeros(64, int), jax.random.key(0), norm="linf", eps=0.05,
        version="rand", steps=20,
    )  # fmt: skip
    assert report.draws == 100 and "mean of 100 fresh draws" in str(report)
    for value, interval in (
        (report.clean_accuracy, report.intervals["clean"]),
        (report.robust_accuracy, report.intervals["robust"]),
    ):
        assert abs(value - 0.7) < 0.03 and interval[0] < 0.7 < interval[1]
    # An attack's own draws chose the images; on them most looked worse than that.
    assert len(report.index) > 32 and report.share.std() < 0.1


def warnings_of(function, check, batch_size=16):
    """What one check says of a network on the test's data."""
    attacker = suites.Attacker(suites.as_partial(function), "linf", 0.1, batch_size)
    images, labels = data()
    return check(attacker, images, labels, jax.random.key(0))


def test_rows_that_depend_on_each_other_are_warned_of():
    def in_training(images):  # batch norm with the batch's own statistics
        hidden = network()(images)
        return (hidden - hidden.mean(axis=0)) / (hidden.std(axis=0) + 1e-3)

    def by_place(images):
        return network()(images) + jnp.arange(len(images))[:, None] / len(images)

    for batch_size in (8, 20, 250):
        (told,) = warnings_of(in_training, checks.company, batch_size)
        assert told["check"] == "batch-dependent" and told["images"] > told["sample"] / 2
        assert "train=False" in told["message"] and "use_running_average" in told["message"]
    assert warnings_of(by_place, checks.company)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), network().args)
    for fine in (network(), Partial(perceptron, *half), lambda x: 1e4 * network()(x)):
        assert not warnings_of(fine, checks.company)


def test_a_network_with_the_same_clean_logits_is_another_one(tmp_path):
    """A defence that rounds its input, and the network behind it, on 8-bit images."""
    net = network()
    images, labels = data()
    images = np.round(images * 255).astype(np.uint8)

    def again(logits_fn, folder):
        return autoattack(
            logits_fn, images, labels, jax.random.key(0), norm="linf", eps=0.03,
            version=("square",), queries=3, resume=tmp_path / folder, programs=PROGRAMS,
        )  # fmt: skip

    rounds = lambda x: net(jnp.round(x * 255) / 255)  # noqa: E731
    black = lambda x: jax.pure_callback(  # noqa: E731
        lambda x: np.asarray(x).reshape(len(x), -1)[:, :5],
        jax.ShapeDtypeStruct((len(x), 5), jnp.float32), x,
    )  # fmt: skip
    again(rounds, "one")
    again(rounds, "one")
    for other in (net, Partial(lambda scale, x: scale * net(x), np.float32(1.01))):
        with pytest.raises(UsageError, match="another network .its .* differ.: name"):
            again(other, "one")
    attacker = suites.Attacker(suites.as_partial(black), "linf", 0.03, 16)
    found = resume.fingerprint(attacker, images, labels, np.zeros((20, 5)))
    assert list(found) == ["clean logits", "logits near the images"]


def test_images_of_8_bits_stay_so():
    """Memory: the images as they are given, and float32 for those that are moved."""
    images, labels = data()
    small = np.round(images * 255).astype(np.uint8)
    news = []
    reports = [
        autoattack(
            network(),
            given,
            labels,
            jax.random.key(0),
            norm="l2",
            eps=0.2,
            version=("apgd-ce",),
            steps=10,
            batch_size=16,
            programs=PROGRAMS,
            progress=lambda **n: news.append(n),
        )  # fmt: skip
        for given in (small, small / np.float32(255))
    ]
    first, second = reports
    assert first.given is small
    moved = int((first.broken_by == "apgd-ce").sum())
    assert 0 < moved < 16 and first.points.shape == (moved, 8, 8, 1)
    assert first.points.nbytes == 4 * moved * 64
    np.testing.assert_array_equal(first.broken_by, second.broken_by)
    np.testing.assert_allclose(first.images, second.images, atol=1e-5)


def test_no_copy_of_the_images_is_made(tmp_path):
    """Neither for the journal nor where they lie in memory in another order."""
    draw = np.random.default_rng(0)
    images = draw.random((500, 64, 64, 3), np.float32)[:, ::-1]

    def small(params, images):
        return perceptron(params, images[:, ::8, ::8, :1])

    logits_fn = Partial(small, *network().args)
    labels = np.asarray(jnp.argmax(logits_fn(images), axis=1))
    settings = dict(norm="linf", eps=1e-6, version=("square",), queries=2, batch_size=16)
    tracemalloc.start()
    report = autoattack(
        logits_fn, images, labels, jax.random.key(0), resume=tmp_path, **settings
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.given is images and len(report.index) < 5
    assert peak < images.nbytes / 4


def test_settings_of_all_attacks_and_of_one():
    def plan(version, classes=10, **settings):
        return {s.name: s for s in suites.stages(version, "linf", classes, **settings)}

    found = plan("standard", steps=7, restarts=2, targets=3, queries=50)
    assert [s.rounds for s in found.values()] == [2, 6, 3, 2]  # FAB-T draws nothing
    assert found["apgd-ce"].settings["steps"] == found["fab-t"].settings["steps"] == 7
    assert found["square"].settings == dict(queries=50)
    found = plan(("square", ("apgd-t", dict(targets=99, steps=3))), classes=4, steps=50)
    assert found["apgd-t"].targets == 3 and found["apgd-t"].settings["steps"] == 3
    assert plan(("multitargeted",), classes=1000)["multitargeted"].rounds == 9
    assert plan("rand", steps=5)["apgd-dlr"].settings["expectation"] == 20
    # A version's own settings give way to those for all, those of a pair do not.
    assert plan("plus", restarts=2)["apgd-ce"].restarts == 2
    assert plan((("apgd-ce", dict(restarts=3)),), restarts=2)["apgd-ce"].restarts == 3
    assert (
        plan(("malt",))["malt"].candidates == 100 and not plan("plus")["fab-t"].candidates
    )
    for bad, message in (
        (dict(version=("fab",), queries=5), "none of the attacks fab takes queries"),
        (dict(version=(("fab-t", dict(restarts=2)),)), "fab-t takes no 'restarts'"),
        (dict(version="standard", steps=0), "steps must be a whole number of at least 1"),
        (dict(version="standard", targets=2.5), "targets must be a whole number"),
        (dict(version=(("malt", dict(candidates=3)),)), "9 targets of 3 candidates"),
        (dict(version=(("malt", dict(candidates=0)),)), "candidates must be a whole"),
    ):
        with pytest.raises(UsageError, match=message):
            plan(**bad)


def test_without_a_radius_nothing_is_attacked(capsys):
    report = run(eps=0, steps=None, queries=None)
    assert report.stages == {"clean": 0.8} and report.robust_accuracy == 0.8
    assert not len(report.index) and not report.norms.any()
    assert capsys.readouterr().err.count("AutoAttack linf 0, after clean: ") == 1
    run(eps=0, steps=None, queries=None, quiet=True)
    assert not capsys.readouterr().err


def test_a_report_is_printed_kept_and_rounded(tmp_path, capsys):
    images, labels = data()
    images = np.round(images * 255).astype(np.uint8)
    settings = dict(key=jax.random.key(0), version=("apgd-ce",), steps=10, quiet=True)
    settings |= dict(programs=PROGRAMS, batch_size=16)
    for norm, eps in dict(linf=8 / 255, l2=0.2, l1=0.8).items():
        report = autoattack(network(), images, labels, norm=norm, eps=eps, **settings)
        small = report.images8()
        moved = (small.astype(np.float32) - images) / 255
        assert small.dtype == np.uint8
        assert BALLS[norm].norm(jnp.asarray(moved)).max() <= eps * (1 + 1e-4)
        np.testing.assert_array_equal(small[report.robust], images[report.robust])
        if norm == "linf":  # whole levels: rounding undoes next to nothing
            assert np.abs(moved * 255 - (report.images * 255 - images)).max() < 0.51
    # Of 30.6 levels 30 are allowed; what is below them still goes to the nearest.
    points = np.clip(images[:1] / 255 + np.linspace(-0.12, 0.12, 64).reshape(8, 8, 1), 0, 1)
    made = report._replace(
        norm="linf", eps=0.12, given=images, index=np.array([0]), points=np.float32(points)
    )
    change = 255 * made.points - images[:1].astype(np.float32)
    levels = made.images8()[:1] - images[:1].astype(np.float32)
    np.testing.assert_array_equal(levels, np.clip(np.rint(change), -30, 30))
    assert not capsys.readouterr().err
    report.save(tmp_path / "report")
    again = type(report).load(tmp_path / "report", images)
    assert str(again) == str(report) and "| apgd-ce | " in str(report)
    assert "l1 0.8, 20 images" in str(report) and again.costs == report.costs
    np.testing.assert_array_equal(again.images, report.images)
    np.testing.assert_array_equal(again.broken_by, report.broken_by)
    levels = again._replace(given=images / np.float32(255)).images8()
    np.testing.assert_array_equal(levels, small)
    with pytest.raises(UsageError, match="are no 8-bit images"):
        again._replace(given=data()[0]).images8()
    with pytest.raises(UsageError, match="without the images that were attacked"):
        _ = type(report).load(tmp_path / "report").images
    with pytest.raises(UsageError, match="a report on 20 images, got 5"):
        type(report).load(tmp_path / "report", images[:5])
    with pytest.raises(UsageError, match="cannot read a report"):
        type(report).load(tmp_path / "other")


def test_an_entry_of_robustbench():
    report = run(eps=0, steps=None, queries=None)._replace(eps=8 / 255)
    told = dict(dataset="cifar10", architecture="ViT-S", additional_data=False)
    info = report.model_info(**told, link="https://arxiv.org/abs/1")
    assert info["clean_acc"] == info["autoattack_acc"] == info["reported"] == "80.00"
    assert info["eps"] == "8/255" and info["number_forward_passes"] == 1
    assert info["unreliable"] is False and info["additional_data"] is False
    assert json.loads(json.dumps(info)) == info
    for change, message in (
        (dict(dataset="cifar10"), "needs architecture, additional_data"),
        (told | dict(epsilon=8), "has no epsilon"),
    ):
        with pytest.raises(UsageError, match=message):
            report.model_info(**change)
    with pytest.raises(UsageError, match="asks for version 'standard'"):
        report._replace(version="plus").model_info(**told)
