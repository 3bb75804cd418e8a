"""Damaged and hostile files in every format: one line, and nothing is written."""

import json

import numpy as np
import pytest
from exports.test_timm import network as small_network
from weights.test_weight_files import timm_arrays

from advadapters import weights
from advadapters.errors import UsageError
from advadapters.exports import folders, tensors
from advadapters.runs import workdir

FLIPS, CUTS = 48, 8
DATA = dict(interpolation="bicubic", crop_ratio=0.9)


def write_safetensors(path, arrays):
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    pytest.importorskip("safetensors")
    import safetensors.numpy

    path.write_bytes(safetensors.numpy.save(arrays))


def write_npz(path, arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)


def write_compressed(path, arrays):
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def write_torch(path, arrays):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)


def write_legacy(path, arrays):
    torch = pytest.importorskip("torch")
    state = {name: torch.tensor(array) for name, array in arrays.items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)


def write_onnx(path, arrays):
    onnx = pytest.importorskip("onnx")
    made = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph([], "vit", [], [], made)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


def write_ours(path, arrays):
    """As `advadapters convert` writes it."""
    write_npz(path, arrays)
    weights.save(path, weights.read(path))


FORMATS = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "npz, compressed": write_compressed,
    "torch": write_torch,
    "torch, legacy": write_legacy,
    "onnx": write_onnx,
}


def attempt(path):
    """Whether the file is read; refusals have to be one short line of plain characters."""
    try:
        weights.read(path)
    except UsageError as error:
        text = str(error)
        assert text.isprintable() and len(text) < 1000 and str(path) in text
        return False
    return True


def damage(file, path, head):
    """Reads `path` with single bits of the file flipped, and with its end cut off.

    Two of three flips are in its first and last bytes, where names and lengths are; a bit
    of a number may well be read. Returns how many of these files were refused.
    """
    whole, draw, refused = file.read_bytes(), np.random.default_rng(0), 0
    near = [draw.integers(min(head, len(whole)), size=FLIPS // 3)]
    near += [len(whole) - 1 - near[0], draw.integers(len(whole), size=FLIPS // 3)]
    for place in np.concatenate(near):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(draw.integers(8))
        file.write_bytes(bytes(flipped))
        refused += not attempt(path)
    for end in np.linspace(0, len(whole) - 1, CUTS).astype(int):
        file.write_bytes(whole[:end])
        refused += not attempt(path)
    file.write_bytes(whole)
    assert attempt(path)
    return refused


@pytest.mark.parametrize("kind", [*FORMATS, "ours"])
def test_flipped_bits_and_cut_ends(kind, tmp_path):
    file = tmp_path / "w"
    {**FORMATS, "ours": write_ours}[kind](file, timm_arrays())
    # protobuf reads a file that ends between two of its fields
    assert damage(file, file, head=2000) > (CUTS // 2 if kind == "onnx" else CUTS - 1)
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("program", ["timm", "transformers"])
def test_flipped_bits_and_cut_ends_of_folders(program, tmp_path):
    _, plain, about = small_network(pool="class")
    contents = folders.make(program, plain, about, DATA, "soup")
    data = tensors.pack(contents.arrays, {"format": "pt"})
    (tmp_path / "model.safetensors").write_bytes(data)
    for name, values in contents.files.items():
        workdir.write_json(tmp_path / name, values)
    for name in ("model.safetensors", *contents.files):
        assert damage(tmp_path / name, tmp_path, head=2000) >= CUTS
    for name, values in contents.files.items():
        for changed in other_values(values):
            (tmp_path / name).write_text(json.dumps(changed))
            attempt(tmp_path)
        workdir.write_json(tmp_path / name, values)


def other_values(values):
    """The table with each of its values replaced by ones of other types."""
    odd = (None, "\x1b[2J\n", ["a"], {"a": 1}, 10**400)
    for key in values:
        yield from (values | {key: value} for value in odd)
        if isinstance(values[key], dict):
            yield from (values | {key: inner} for inner in other_values(values[key]))


BAD = {
    "a path": ({"../../etc/passwd": np.ones(3, np.float32)}, "has no such name"),
    "a name that rings": ({"a\x07\nb": np.ones(3, np.float32)}, "is no name of an array"),
    "a long name": ({"a" * 5000: np.ones(3, np.float32)}, "is no name of an array"),
    "nan": ({"norm.bias": np.full(32, np.nan, np.float32)}, "not finite"),
    "integers": ({"norm.bias": np.ones(32, np.int64)}, "must hold floats"),
    "10,000 leaves": (
        {f"x{i}": np.ones(1, np.float32) for i in range(10_000)},
        "and 9,999 more",
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(case, kind, tmp_path):
    change, message = BAD[case]
    FORMATS[kind](tmp_path / "w", timm_arrays() | change)
    with pytest.raises(UsageError, match=message) as error:
        weights.read(tmp_path / "w")
    assert str(error.value).isprintable()


def test_an_index_that_names_itself(tmp_path):
    name = "model.safetensors.index.json"
    (tmp_path / name).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UsageError, match="is no file beside it"):
        weights.read(tmp_path)
