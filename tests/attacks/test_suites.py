"""AutoAttack: any class count, any batching, versions, settings, reports."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascades import EPS, PROGRAMS, data, network, run, short

from advadapters.attacks import (
    autoattack,
    masking,
    sweep,
    versions,
)
from advadapters.attacks.apgd import checkpoints
from advadapters.attacks.report import from_plain, merge, to_plain
from advadapters.attacks.square import side_lengths
from advadapters.balls import BALLS
from advadapters.errors import UsageError


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
    names = [stage.name for stage in versions.stages("fast", "linf", 5)]
    assert list(fast.stages) == ["clean", *names]
    assert list(both.stages) == ["clean", *names, "apgd-ce", "apgd-t", "fab-t", "square"]
    broken = ~fast.robust
    assert broken.any() and not both.robust[broken].any()
    np.testing.assert_array_equal(both.broken_by[broken], fast.broken_by[broken])
    np.testing.assert_array_equal(both.images[broken], fast.images[broken])
    assert set(both.broken_by[fast.robust]) <= {"", *versions.STANDARD}
    images, labels = data()
    wrong = np.asarray(jnp.argmax(network()(fast.images), axis=1)) != labels
    np.testing.assert_array_equal(wrong, broken)


def test_rounds_follow_the_norm_and_the_classes():
    def rounds(version, norm, classes):
        return {s.name: s.rounds for s in versions.stages(version, norm, classes)}

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
    assert all(s.settings["expectation"] == 20 for s in versions.stages("rand", "linf", 10))


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
    (told,) = masking.monotone([worse, better])
    assert told["check"] == "not-monotone"


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


def test_settings_of_all_attacks_and_of_one():
    def plan(version, classes=10, **settings):
        return {s.name: s for s in versions.stages(version, "linf", classes, **settings)}

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
