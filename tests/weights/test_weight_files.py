"""Files of every format, whole, damaged and hostile; and training that starts from them."""

import json
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from weights.test_rules import VIT, network

from advadapters import weights
from advadapters.__main__ import main
from advadapters.errors import UsageError
from advadapters.weights import formats, vits
from advadapters.weights.layouts import Geometry

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
FOUR = Geometry(heads=4, patch=4)


def timm_arrays(told=VIT):
    """A small ViT by timm's names."""
    return weights.write("timm", network(vits.TIMM, told), FOUR, told)


def need_one_line(path, message=""):
    """Reading raises one short line with the path."""
    with pytest.raises(UsageError) as error:
        weights.read(path)
    text = str(error.value)
    assert "\n" not in text and len(text) < 1000 and str(path) in text
    assert message in text


def save(path, arrays):
    """A file of safetensors; skips where they are not installed."""
    numpy = pytest.importorskip("safetensors.numpy")
    path.write_bytes(numpy.save(arrays))


def test_npz_of_flax_with_bfloat16(tmp_path):
    arrays = weights.write(vits.FLAX.name, network(vits.FLAX, VIT), FOUR, VIT)
    half = {f"opt/target/{n}": a.astype(ml_dtypes.bfloat16) for n, a in arrays.items()}
    np.savez(tmp_path / "B_16.npz", **half)
    np.savez(tmp_path / "whole.npz", **arrays)
    first, second = (weights.read(tmp_path / f"{n}.npz") for n in ("B_16", "whole"))
    assert first.family == "vision_transformer and big_vision" and first.kind == "npz"
    assert first.model["gelu"] == "tanh" and first.model["mean"] == (0.5,) * 3
    assert first.model["pool"] == "class"
    for path, leaf in second.leaves["params"].items():
        np.testing.assert_allclose(first.leaves["params"][path], leaf, rtol=2**-8)


def test_the_name_of_a_file_says_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", **timm_arrays())
    (tmp_path / "a.npz").rename(tmp_path / "model.safetensors")
    assert weights.read(tmp_path / "model.safetensors").kind == "npz"
    save(tmp_path / "b.npz", timm_arrays())
    assert weights.read(tmp_path / "b.npz").kind == "safetensors"


def test_what_was_written_is_read_again(tmp_path):
    pytest.importorskip("safetensors")
    np.savez(tmp_path / "a.npz", **timm_arrays())
    first = weights.read(tmp_path / "a.npz")
    weights.save(tmp_path / "b", first)
    second = weights.read(tmp_path / "b")
    assert second.family == "advadapters" and second.model == first.model
    for path, leaf in first.leaves["params"].items():
        np.testing.assert_array_equal(second.leaves["params"][path], leaf)


def test_cut_and_flipped_safetensors_are_one_line(tmp_path, rng):
    file = tmp_path / "w"
    save(file, timm_arrays())
    whole = file.read_bytes()
    for end in (0, 4, 8, 100, len(whole) - 1):
        file.write_bytes(whole[:end])
        need_one_line(file)
    length = int.from_bytes(whole[:8], "little")
    for place in rng.integers(0, 8 + length, size=60):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(flipped))
        try:  # a name may be another good name, or a space another space
            weights.read(file)
        except UsageError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cls_token": np.full((1, 1, 32), np.nan, np.float32)}, "not finite"),
        ({"cls_token": np.ones((1, 1, 32), np.int64)}, "must hold floats, got "),
        ({"cls_token": np.ones((32,), np.float32)}, "cls_token must have 3 axes"),
        ({"../../etc/passwd": np.ones(3, np.float32)}, "has no such name"),
        ({f"x{i}": np.ones(1, np.float32) for i in range(10_000)}, "and 9,999 more"),
        ({"pos_embed": np.ones((1, 12, 32), np.float32)}, "12 positions are no square"),
    ],
)
def test_bad_arrays_are_one_line(change, message, tmp_path):
    save(tmp_path / "w", timm_arrays() | change)
    need_one_line(tmp_path / "w", message)
    np.savez(tmp_path / "w.npz", **(timm_arrays() | change))
    need_one_line(tmp_path / "w.npz", message)


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_unpickled(tmp_path):
    mark = tmp_path / "executed"
    arrays = timm_arrays() | {"cls_token": np.array([Bomb(mark)], object)}
    np.savez(tmp_path / "w.npz", **arrays)
    need_one_line(tmp_path / "w.npz", "cannot read weights")
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"model": Bomb(mark)}, protocol=2))
    need_one_line(tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps(Bomb(mark), protocol=2))
        archive.writestr("w/version", "3")
    need_one_line(tmp_path / "w.pt")
    assert not mark.exists()


