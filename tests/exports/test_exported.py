"""Networks in files: the same logits and gradients, and no file that is not one."""

import io
import json
import subprocess
import sys
import zipfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

pytest.importorskip("flatbuffers")

import advadapters as aa
from advadapters import trees
from advadapters.exports import reading, tensors, writing
from advadapters.training import states

ABOUT = {
    "name": "",
    "domains": ["clean", "linf"],
    "classes": ["a", "b", "c", "d", "e"],
    "image": [8, 8, 1],
    "eps": {"clean": [], "linf": [{"attack": "pgd", "norm": "linf", "eps": 0.1}]},
    "preprocessing": "gray",
    "source": {"program": "tests"},
}


@pytest.fixture(scope="module")
def variables():
    """Two class tokens far from each other, and all else shared."""
    pair = tiny.relatives(tiny.network(), 2, spread=1.0)
    mode = states.branches(tiny.plain(tiny.network()), ["class_token"], 2)
    token = {"adapters": {"class_token": pair["params"]["class_token"]}}
    return jax.device_get(mode | token)


@pytest.fixture(scope="module")
def file(variables, tmp_path_factory):
    """An exported network with a mixture as an input."""
    path = tmp_path_factory.mktemp("exported") / "soup.stablehlo"
    network = writing.Exportable(tiny.network().evaluate, trees.plain, variables)
    writing.write(network, path, ABOUT)
    return path


@pytest.fixture(scope="module")
def network(file):
    return aa.load_exported(file)


@pytest.fixture(scope="module")
def evaluate(variables):
    """(images, weights [K]) -> logits, of the network that was exported."""
    function = tiny.network().evaluate
    return jax.jit(lambda images, w: function(trees.plain(variables, w), images))


IMAGES = np.random.default_rng(1).uniform(size=(6, 8, 8, 1)).astype(np.float32)


def test_a_mixture_is_an_input(network, evaluate):
    expected = evaluate(IMAGES, jnp.array([0.3, 0.7]))
    for mixture in ({"clean": 0.3, "linf": 0.7}, (0.3, 0.7), np.array([0.3, 0.7])):
        np.testing.assert_allclose(network(IMAGES, mixture), expected, rtol=0, atol=2e-6)
    beyond = network(IMAGES, {"clean": -0.5, "linf": 1.5})
    assert np.abs(beyond - expected).max() > 0.01
    expected = evaluate(IMAGES, jnp.array([-0.5, 1.5]))
    np.testing.assert_allclose(beyond, expected, rtol=0, atol=2e-6)


def test_each_image_can_have_a_mixture_of_its_own(network):
    mixtures = np.random.default_rng(0).dirichlet((1, 1), len(IMAGES)).astype(np.float32)
    rows = [network(IMAGES, mixture)[i] for i, mixture in enumerate(mixtures)]
    np.testing.assert_allclose(network(IMAGES, mixtures), rows, rtol=0, atol=2e-6)


def test_gradients_are_those_of_the_network(network, evaluate):
    mixture = jnp.array([0.3, 0.7])

    def loss(function):
        return jax.jit(jax.grad(lambda x, w: function(x, w)[:, 0].sum(), (0, 1)))

    found, expected = (loss(f)(IMAGES, mixture) for f in (network, evaluate))
    assert min(np.abs(leaf).max() for leaf in expected) > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )
    by_row = loss(network)(IMAGES, jnp.tile(mixture, (len(IMAGES), 1)))
    np.testing.assert_allclose(by_row[0], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_row[1].sum(0), expected[1], rtol=1e-5, atol=1e-5)


def test_parameters_come_back_bitwise(file, variables):
    with zipfile.ZipFile(file) as archive:
        arrays = tensors.unpack(archive.read(reading.PARAMETERS))
    expected = trees.leaves_by_path(variables)
    assert arrays.keys() == expected.keys()
    for path, array in arrays.items():
        assert array.dtype == expected[path].dtype
        np.testing.assert_array_equal(array, expected[path])


def test_the_same_network_is_the_same_file(file, variables, tmp_path):
    network = writing.Exportable(tiny.network().evaluate, trees.plain, variables)
    writing.write(network, tmp_path / "again.stablehlo", ABOUT)
    assert (tmp_path / "again.stablehlo").read_bytes() == file.read_bytes()
    assert b"/advadapters/" not in file.read_bytes()  # paths of whoever wrote it


def test_it_says_what_it_is(network):
    assert network.domains == ("clean", "linf") and network.shape == (8, 8, 1)
    assert network.classes == ("a", "b", "c", "d", "e")
    assert network.eps["linf"][0]["eps"] == 0.1
    assert network.metadata["source"] == {"program": "tests"}
    assert repr(network) == "Exported(domains clean, linf, images 8x8x1, 5 classes)"


