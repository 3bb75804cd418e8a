"""`advadapters evaluate --suite=corruptions` as a user runs it, and what is counted."""

import functools
import importlib.machinery
import json
import pathlib

import cv2
import jax
import numpy as np
import pytest
from tfds_files import prepare

from advadapters import builders
from advadapters.__main__ import main
from advadapters.data.corruptions import COMMON, SEVERITIES, corrupt
from advadapters.errors import UsageError
from advadapters.evaluation import accuracy, means, shifts
from advadapters.evaluation.rows import Row
from advadapters.networks import mixture_case
from advadapters.runs import evaluating, opening, predictions, training, workdir

DIGITS = str(pathlib.Path(__file__).parents[2] / "configs" / "digits.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network of one domain, trained for three epochs."""
    folder = tmp_path_factory.mktemp("corruptions") / "run"
    config = importlib.machinery.SourceFileLoader("config", DIGITS).load_module()
    config = config.get_config("nominal")
    config.update(epochs=3.0)
    config.model.size = "16x1x32x2"
    config.optimizer.warmup_epochs = 0.5
    config = config.to_dict()
    config["evaluation"] |= {"suites": {}, "batch_size": 360}
    assert training.train(opening.open_run(config, folder)) == 0
    return folder


def evaluated(folder, *argv):
    assert main(["evaluate", f"--workdir={folder}", *argv]) == 0
    return json.loads((folder / "evaluation.json").read_text())


def test_rows_and_table(trained, capsys):
    rows = evaluated(trained, "--suite=corruptions:contrast,fog", "--severity=1,5")
    out = capsys.readouterr().out
    names = ["clean", "contrast-1", "contrast-5", "fog-1", "fog-5", "corruptions mean"]
    assert [row["suite"] for row in rows] == names
    assert {row["metric"] for row in rows} == {"accuracy"}
    found = {row["suite"]: row for row in rows}
    mean = np.mean([found[name]["value"] for name in names[1:5]])
    assert found["corruptions mean"]["value"] == pytest.approx(mean)
    assert found["corruptions mean"]["corruptions"] == ["contrast", "fog"]
    assert found["contrast-5"]["value"] < found["contrast-1"]["value"]
    for text in ("| contrast |", "| fog |", "| corruptions mean |", "over severities 1, 5"):
        assert text in out, text


def test_counts_are_those_by_hand(trained):
    """An image counts by what it is after the corruption alone, whatever it was before."""
    opened = opening.open_run(workdir.read_config(str(trained)), str(trained))
    variables, step = opening.restore_variables(opened, "latest")
    test = opened.run.data.test
    cases, seed = opened.run.evaluation.cases, jax.random.key(opened.run.seed)
    tables = evaluating.corrupted(opened, variables, test, cases, ["impulse_noise"], [5])
    rows = evaluating.rows(opened, variables, cases, tables, step)
    case, network = cases[0], opened.run.network
    (batch,) = builders.eval_batches(opened.run, test)
    images, labels = batch["images"].astype(np.float32) / 255, batch["labels"]
    assert batch["mask"].all()
    keys = shifts.rng.by_index(shifts.rng.fold(seed, "corruption"), batch["index"])
    move = functools.partial(corrupt, name="impulse_noise", severity=5)
    moved = jax.jit(move)(images, keys)
    logits = jax.jit(network.evaluate)(network.at(variables, case.knob), moved)
    assert rows[0].suite == "impulse_noise-5"
    assert rows[0].correct == int((np.argmax(logits, 1) == labels).sum()) > 0


def test_other_test_sets(trained, tmp_path, capsys):
    labels = [n % 10 for n in range(20)]
    examples = [{"label": label} for label in labels]
    prepare("mnist_corrupted/fog", "test", examples, tmp_path, shape=(28, 28, 1))
    prepare("cifar10_corrupted/fog_3", "test", examples, tmp_path)
    where = f"--data_dir={tmp_path}"
    rows = evaluated(trained, "--data=mnist_corrupted/fog", where)
    (row,) = (row for row in rows if row["suite"] == "mnist_corrupted/fog")
    assert row["metric"] == "accuracy"
    tables = predictions.read(trained, "evaluation").tables
    found = tables["mnist_corrupted/fog"]
    assert sorted(found.labels.tolist()) == sorted(labels) and row["n"] == 20
    assert row["correct"] == found.right.sum()
    capsys.readouterr()
    for name, told in (
        ("cifar10_corrupted/fog_3", "images of 3 channels"),
        ("imagenet_r", "tfds build imagenet_r"),
    ):
        assert main(["evaluate", f"--workdir={trained}", f"--data={name}", where]) == 2
        err = capsys.readouterr().err.strip()
        assert told in err and "\n" not in err


def test_the_published_corruptions_are_75_sets_of_one_suite(trained, tmp_path, monkeypatch):
    """From folders of the archives' form; two corruptions stand for the fifteen."""
    draw = np.random.default_rng(0)
    monkeypatch.setattr(shifts, "COMMON", ("fog", "snow"))
    monkeypatch.setattr(shifts, "SEVERITIES", (1, 2))
    for name in ("fog/1", "fog/2", "snow/1", "snow/2"):
        for label in range(10):
            folder = tmp_path / name / str(label)
            folder.mkdir(parents=True)
            image = draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / "a.png"), image)
    argv = [f"--workdir={trained}", f"--data=imagenet_c:{tmp_path}", "--name=published"]
    assert main(["evaluate", *argv]) == 0
    rows = json.loads((trained / "published.json").read_text())
    names = [f"imagenet_c/{name}" for name in ("fog-1", "fog-2", "snow-1", "snow-2")]
    assert [row["suite"] for row in rows] == [*names, "imagenet_c"]
    assert [row["n"] for row in rows] == [10] * 4 + [40] and rows[2]["severity"] == 1
    assert rows[-1]["value"] == pytest.approx(np.mean([row["value"] for row in rows[:4]]))
    tables = predictions.read(trained, "published", ["imagenet_c"]).tables
    share = means.read(tables, ["imagenet_c"])["imagenet_c"].share.mean()
    assert share == pytest.approx(rows[-1]["value"])
    assert len(shifts.parts_of_set("imagenet_a")) == 1
    (suite, source, _), *_ = shifts.parts_of_set("imagenet_c")
    assert (suite, source) == ("imagenet_c/fog-1", "imagenet2012_corrupted/fog_1")