def test_zip_bombs_are_refused_unopened(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_ROOM", 10_000)
    file = tmp_path / "w.npz"
    np.savez_compressed(file, cls_token=np.zeros(1_000_000, np.float32))
    need_one_line(file, "say that they hold 4,000,")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "it is neither safetensors nor"),
        (b"just text", "it is neither"),
        (b"{}", "no index of weights"),
        (b'{"weight_map": 3}', "no index of weights"),
        (b"{" * 100_000, "is no JSON"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 90, "it is neither"),
        (b"\xff" * 8 + b"{", "it is neither"),
        ((2**31).to_bytes(8, "little") + b'{"a": 1}', "cannot read weights"),
    ],
)
def test_other_files_are_one_line(data, message, tmp_path):
    (tmp_path / "w").write_bytes(data)
    need_one_line(tmp_path / "w", message)


def test_folders_without_weights_are_one_line(tmp_path):
    need_one_line(tmp_path, "the folder has none of model.safetensors.index.json")
    (tmp_path / "checkpoints").mkdir()
    need_one_line(tmp_path, "config.start.workdir")
    need_one_line(tmp_path / "missing", "No such file")


def test_files_of_torch(tmp_path):
    import argparse

    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(array) for name, array in timm_arrays().items()}
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    saved = {"model": wrapped, "args": argparse.Namespace(lr=0.1), "epoch": 3}
    expected = None
    for content, legacy in (
        (saved, False),
        (tensors, True),
        ({"state_dict": saved}, False),
    ):
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
        read = weights.read(tmp_path / "w.pth")
        assert read.kind == "torch" and read.family == "timm"
        expected = expected or read.leaves["params"]
        for path, leaf in expected.items():
            np.testing.assert_array_equal(read.leaves["params"][path], leaf)
    whole = (tmp_path / "w.pth").read_bytes()
    for data in (whole[:1000], whole[: len(whole) // 2], whole[:-100]):
        (tmp_path / "w.pth").write_bytes(data)
        need_one_line(tmp_path / "w.pth", "cannot read weights")


@pytest.fixture
def train(tmp_path, capsys):
    """(flags, told of the file's network) -> (exit code, what was printed)."""
    short = [
        "--config.epochs=0.02", "--config.optimizer.warmup_epochs=0.0",
        "--config.evaluation.suites={}", "--config.evaluation.soup_weights=(1.0,)",
    ]  # fmt: skip

    def run(*argv):
        flags = [f"--config={CONFIGS}/digits.py:nominal", f"--workdir={tmp_path}/run"]
        code = main(["train", *flags, *short, *argv])
        out = capsys.readouterr()
        if code:
            assert out.out == "" and out.err.count("\n") == 1 and code == 2, out
            assert not (tmp_path / "run").exists()
        return code, out.out + out.err

    return run


def digits_like(**changes):
    """Settings of a network for digits, but for another size of images and classes."""
    gray = dict(mean=(0.5,), std=(0.5,), classes=7, size="16x1x32x2")
    return VIT | gray | changes


def test_training_starts_from_a_file(train, tmp_path, capsys):
    told = digits_like(layer_scale=0.1, qkv_bias=False)
    arrays = weights.write("timm", network(vits.TIMM, told), Geometry(2, 4, 1), told)
    np.savez(tmp_path / "w.npz", **arrays)
    flags = [f"--config.start.weights={tmp_path}/w.npz", "--config.model.patch=2"]
    flags += ["--config.model.size=16x1x32x2", "--config.model.pool=class"]
    code, out = train(*flags, "--config.model.gelu=tanh")
    assert code == 2 and "set config.model.gelu=erf, which is tanh" in out
    code, out = train(*flags)
    assert code == 2 and "head/kernel is [16, 10] here and [16, 7] there" in out
    code, out = train(*flags, "--config.model.pool=tokens")
    assert code == 2 and "config.start.fresh=('norm/.*',)" in out
    # The blocks of the file are folded as they are, and those here are one stack.
    code, out = train(
        *flags, "--config.start.fresh=('head/.*',)", "--config.model.scan=True"
    )
    assert code == 0, out
    lines = {line.split()[0]: line for line in out.splitlines() if " leaves, " in line}
    assert lines.keys() >= {"loaded", "resampled", "folded", "initialised"}
    assert "patch_embed 1" in lines["resampled"]
    assert "not said by the file: mean, std, norm_eps, " in out.replace("pool, ", "")
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["start"]["weights"] == f"{tmp_path}/w.npz"
    flags = ["--mixture=clean=1", "--step=latest", "--image_size=12"]
    assert main(["convert", f"--input={tmp_path}/run", *flags]) == 0
    out = capsys.readouterr().out
    assert "run: advadapters, run" in out and "resampled        1 leaves" in out
    assert "defaults.model('vit', '16x1x32x2', " in out and "image_size=12" in out
    assert main(["convert", f"--input={tmp_path}/run", "--mixture=linf=1"]) == 2
    assert "linf" in capsys.readouterr().err


def test_convert_writes_what_training_reads(tmp_path, capsys):
    pytest.importorskip("safetensors")
    np.savez(tmp_path / "w.npz", **timm_arrays())
    output = tmp_path / "ours.safetensors"
    flags = [f"--output={output}", "--image_size=24", "--heads=4"]
    source = f"--input={tmp_path}/w.npz"
    assert main(["convert", source, *flags]) == 0
    out = capsys.readouterr().out
    assert "w.npz: timm, npz" in out and "resampled        1 leaves" in out
    assert "config.model = defaults.model('vit', '32x2x48x4', " in out
    read = weights.read(output)
    assert read.leaves["params"]["pos_embed"].shape == (1, 37, 32)
    assert read.data == {"image_size": 24} and read.model["heads"] == 4
    for argv, message in (
        ([source, f"--output={output}"], "is there already"),
        ([], "--input=... is missing"),
        ([source, "--image_size=23"], "is no multiple of the patch"),
        ([source, "--resample=nearest"], "nearest"),
    ):
        assert main(["convert", *argv]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert main(["convert", source]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.safetensors", "w.npz"]


def test_positions_of_a_rectangle_become_a_square(tmp_path, capsys):
    """A grid that is linear along both axes stays so, but at its borders."""
    grid = np.stack(np.meshgrid(np.arange(4.0), np.arange(5.0), indexing="ij"), -1)
    positions = np.zeros((1, 21, 32), np.float32)
    positions[0, 1:, :2] = grid.reshape(-1, 2)
    np.savez(tmp_path / "w.npz", **(timm_arrays() | {"pos_embed": positions}))
    flags = [f"--input={tmp_path}/w.npz", f"--output={tmp_path}/ours.safetensors"]
    for argv, message in (
        ([], "21 positions are no square of patches and 1 class token: name the rows"),
        (["--grid=4x5"], "--grid=4x5 must be ROWSxCOLUMNS like 14x20, with --image_size"),
        (["--grid=4by5", "--image_size=32"], "--grid=4by5 must be ROWSxCOLUMNS"),
        (["--grid=5x5", "--image_size=32"], "--grid=5x5: the weights have 21 positions"),
        (["--grid=4x5", "--image_size=33"], "is no multiple of the patch, 4"),
    ):
        assert main(["convert", *flags, *argv]) == 2
        assert message in capsys.readouterr().err
    assert main(["convert", *flags, "--grid=4x5", "--image_size=32"]) == 0
    assert "resampled        1 leaves" in capsys.readouterr().out
    read = weights.read(tmp_path / "ours.safetensors").leaves["params"]["pos_embed"]
    assert read.shape == (1, 65, 32) and not read[0, 0].any()
    rows, columns = np.moveaxis(read[0, 1:, :2].reshape(8, 8, 2), -1, 0)
    middle = slice(2, -2)
    places = (np.arange(8) + 0.5) / 8
    np.testing.assert_allclose(rows[middle, 0], (places * 4 - 0.5)[middle], atol=0.05)
    np.testing.assert_allclose(columns[0, middle], (places * 5 - 0.5)[middle], atol=0.05)