def test_bytes_and_floats_are_the_same_images(network):
    levels = np.random.default_rng(2).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
    logits = network(levels, (0, 1))
    for images in (levels / 255, np.float32(levels) / np.float32(255), levels[..., 0]):
        np.testing.assert_allclose(network(images, (0, 1)), logits, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(network.predict(levels, (0, 1)), np.argmax(logits, -1))


def test_attacks_take_it(network):
    labels = network.predict(IMAGES, (0.5, 0.5))
    pgd = aa.attacks.ATTACKS["pgd"]
    attack = jax.jit(
        lambda logits_fn: pgd(
            logits_fn, IMAGES, labels, jax.random.key(0), norm="linf", eps=0.3, steps=3
        )
    )
    moved = attack(network.logits_fn((0.5, 0.5)))
    assert np.abs(moved - IMAGES).max() == pytest.approx(0.3, abs=1e-6)
    assert np.mean(network.predict(moved, (0.5, 0.5)) == labels) < 1


def test_a_fixed_network_takes_no_mixture(variables, evaluate, tmp_path):
    plain = trees.plain(variables, (0.25, 0.75))
    about = ABOUT | {"name": "0.25 clean + 0.75 linf", "domains": []}
    network = writing.Exportable(tiny.network().evaluate, None, plain)
    writing.write(network, tmp_path / "fixed.stablehlo", about)
    fixed = aa.load_exported(tmp_path / "fixed.stablehlo")
    expected = evaluate(IMAGES, jnp.array([0.25, 0.75]))
    np.testing.assert_allclose(fixed(IMAGES), expected, rtol=0, atol=2e-6)
    assert "Exported(0.25 clean + 0.75 linf, " in repr(fixed)
    with pytest.raises(aa.UsageError, match="is fixed .0.25 clean .* give no mixture"):
        fixed(IMAGES, (0.5, 0.5))


BAD = {
    "none": (lambda n: n(IMAGES), "give a mixture of clean, linf, such as"),
    "sum": (lambda n: n(IMAGES, (0.5, 0.4)), "must sum to 1, got 0.9"),
    "nan": (lambda n: n(IMAGES, (np.nan, 1)), "must sum to 1, got nan"),
    "rows": (lambda n: n(IMAGES, [(0.5, 0.5)] * 5 + [(1, 1)]), "must sum to 1, got 2"),
    "few": (lambda n: n(IMAGES, [(0.5, 0.5)] * 5), "5 mixtures for 6 images"),
    "count": (lambda n: n(IMAGES, (1, 0, 0)), "each of clean, linf: .2., .* got .3."),
    "domain": (lambda n: n(IMAGES, {"l2": 1}), "unknown domain 'l2'; there are: clean"),
    "size": (lambda n: n(IMAGES[:, 1:], (1, 0)), r".B, 8, 8, 1. .* got .6, 7, 8, 1."),
    "empty": (lambda n: n(IMAGES[:0], (1, 0)), "images must be"),
    "range": (lambda n: n(255 * IMAGES, (1, 0)), "must lie in .0, 1.*divide by 255"),
    "type": (lambda n: n(np.int32(IMAGES), (1, 0)), "floats or uint8, got int32"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case, network):
    call, message = BAD[case]
    with pytest.raises(aa.UsageError, match=message) as caught:
        call(network)
    assert "\n" not in str(caught.value)


def members_of(file):
    """{name: bytes}."""
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members, **settings):
    """The bytes of a zip."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", **settings) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return raw.getvalue()


def told(members, **changes):
    """The members with changed metadata and hashes that fit."""
    metadata = json.loads(members[reading.METADATA])
    hashes = {n: reading.sha256(x) for n, x in members.items() if n != reading.METADATA}
    text = json.dumps(metadata | {"sha256": hashes} | changes).encode()
    return zipped(members | {reading.METADATA: text})


def huge(members):
    """The members, of which one claims to be a million times as large."""
    data = bytearray(zipped(members))
    size = len(members[reading.CHECK]).to_bytes(4, "little") * 2
    return bytes(data).replace(size, (1 << 31).to_bytes(4, "little") * 2)


def calling(members):
    """A program of the same arguments that calls a library of this machine."""
    stored = jax.export.deserialize(bytearray(members[reading.NETWORK]))
    shapes, _ = jax.tree.unflatten(stored.in_tree, stored.in_avals)

    def program(parameters, mixture, images):
        number = jnp.linalg.cholesky(jnp.eye(2) + mixture[0])[0, 0]
        return jnp.full((images.shape[0], 5), number)

    program = jax.export.export(jax.jit(program))(*shapes)
    return bytes(program.serialize(vjp_order=1))


def undefined(members):
    """The parameters, one of them not a number."""
    arrays = dict(tensors.unpack(members[reading.PARAMETERS]))
    name = next(iter(arrays))
    return tensors.pack(arrays | {name: np.full_like(arrays[name], np.nan)})


MANY = {f"x{i}": np.zeros(1, np.float32) for i in range(10_000)}
PARAMETERS, NETWORK = reading.PARAMETERS, reading.NETWORK
DAMAGED = {
    "empty": (lambda m: b"", "not a zip"),
    "text": (lambda m: b"a text and no zip" * 100, "not a zip"),
    "pickle": (lambda m: b"\x80\x04\x95" + bytes(100), "not a zip"),
    "a name": (lambda m: zipped({f"x{n}": d for n, d in m.items()}), "members are 'xmeta"),
    "a path": (lambda m: zipped(m | {"../evil": b""}), "members are"),
    "one less": (lambda m: told({n: m[n] for n in m if n != reading.ROWS}), "goes with"),
    "compressed": (
        lambda m: zipped(m, compression=zipfile.ZIP_DEFLATED),
        "member is compressed",
    ),
    "a bomb": (
        lambda m: zipped(m | {PARAMETERS: bytes(10**8)}, compression=zipfile.ZIP_DEFLATED),
        "member is compressed",
    ),
    "a size": (huge, "larger than the file"),
    "no json": (lambda m: zipped(m | {reading.METADATA: b"{'a': 1}"}), "no JSON"),
    "bytes": (lambda m: zipped(m | {reading.METADATA: b"\xff\xfe\x00"}), "no JSON"),
    "deep": (lambda m: zipped(m | {reading.METADATA: b"[" * 10**6}), "too deeply"),
    "a list": (lambda m: zipped(m | {reading.METADATA: b"[1]"}), "no table"),
    "a field": (lambda m: told(m, domains="clean"), "no 'domains' that is a list"),
    "names": (lambda m: told(m, classes=[1, 2]), "no list of str"),
    "format": (lambda m: told(m, format=2), "format 2, this program reads 1"),
    "image": (lambda m: told(m, image=[0, 8, 1]), "no .H, W, C."),
    "other image": (lambda m: told(m, image=[9, 8, 1]), "images of another size"),
    "a class": (lambda m: told(m, classes=["a", "b"]), "another number of classes"),
    "a domain": (lambda m: told(m, domains=["a"]), "other weights than those"),
    "a hash": (lambda m: zipped(m | {PARAMETERS: m[PARAMETERS] + b"x"}), "not those that"),
    "a tail": (lambda m: told(m | {PARAMETERS: m[PARAMETERS] + b"x"}), "after the last"),
    "a head": (lambda m: told(m | {PARAMETERS: b"\xff" * 8}), "header .* cut off"),
    "no parameters": (lambda m: told(m | {PARAMETERS: tensors.pack({})}), "takes"),
    "10,000 leaves": (
        lambda m: told(m | {PARAMETERS: tensors.pack(MANY)}),
        "are not those that its program takes",
    ),
    "nan": (lambda m: told(m | {PARAMETERS: undefined(m)}), "not finite"),
    "lambdas": (lambda m: told(m, lambdas=[0.5]), "lambdas that are no numbers"),
    "no check": (lambda m: told(m | {reading.CHECK: tensors.pack({})}), "holds .., not"),
    "no program": (lambda m: told(m | {NETWORK: b"MLIR" * 99}), "reads no program"),
    "swapped": (
        lambda m: told(m | {NETWORK: m[reading.ROWS], reading.ROWS: m[NETWORK]}),
        "takes other weights",
    ),
    "a call": (lambda m: told(m | {NETWORK: calling(m)}), "code outside of itself"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_other_files_are_refused_in_one_line(case, file, tmp_path):
    make, message = DAMAGED[case]
    path = tmp_path / "bad.stablehlo"
    path.write_bytes(make(members_of(file)))
    with pytest.raises(aa.UsageError, match=message) as caught:
        aa.load_exported(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_truncated_files_are_refused(file, tmp_path):
    data, path = file.read_bytes(), tmp_path / "short.stablehlo"
    for length in np.linspace(0, len(data) - 1, 20).astype(int):
        path.write_bytes(data[:length])
        with pytest.raises(aa.UsageError, match="cannot read"):
            aa.load_exported(path)
    with pytest.raises(aa.UsageError, match="No such file"):
        aa.load_exported(tmp_path / "none.stablehlo")


def test_a_flipped_bit_is_refused_or_changes_nothing(file, tmp_path):
    """Some bits are read by nobody, like the time of a member."""
    data, path = file.read_bytes(), tmp_path / "flipped.stablehlo"
    whole = reading._read(str(file))
    draw, refused = np.random.default_rng(0), 0
    near = [*range(120), *range(len(data) - 450, len(data))]
    for position in [*near, *draw.integers(len(data), size=100)]:
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(draw.integers(8))
        path.write_bytes(flipped)
        try:
            reading.read_arrays(path)
        except aa.UsageError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert reading._read(str(path)) == whole
    assert refused > 200


def test_other_logits_are_refused(file, tmp_path):
    members = members_of(file)
    check = dict(tensors.unpack(members[reading.CHECK]))
    check["logits"] = check["logits"] + np.float32(0.01)
    path = tmp_path / "off.stablehlo"
    path.write_bytes(told(members | {reading.CHECK: tensors.pack(check)}))
    with pytest.raises(aa.UsageError, match="other logits here .*by 0.01"):
        aa.load_exported(path)
    assert aa.load_exported(path, check=False).domains == ("clean", "linf")


def test_loading_needs_little(file):
    """Neither flax nor what else networks are made and trained with."""
    code = f"""
import sys
import advadapters as aa
aa.load_exported({str(file)!r})
heavy = {{"flax", "orbax", "optax", "grain", "jaxtyping", "absl", "matplotlib"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
