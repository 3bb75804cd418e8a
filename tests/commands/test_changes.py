"""What a run remembers of its data, and what may change once it has begun."""

import json
import os
import pathlib
import shutil
import tarfile

import cv2
import numpy as np
import pytest

from advadapters.__main__ import main
from advadapters.configs import parse
from advadapters.errors import UsageError
from advadapters.runs import opening, predictions, workdir

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
NAMES = ("ant", "bee", "cat")
QUICK = [
    f"--config={CONFIGS}/digits.py:nominal",
    "--config.model.size=8x1x8x1",
    "--config.model.classes=3",
    "--config.batch_size=8",
    "--config.epochs=1.0",
    "--config.optimizer.warmup_epochs=0.0",
    "--config.evaluation.suites={}",
    "--config.evaluation.batch_size=8",
]


def write_images(root, names=NAMES, count=8):
    """A folder of class folders; the images are the same whatever the classes are named."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for n in range(count):
                image = draw.integers(0, 256, (8, 8), np.uint8)
                cv2.imwrite(str(root / split / name / f"{n}.png"), image)
    return root


def argv(data, folder, *more):
    return [*QUICK, f"--config.data.source=folder:{data}", f"--workdir={folder}", *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(images, a run on them, what it printed)."""
    root = tmp_path_factory.mktemp("changes")
    data, folder = write_images(root / "data"), root / "run"
    said = pytest.MonkeyPatch()
    lines = []
    with said.context() as patch:
        patch.setattr("builtins.print", lambda *text, **_: lines.append(" ".join(text)))
        assert main(["train", *argv(data, folder)]) == 0
    return data, folder, "\n".join(lines)


@pytest.fixture
def copied(finished, tmp_path):
    """(images, run): copies that a test may spoil."""
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(finished[0], data)
    shutil.copytree(finished[1], folder)
    file = folder / "config.json"
    file.write_text(file.read_text().replace(str(finished[0]), str(data)))
    return data, folder


def test_attacks_of_older_runs_have_a_fixed_radius(tmp_path):
    config = parse([f"--config={CONFIGS}/digits.py"], {})[0].to_dict()
    older = {name: dict(attack) for name, attack in config["attacks"].items()}
    assert older["linf"].pop("eps_warmup") == 0.0
    (tmp_path / "config.json").write_text(json.dumps(config | {"attacks": older}))
    assert workdir.read_config(tmp_path) == workdir.plain(config)


