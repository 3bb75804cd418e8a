"""Accuracies against counting by hand, and the intervals and tables made of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.tree_util import Partial

from advadapters import losses, networks, rng, trees
from advadapters.attacks import autoattack
from advadapters.attacks.pgd import pgd
from advadapters.data import pipeline
from advadapters.data.splits import ArraySplit
from advadapters.evaluation import accuracy, fitting, tables
from advadapters.evaluation.rows import Row
from advadapters.intervals import wilson
from advadapters.soups import scoring
from advadapters.training import states

NET = tiny.network()
ATTACK = functools.partial(pgd, norm="linf", eps=0.02, steps=3, keep="best")
MIXTURES = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (-0.1, 1.1), (1.1, -0.1)]
say = jax.jit(NET.apply)


@jax.jit
def attacked(plain, images, labels, keys):
    """ATTACK on one network."""
    return ATTACK(functools.partial(NET.apply, plain), images, labels, keys)


@functools.cache
def setup(count=21):
    """(split, variables): two rows of adapters, and labels that their soup has right."""
    raw = tiny.raw_batch(count)
    tree = states.branches(tiny.plain(NET), ("class_token", "norm/.*"), 2)
    other = states.branches(tiny.plain(NET, seed=7), ("class_token", "norm/.*"), 2)
    rows = jax.tree.map(
        lambda a, b: jnp.stack([a[0], b[0]]), tree["adapters"], other["adapters"]
    )
    tree = tree | {"adapters": rows}
    # So that accuracies are neither 0 nor 1.
    logits = say(trees.plain(tree, (0.5, 0.5)), raw["images"] / np.float32(255))
    return ArraySplit(raw["images"], np.argmax(logits, axis=1)), tree


def table_of(mesh, attack, at_once, batch_size=8, net=NET, mixtures=MIXTURES, rows=None):
    """The Table of soups, so many in a call, on so many rows of a device at once."""
    split, variables = setup()
    knobs = [networks.Knob(np.array(m, np.float32)) for m in mixtures]
    batches = list(
        pipeline.eval_batches(split, size=8, crop_ratio=1.0, batch_size=batch_size)
    )
    predictor = accuracy.make_predictor(net, attack, mesh=mesh)
    (program,) = fitting.programs(
        [fitting.Wanted(predictor, knobs, at_once, batches[0])],
        variables, mesh=mesh, rows=rows or batch_size // mesh.size, room=2**40, cache={},
    )  # fmt: skip
    (found,) = accuracy.tables(
        [accuracy.Asked(knobs, program)],
        variables, batches, mesh=mesh, size=len(split), progress=lambda share: None,
    )  # fmt: skip
    return found


@pytest.mark.parametrize("attack", [None, ATTACK], ids=["clean", "pgd"])
def test_predictions_are_those_of_each_soup_alone(attack, mesh):
    split, variables = setup()
    images = jnp.asarray(split.images, jnp.float32) / 255
    keys = rng.by_index(rng.fold(jax.random.key(0), "evaluation"), jnp.arange(21))
    expected = []
    for mixture in MIXTURES:
        plain = trees.plain(variables, mixture)
        said = np.argmax(say(plain, images), 1)
        if attack:
            moved = attacked(plain, images, jnp.asarray(split.labels), keys)
            then = np.argmax(say(plain, moved), 1)
            said = np.where(said == split.labels, then, said)
        expected.append(said)
    assert len({int((said == split.labels).sum()) for said in expected}) > 1
    for at_once in (1, 2):  # one after the other; mapped over, with one too many
        found = table_of(mesh, attack, at_once)
        np.testing.assert_array_equal(found.predictions, expected)
        np.testing.assert_array_equal(found.labels, split.labels)
        np.testing.assert_array_equal(found.index, np.arange(21))


def test_predictions_do_not_depend_on_batches_or_devices(mesh, one_device):
    several = table_of(mesh, ATTACK, 1)
    alone = table_of(one_device, ATTACK, 1, batch_size=6, rows=3)
    jax.tree.map(np.testing.assert_array_equal, several, alone)


def test_an_image_wrong_before_the_attack_is_never_robust(mesh):
    def helpful(logits_fn, images, labels, key):
        return jnp.zeros_like(images) + labels[:, None, None, None] / 5

    def apply(params, images, key=None):
        return jax.nn.one_hot(jnp.round(images[:, 0, 0, 0] * 5).astype(int), 5)

    net = NET._replace(evaluate=apply)
    clean = table_of(mesh, None, 1, net=net, mixtures=MIXTURES[:1])
    robust = table_of(mesh, helpful, 1, net=net, mixtures=MIXTURES[:1])
    np.testing.assert_array_equal(clean.right, robust.right)
    assert 0 < clean.right.sum() < 21


def no_numbers(params, images):
    """NET, but NaN on moved images (not whole 255ths) whose first pixel is bright."""
    moved = jnp.abs(images * 255 - jnp.round(images * 255)).max(axis=(1, 2, 3)) > 0.01
    lost = moved & (images[:, 0, 0, 0] > 0.5)
    return jnp.where(lost[:, None], jnp.nan, NET.evaluate(params, images))


def test_logits_that_are_not_finite_are_not_right_in_any_evaluation(mesh):
    """One rule: under PGD and in AutoAttack, on clean images, and among soups."""
    split, variables = setup()
    net = NET._replace(evaluate=no_numbers)
    nudge = lambda logits_fn, images, *_: images + 1e-4  # noqa: E731
    clean, pgd_ = (
        table_of(mesh, a, 1, net=net, mixtures=MIXTURES[1:2]) for a in (None, nudge)
    )
    bright = split.images[:, 0, 0, 0] / 255 > 0.5
    assert clean.right.all() and not clean.not_finite.any()
    np.testing.assert_array_equal(pgd_.right[0], ~bright)
    assert pgd_.not_finite == bright.sum()
    (line,) = accuracy.strange(pgd_, ["a soup"], "pgd")
    assert f"a soup, pgd: the logits are not finite on {bright.sum()} of 21" in line
    assert not accuracy.strange(clean, ["a soup"], "clean")
    report = autoattack(
        Partial(jax.jit(net.evaluate), trees.plain(variables, (0.5, 0.5))),
        split.images / np.float32(255), split.labels, jax.random.key(0),
        norm="linf", eps=1e-4, version=("square",), queries=1,
    )  # fmt: skip
    np.testing.assert_array_equal(report.robust, pgd_.right[0])
    assert report.not_finite == bright.sum()
    (told,) = (w for w in report.warnings if w["check"] == "not-finite")
    assert told["images"] == bright.sum() and told["clean"] == 0
    said = scoring.right(jnp.array([[jnp.nan, 1.0], [0.0, 1.0]]), jnp.array([1, 1]))
    np.testing.assert_array_equal(said, [False, True])


def test_an_image_that_is_not_finite_is_no_success_of_an_attack(mesh):
    def poison(logits_fn, images, labels, key):
        return jnp.where(images[:, :1, :1, :1] > 0.5, jnp.nan, images)

    split, _ = setup()
    bright = split.images[:, 0, 0, 0] / 255 > 0.5
    found = table_of(mesh, poison, 1, mixtures=MIXTURES[1:2])
    assert found.right.all() and not found.not_finite.any()
    assert found.not_attacked == bright.sum()
    (line,) = accuracy.strange(found, ["a soup"], "pgd")
    assert (
        f"not finite for {bright.sum()} of 21 images, which count as not attacked" in line
    )
    both = accuracy.union([found, found])
    assert both.right.all() and not both.not_attacked.any()


def test_the_union_is_right_under_all():
    labels = np.array([0, 1, 2, 3])
    one, two = np.array([[0, 1, 2, 0]]), np.array([[0, 2, 2, 0]])
    tables_ = [accuracy.Table(said, labels, np.arange(4)) for said in (one, two)]
    found = accuracy.union(tables_)
    np.testing.assert_array_equal(found.right, [[True, False, True, False]])


def test_classes_count_as_their_groups(mesh):
    p = np.array([[0.1, 0.3, 0.2, 0.15, 0.25], [0.3, 0.05, 0.05, 0.2, 0.4]])
    groups = np.array([2, 0, 2, 2, -1])  # class 4 is left out, group 1 has no member
    mean, total, most = (
        np.exp(accuracy.grouped(jnp.log(p) + 3.0, groups, combine))
        for combine in ("mean", "sum", "max")
    )
    np.testing.assert_allclose(total, [[0.3, 0, 0.45], [0.05, 0, 0.55]], atol=1e-6)
    np.testing.assert_allclose(mean, [[0.3, 0, 0.15], [0.05, 0, 0.55 / 3]], atol=1e-6)
    np.testing.assert_allclose(most, [[0.3, 0, 0.2], [0.05, 0, 0.3]], atol=1e-6)
    split, variables = setup()
    keep = np.array([0, -1, 2, 3, -1])
    predictor = accuracy.make_predictor(NET, None, mesh=mesh, groups=keep)
    batches = pipeline.eval_batches(split, size=8, crop_ratio=1.0, batch_size=24)
    found = predictor(variables, networks.Knob(np.array([[0.5, 0.5]])), next(batches))
    logits = say(trees.plain(variables, (0.5, 0.5)), split.images / np.float32(255))
    expected = np.array([0, 2, 3])[np.argmax(logits[:, [0, 2, 3]], 1)]
    np.testing.assert_array_equal(found[0, :21], expected)


def test_any_of_several_labels_is_right():
    labels = np.array([[1, 2], [3, -2]])
    found = accuracy.Table(np.array([[2, 3], [0, -1]]), labels, np.arange(2))
    np.testing.assert_array_equal(found.right, [[True, True], [False, False]])


def test_an_ensemble_mixes_probabilities(mesh):
    split, variables = setup()
    images = jnp.asarray(split.images, jnp.float32) / 255
    each = [say(trees.plain(variables, one), images) for one in np.eye(2, dtype=np.float32)]
    ensemble = networks.ensemble(NET)
    log_p = jax.jit(ensemble.evaluate)
    for weights in ((0.3, 0.7), (1.0, 0.0)):
        plain = ensemble.at(variables, networks.Knob(np.array(weights)))
        found = jnp.exp(log_p(plain, images))
        expected = sum(w * jax.nn.softmax(x) for w, x in zip(weights, each, strict=True))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert table_of(mesh, ATTACK, 2, net=ensemble, mixtures=[(0.3, 0.7)]).right.any()


def test_wilson_interval():
    # Wilson (1927), computed by hand for 8 of 10 and 0 of 10.
    np.testing.assert_allclose(wilson(8, 10), (0.4902, 0.9433), atol=1e-4)
    np.testing.assert_allclose(wilson(0, 10), (0.0, 0.2775), atol=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    for n in range(1, 3000):
        assert wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0


def example_rows():
    return [
        Row.of_counts(
            networks.mixture_case(("clean", "linf"), (w, 1 - w)).identity,
            suite,
            correct,
            100,
            7,
        )
        for suite, base in (("clean", 90), ("pgd20_linf", 40))
        for w, correct in ((1.0, base), (0.9, base + 1), (0.0, base + 2))
    ]


def test_rows_and_markdown():
    rows = example_rows()
    assert rows[0].metric == "accuracy" and rows[3].metric == "robust_accuracy"
    assert rows[3].value == 0.4 and rows[3].n == 100
    lines = tables.results_table(rows).splitlines()
    assert lines[0] == "| mixture | clean accuracy, % | pgd20_linf robust, % |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| clean mode", "| 0.9 clean + 0.1 linf", "| linf mode",
    ]  # fmt: skip
    assert lines[2].endswith("| 90.0 (82.6-94.5) | 40.0 (30.9-49.8) |")


def test_picture(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        tables.draw_tradeoff(example_rows(), file)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_margin_loss_counts_the_same_mistakes():
    logits = jax.random.normal(jax.random.key(0), (50, 5))
    labels = jnp.arange(50) % 5
    wrong = jnp.argmax(logits, 1) != labels
    np.testing.assert_array_equal(losses.margin(logits, labels) > 0, wrong)