def test_shape_bias_is_the_share_of_decisions_by_shape_where_cues_conflict(trained):
    # Two by shape, six by texture, one by neither, two by both, which agree.
    said = np.array([[1] * 2 + [2] * 6 + [3] + [4] * 2])
    shape = accuracy.Table(said, np.array([1] * 9 + [4] * 2), np.arange(11))
    texture = shape._replace(labels=np.array([2] * 9 + [4] * 2))
    opened = opening.open_run(workdir.read_config(str(trained)), str(trained))
    variables, step = opening.restore_variables(opened, "latest")
    tables = {"conflict_stimuli/shape": shape, "conflict_stimuli/texture": texture}
    cases = opened.run.evaluation.cases
    *cues, bias = evaluating.rows(opened, variables, cases, tables, step)
    assert [(row.correct, row.n) for row in cues] == [(4, 11), (8, 11)]
    assert (bias.correct, bias.n, bias.value) == (2, 8, 0.25)
    assert (bias.suite, bias.metric) == ("shape bias", "shape_bias")


def test_signs_of_gradients_are_compared_where_training_is_coarser(trained, capsys):
    config = workdir.read_config(str(trained))
    opened = opening.open_run(config, str(trained))
    variables, _ = opening.restore_variables(opened, "latest")
    test, (case,) = opened.run.data.test, opened.run.evaluation.cases
    assert evaluating.signs(opened, variables, test, [case]) == [{}]
    config["model"]["dtype"] = "bfloat16"
    coarse = opened._replace(run=builders.build(config, opened.mesh))
    capsys.readouterr()
    (told,) = evaluating.signs(coarse, variables, test, [case])
    network, plain = coarse.run.networks[1.0], coarse.run.network.at(variables, case.knob)
    images = np.stack([test[i][0] for i in range(64)]).astype(np.float32) / 255
    labels = np.array([test[i][1] for i in range(64)])

    def slope(call):
        def total(images):
            logits = call(plain, images)
            others = logits.at[np.arange(64), labels].set(-np.inf)
            return (others.max(1) - logits[np.arange(64), labels]).sum()

        return np.sign(jax.jit(jax.grad(total))(images))

    one, two = slope(network.apply), slope(network.evaluate)
    share = (one == two)[two != 0].mean()
    assert 0.8 < share < 1 and told["sign_agreement"] == pytest.approx(share, abs=2e-3)
    assert f"at least {100 * told['sign_agreement']:.1f}%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--suite=corruptions", "--signs=8"], "--signs is about attacks"),
        (["--suite=corruptions:rain"], "unknown corruption 'rain'; there are: gaussian"),
        (
            ["--suite=corruptions", "--severity=6"],
            "unknown --severity '6'; there are: 1, 2",
        ),
        (["--suite=corruptions,pgd"], "unknown suite 'pgd'"),
        (["--suite=autoattack,autoattack-fast"], "one version of AutoAttack at a time"),
        (["--combine=median"], "unknown --combine 'median'; there are: mean, max, sum"),
        (["--severity=1"], "--severity is for --suite=corruptions"),
    ],
)
def test_mistakes_are_one_line(trained, capsys, argv, message):
    before = sorted(trained.iterdir())
    assert main(["evaluate", f"--workdir={trained}", *argv]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and "\n" not in err
    assert sorted(trained.iterdir()) == before


def network_rows(values):
    """Rows of one network with these values, a function of corruption and severity."""
    return [
        Row.of_counts(
            mixture_case("a", (1.0,)).identity,
            suite,
            round(1000 * values(*of.values())),
            1000,
            7,
            **of,
        )
        for suite, of in shifts.about(COMMON, SEVERITIES).items()
    ]


def test_mce_is_1_for_the_network_it_divides_by():
    rows = network_rows(lambda name, s: 1 - shifts.ALEXNET[name])
    found = shifts.summary(rows, imagenet=True)
    assert [row.suite for row in found] == ["corruptions mean", "mCE"]
    assert found[1].value == pytest.approx(1, abs=1e-3)
    assert "| mCE | 100.0 |" in shifts.corruption_table([*rows, *found])
    half = shifts.summary(network_rows(lambda *_: 0.5), imagenet=True)[1]
    assert half.value == pytest.approx(np.mean([0.5 / v for v in shifts.ALEXNET.values()]))
    assert len(shifts.summary(rows, imagenet=False)) == 1
    assert len(shifts.summary(rows[1:], imagenet=True)) == 1


def test_the_mean_has_the_interval_of_the_images_not_of_their_copies():
    rows = network_rows(lambda name, s: 0.7)
    mean = shifts.mean_row(rows)
    plain = Row.of_counts(mixture_case("a", (1.0,)).identity, "fog-1", 700, 1000, 7)
    assert (mean.low, mean.high) == pytest.approx((plain.low, plain.high))
    assert mean.n == 75_000 and mean.more["images"] == 1000


def test_images_of_four_channels_are_refused():
    with pytest.raises(UsageError, match="1 or 3 channels"):
        corrupt(np.zeros((1, 8, 8, 4)), jax.random.key(0), name="fog", severity=1)
