"""An evaluation reads every image once, whatever is asked of it."""

import collections
import functools
import pathlib

import jax
import numpy as np
import pytest

from advadapters import builders, configs, meshes, networks
from advadapters.attacks.pgd import pgd
from advadapters.commands import transfer
from advadapters.data import sources, splits
from advadapters.evaluation import accuracy
from advadapters.runs import asking, evaluating, opening

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = [
    f"--config={ROOT}/configs/digits.py:cotrain",
    "--config.model.size=8x1x16x2",
    "--config.batch_size=16",
    "--config.evaluation.batch_size=16",
    "--config.data.validation=0.1",
]
MIXTURES = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]


class Counted:
    """A split that counts how often each of its examples is decoded."""

    labels = None

    def __init__(self, split):
        self.split, self.reads = split, collections.Counter()

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        self.reads[i] += 1
        return self.split[i]


@pytest.fixture(scope="module")
def opened():
    """(run whose test images are counted, its first variables)."""
    config = configs.parse(FLAGS, {})[0].to_dict()
    source, mesh = sources.load("digits"), meshes.make()
    run = builders.build(config, mesh, source)
    attacks = [
        functools.partial(pgd, norm=norm, eps=eps, steps=1)
        for norm, eps in (("linf", 0.1), ("l2", 0.5))
    ]
    suites = dict(zip(("linf", "l2"), attacks, strict=True))
    run = run._replace(evaluation=run.evaluation._replace(suites=suites))
    variables = jax.jit(lambda: builders.initial_state(run).variables)()
    return opening.OpenRun(run, mesh, None, {}, config), variables


def few(opened, count=20):
    """Some test images, counted."""
    return Counted(splits.Subset(opened.run.data.test, np.arange(count)))


def cases_of(opened):
    return [networks.mixture_case(opened.run.domains, mixture) for mixture in MIXTURES]


def test_every_image_is_decoded_once(opened, capsys):
    opened, variables = opened
    cases, suites = cases_of(opened), opened.run.evaluation.suites
    split = few(opened)
    found = evaluating.evaluate(opened, variables, split, cases, suites)
    assert split.reads == dict.fromkeys(range(20), 1)
    assert list(found) == ["clean", "linf", "l2", "union"]
    assert "evaluated clean, linf, l2 in" in capsys.readouterr().out
    for table in found.values():
        assert table.predictions.shape == (3, 20)
        np.testing.assert_array_equal(table.index, np.arange(20))

    split = few(opened)
    moved = evaluating.corrupted(
        opened, variables, split, cases, ["contrast", "brightness"], [5]
    )
    assert split.reads == dict.fromkeys(range(20), 1)
    assert list(moved) == ["contrast-5", "brightness-5"]

    split = few(opened)
    matrices = transfer.matrices(opened, variables, split, cases, suites)
    assert split.reads == dict.fromkeys(range(20), 1)
    for suite, counts, examples in matrices:
        # Attacked through itself, a network is what its own evaluation says.
        own = np.diagonal(counts.right[:-1])
        np.testing.assert_array_equal(own, found[suite].right.sum(axis=1))
        assert examples == 20


def test_validation_reads_once_and_asks_all_checks(opened):
    opened, variables = opened
    split = few(opened)
    data = opened.run.data._replace(validation=split)
    run = opened.run._replace(data=data)
    score, metrics = evaluating.validation(opened._replace(run=run), variables)
    assert split.reads == dict.fromkeys(range(20), 1)
    checks = run.method.checks()
    assert metrics.keys() == {f"validation/{check.name}" for check in checks}
    weights = [check.weight for check in checks]
    mean = np.average([metrics[f"validation/{c.name}"] for c in checks], weights=weights)
    assert len(checks) == 2 and score == pytest.approx(mean)


def test_networks_of_several_kinds_keep_their_order(opened):
    opened, variables = opened
    domains = opened.run.domains
    mixed = [networks.mixture_case(domains, m, ensemble=True) for m in MIXTURES[1:2]]
    soups = cases_of(opened)
    cases = [soups[0], *mixed, soups[2]]
    split = few(opened)
    found = evaluating.evaluate(opened, variables, split, cases, {})["clean"]
    parts = [
        evaluating.evaluate(opened, variables, few(opened), [case], {})["clean"]
        for case in cases
    ]
    expected = np.concatenate([part.predictions for part in parts])
    np.testing.assert_array_equal(found.predictions, expected)
    assert split.reads == dict.fromkeys(range(20), 1)


def test_the_share_of_work_that_is_done_grows_to_all(opened):
    opened, variables = opened
    shares, (case, *_) = [], cases_of(opened)
    batches = list(builders.eval_batches(opened.run, few(opened)))
    suites = opened.run.evaluation.suites
    questions = evaluating.questions_of(opened, [case], suites)
    programs = asking.programs_of(opened, variables, questions, batches[0], 1)
    accuracy.tables(
        [accuracy.Asked([case.knob], program) for program in programs],
        variables, batches, mesh=opened.mesh, size=20, progress=shares.append,
    )  # fmt: skip
    clean, linf, l2 = (program.flops for program in programs)
    assert clean < linf == l2
    assert len(shares) == 2 * 3 and shares == sorted(shares) and shares[-1] == 1.0
    assert shares[0] == pytest.approx(clean * 16 / (20 * (clean + linf + l2)))


def test_a_meter_tells_what_is_left(monkeypatch, capsys):
    clock = iter([10.0, 11.0, 31.0, 40.0, 50.0])
    monkeypatch.setattr(asking.time, "monotonic", lambda: next(clock))
    meter = asking.Meter(["clean", "a"], began=5.0)
    meter.show(0.01)  # too soon to say anything
    meter.show(0.25)
    meter.close(19, 20)
    said = capsys.readouterr()
    assert said.err == "evaluating clean, a: 25%  ETA 63 s   \n"
    assert "evaluated clean, a in 35 s" in said.out
    assert "warning: 1 of 20 images of clean, a are left out" in said.out
    assert asking.Meter("abcdef", 0.0, quiet=True).name == "a and 5 more suites"
