"""What cascades compile, share and keep, and what runs in the programs."""

import os
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from tiny_cascades import PROGRAMS, data, network, perceptron, run

from advadapters import meshes
from advadapters.attacks import (
    autoattack,
    programs,
)
from advadapters.attacks.attacker import Attacker


def test_one_compilation_per_attack_and_shape():
    version, shared = ("apgd-ce", "square"), {}
    for again in (False, True):  # and none where what is compiled is handed on
        report = run(version=version, count=24, batch_size=24, programs=shared)
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
    held, kept = [network()], set(programs.PROGRAMS)
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
    assert programs.PROGRAMS.keys() == kept  # none of them outlives its call


def test_the_last_programs_are_kept(monkeypatch):
    monkeypatch.setattr(programs, "KEPT", 2)
    kept = {}
    attacker = Attacker(network(), "linf", 0.1, 16, programs=kept)
    images, labels = data()

    def seconds(count):
        keys = jax.random.split(jax.random.key(0), count)
        rows = (images[:count], labels[:count], keys)
        return attacker.call(programs.forward, (0,), rows)[1]["compile_seconds"]

    assert all(seconds(count) > 0 for count in (1, 2))
    assert seconds(1) == 0 and seconds(3) > 0  # which takes the place of 2
    assert seconds(1) == 0 and seconds(2) > 0 and len(kept) == 2


def test_rows_of_calls():
    """Padding is bought where it is cheaper than compiling, and only there."""
    attacker = Attacker(network(), "linf", 0.1, 250)
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
    spread = Attacker(network(), "linf", 0.1, 250, mesh=meshes.make())
    assert [r for _, r in spread.batches(np.arange(20), set(), one)] == [24]


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
    arrays = jax.tree.leaves(programs.as_partial(bound))
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


WIDE = """
import sys
sys.path[:0] = {paths!r}
import jax, tiny_cascades
from advadapters.attacks import autoattack
assert jax.numpy.ones(1).dtype == "float64"
images, labels = tiny_cascades.data(8)
network = tiny_cascades.network()
few = ("fab-random", "square")  # APGD's other losses come below
for norm, version in dict(linf=few, l2=("apgd-t", "fab-t", "multitargeted")).items():
    report = autoattack(
        network, images, labels, jax.random.key(0), norm=norm, eps=1e-4, version=version,
        **tiny_cascades.short(version))
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


def test_the_suite_needs_no_other_part_of_the_package():
    code = (
        "import sys; from advadapters.attacks import autoattack;"
        "print([m for m in sys.modules if m.startswith('advadapters.')"
        " and m.split('.')[1] in ('builders', 'training', 'data', 'models', 'commands')],"
        " 'flax' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[] False"


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