def refused(capsys, *arguments):
    """The one line with which a command refuses."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_classes_are_told_and_stored(finished):
    _, folder, said = finished
    assert said.count("training images by class: ant 8, bee 8, cat 8") == 1
    stored = json.loads((folder / "data.json").read_text())
    assert stored["classes"] == list(NAMES)
    assert stored["train"]["images"] == 24 and stored["test"]["counts"] == [8, 8, 8]


def test_renamed_or_permuted_classes_are_refused(finished, tmp_path, capsys):
    _, folder, _ = finished
    # Sorted otherwise, and the same images, labels and order under other names.
    for names, told in (
        (("ant", "cow", "dog"), "class 1 is 'bee' in the run in .* 'cow' in the data"),
        (("ant", "bee", "Cat"), "class 0 is 'ant' in the run in .* 'Cat' in the data"),
    ):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        other = write_images(tmp_path / "other", names)
        source = f"--config.data.source=folder:{other}"
        for verb in ("evaluate", "transfer"):
            said = refused(capsys, verb, f"--workdir={folder}", source)
            assert told.split(" .* ")[0] in said and told.split(" .* ")[1] in said
        assert told.split(" .* ")[0] in refused(capsys, "train", *argv(other, folder))


def test_ingredients_have_the_same_classes(copied, finished, tmp_path, capsys):
    _, folder = copied
    data = json.loads((folder / "data.json").read_text())
    data["classes"][2] = "cow"
    (folder / "data.json").write_text(json.dumps(data))
    os.rename(folder, other := tmp_path / "other")
    names = f"--ingredients={finished[1]},{other}"
    said = refused(capsys, "soup", names, f"--output={tmp_path / 'new'}")
    assert f"class 2 is 'cat' in {finished[1]} and 'cow' in {other}" in said
    assert not (tmp_path / "new").exists()


def test_a_head_is_taken_over_with_its_classes(finished, tmp_path, capsys):
    _, folder, _ = finished
    other = write_images(tmp_path / "other", ("ant", "bee", "cow"))
    start = argv(other, tmp_path / "new", f"--config.start.workdir={folder}")
    said = refused(capsys, "train", *start)
    assert f"class 2 is 'cat' in {folder} and 'cow' in the data" in said
    assert "config.start.fresh=('head/.*',)" in said and not (tmp_path / "new").exists()
    config, _ = parse([*start, '--config.start.fresh=("head/.*",)'], {"workdir": None})
    assert opening.open_run(config.to_dict(), tmp_path / "new").run.start


def test_an_older_run_without_names_says_so(copied, capsys):
    data, folder = copied
    (folder / "data.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["data"]["test_split"]
    (folder / "config.json").write_text(json.dumps(config))
    assert opening.open_trained(folder).run.steps == 3
    assert "knows no class names" in capsys.readouterr().out
    assert main(["train", *argv(data, folder)]) == 0
    assert "knows no class names" in capsys.readouterr().out
    assert workdir.read_data(folder)["classes"] == list(NAMES)  # from now on


def test_keys_that_train_nothing_may_change(copied, capsys):
    data, folder = copied
    more = [
        "--config.log_every=7",
        "--config.data.threads=1",
        "--config.keep_checkpoints=3",
        "--config.model.attention=xla",
    ]
    assert main(["train", *argv(data, folder, *more)]) == 0
    said = capsys.readouterr().out
    assert (
        "changed since the run began: data.threads 2 -> 1, keep_checkpoints 2 -> 3" in said
    )
    assert "finished already" in said
    assert "model.attention auto -> xla" in said
    assert workdir.read_config(folder)["log_every"] == 7
    (row,) = json.loads((folder / "history.json").read_text())
    assert row["step"] == 3 and row["changed"]["log_every"] == [50, 7]
    for more, told in (
        (["--config.optimizer.b2=0.5"], "optimizer.b2: 0.95 there, 0.5 now"),
        (["--config.epochs=0.5"], "epochs: 1.0 there, 0.5 now"),
        (["--config.seed=1", "--config.log_every=3"], "seed: 0 there, 1 now"),
    ):
        assert told in refused(capsys, "train", *argv(data, folder, *more))
    for verb in ("evaluate", "transfer", "select"):
        said = refused(capsys, verb, f"--workdir={folder}", "--config.seed=1")
        assert "seed: 0 there, 1 now" in said and "only log_every, checkpoint" in said
    assert workdir.read_config(folder)["log_every"] == 7
    assert len(json.loads((folder / "history.json").read_text())) == 1


def test_a_run_goes_on_for_longer_if_that_is_said(copied, capsys):
    data, folder = copied
    config, _ = parse(argv(data, folder, "--config.epochs=2.0"), {"workdir": None})
    with pytest.raises(UsageError, match="give more on the command line: --config.epochs"):
        opening.open_run(config.to_dict(), folder)
    assert main(["train", *argv(data, folder, "--config.epochs=2.0")]) == 0
    said = capsys.readouterr().out
    assert "epochs 1.0 -> 2.0; schedules go on as those of the longer" in said
    assert "resuming at step 3 of 6" in said
    assert {row["step"] for row in json.loads((folder / "results.json").read_text())} == {6}


def test_data_may_move(copied, tmp_path, capsys):
    data, folder = copied
    moved = data.rename(tmp_path / "moved")
    assert "is not there" in refused(capsys, "evaluate", f"--workdir={folder}")
    source = f"--config.data.source=folder:{moved}"
    assert len(opening.open_trained(folder, [source]).run.data.test) == 24
    assert main(["train", *argv(moved, folder)]) == 0
    assert f"data.source folder:{data} -> folder:{moved}" in capsys.readouterr().out
    assert workdir.read_config(folder)["data"]["source"] == f"folder:{moved}"
    other = write_images(tmp_path / "other", count=9)
    said = refused(capsys, "train", *argv(other, folder))
    assert f"has not the train images of {folder} (24 images then, 27 now)" in said
    (other / "a").mkdir()
    shutil.rmtree(other)
    draw = write_images(other)
    (draw / "test" / "ant" / "0.png").write_bytes(
        (draw / "test" / "ant" / "1.png").read_bytes()
    )
    said = refused(
        capsys, "evaluate", f"--workdir={folder}", f"--config.data.source=folder:{other}"
    )
    assert f"has not the test images of {folder} (other images" in said


def test_what_reads_no_image_needs_no_data(copied, tmp_path, capsys):
    data, folder = copied
    shutil.rmtree(data)
    new = tmp_path / "new"
    taken = ["extract", f"--workdir={folder}", "--mixture=clean=1"]
    assert main([*taken, f"--output={new}"]) == 0
    assert workdir.read_data(new) == workdir.read_data(folder)
    soup = ["soup", f"--ingredients={folder},{new}", f"--output={tmp_path / 'soup'}"]
    assert main([*soup, "--config.data.source=folder:/elsewhere"]) == 0
    assert workdir.read_data(tmp_path / "soup")["classes"] == list(NAMES)
    assert workdir.read_config(tmp_path / "soup")["data"]["source"] == "folder:/elsewhere"
    assert "seed: 0 there, 1 now" in refused(
        capsys, *taken, "--config.seed=1", f"--output={tmp_path / 'no'}"
    )


def test_corrupt_test_images_are_found_before_training(tmp_path, capsys):
    data = write_images(tmp_path / "data")
    for n in (3, 5):
        (data / "test" / "bee" / f"{n}.png").write_bytes(b"no image")
    said = refused(capsys, "train", *argv(data, tmp_path / "run"))
    assert "2 of 24 test images cannot be decoded; the first: corrupt image" in said
    assert "bee/3.png" in said and not (tmp_path / "run").exists()
    arguments = argv(data, tmp_path / "run", "--config.data.skip_corrupt=True")
    config, _ = parse(arguments, {"workdir": None})
    opening.open_run(config.to_dict(), tmp_path / "run")
    assert (
        "warning: 2 of 24 test images cannot be decoded and are" in capsys.readouterr().out
    )


def test_a_test_image_that_breaks_later_is_no_dead_end(copied, capsys):
    """What the message advises works, on the finished run and on one that goes on."""
    data, folder = copied
    (data / "test" / "bee" / "3.png").write_bytes(b"no image")
    said = refused(capsys, "evaluate", f"--workdir={folder}")
    assert "bee/3.png: replace it, or set config.data.skip_corrupt=True" in said
    skip = "--config.data.skip_corrupt=True"
    assert main(["evaluate", f"--workdir={folder}", skip]) == 0
    said = capsys.readouterr().out
    assert "changed for this call: data.skip_corrupt False -> True" in said
    assert "warning: 1 of 24 images of clean are left out: they cannot be decoded" in said
    assert {r["n"] for r in json.loads((folder / "evaluation.json").read_text())} == {23}
    assert main(["train", *argv(data, folder, skip)]) == 0
    assert {r["n"] for r in json.loads((folder / "results.json").read_text())} == {23}


def test_other_test_sets_are_sources_too(finished, tmp_path, capsys):
    """Without training images or all classes; labels go by name where there are names."""
    data, folder, _ = finished
    labels, images = [], []
    for number, name in enumerate(NAMES):
        for n in range(8):
            images.append(cv2.imread(str(data / "test" / name / f"{n}.png"), 0))
            labels.append(number)
    np.savez(tmp_path / "a.npz", test_images=np.stack(images), test_labels=labels)
    some = tmp_path / "some"  # class folders alone, numbered otherwise
    shutil.copytree(data / "test" / "bee", some / "bee")
    shutil.copytree(data / "test" / "cat", some / "cat")
    with tarfile.open(tmp_path / "test.tar", "w") as tar:
        tar.add(data / "test" / "cat", "cat")
    specs = [f"npz:{tmp_path}/a.npz", f"folder:{some}", f"tar:{tmp_path}", f"folder:{data}"]
    assert main(["evaluate", f"--workdir={folder}", "--data=" + ",".join(specs)]) == 0
    said = capsys.readouterr().out
    assert f"--data=npz:{tmp_path}/a.npz: class names are not compared" in said
    assert f"--data=folder:{some}: classes are numbered by their names" in said
    _, found, *_ = predictions.read(folder, "evaluation")
    whole = predictions.read(folder, "results").tables["clean"]
    for spec, part in zip(
        specs, (slice(None), slice(8, 24), slice(16, 24), slice(None)), strict=True
    ):
        table = found[spec]
        assert (table.labels == np.asarray(labels)[part]).all()
        assert (table.predictions == whole.predictions[:, part]).all()

    os.rename(some / "bee", some / "bumblebee")
    said = refused(capsys, "evaluate", f"--workdir={folder}", f"--data=folder:{some}")
    assert "has class 'bumblebee', which is none of the 3 of the run (ant, bee, cat" in said
    np.savez(
        tmp_path / "a.npz", test_images=np.stack(images), test_labels=np.add(labels, 1)
    )
    said = refused(capsys, "evaluate", f"--workdir={folder}", f"--data={specs[0]}")
    assert "a.npz labels run from 1 to 3" in said
    for spec, told in (
        ("folder:/no", "--data=folder:/no: data folder /no is not there"),
        ("idx:/no", "--data=idx:/no: no t10k-images-idx3-ubyte.gz in /no"),
        ("disk:/no", "TFDS names with a test split, and sources: folder:..., tar:..."),
    ):
        assert told in refused(capsys, "evaluate", f"--workdir={folder}", f"--data={spec}")
