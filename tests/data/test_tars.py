"""Images in tars: every layout gives the same; what is wrong is told in one line."""

import io
import os
import pickle
import tarfile

import cv2
import numpy as np
import pytest

from advadapters.data import sources, splits, tar_members
from advadapters.errors import UsageError


def png(value):
    return cv2.imencode(".png", np.full((4, 4, 3), value, np.uint8))[1].tobytes()


def pack(path, files, kind=tarfile.REGTYPE):
    """A tar of {name: bytes}; returns its bytes too."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            tar.addfile(info, io.BytesIO(data))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def values(split):
    """[(first value of the image, label), ...]."""
    return [
        (int(image[0, 0, 0]), label)
        for image, label in map(split.__getitem__, range(len(split)))
    ]


def one_tar(root):
    """train.tar and test.tar with class folders."""
    for split in ("train", "test"):
        pack(
            root / f"{split}.tar", {f"./{c}/{n}.png": png(10 * k + n) for k, c, n in IMAGES}
        )


def imagenet(root):
    """A tar of class tars; validation images without classes, which are in a list."""
    inner = {
        f"{c}.tar": pack(
            None, {f"{c}_{n}.JPEG": png(10 * k + n) for k, d, n in IMAGES if c == d}
        )
        for c in ("cat", "dog")
    }
    pack(root / "ILSVRC2012_img_train.tar", inner | {"readme": b"text"})
    # In another order than by name, which the list goes by.
    flat = {f"val_{10 * k + n:04}.JPEG": png(10 * k + n) for k, _, n in IMAGES[::-1]}
    pack(root / "ILSVRC2012_img_val.tar", flat)
    (root / "ILSVRC2012_img_val.txt").write_text("cat\ncat\ncat\ndog\ndog\ndog\n")


def class_tars(root):
    """A folder of class tars for each split."""
    for split in ("train", "val"):
        for c in ("cat", "dog"):
            files = {f"{n}.png": png(10 * k + n) for k, d, n in IMAGES if c == d}
            pack(root / split / f"{c}.tar", files)


def shards(root):
    """WebDataset: KEY.png beside KEY.cls."""
    for split in ("train", "test"):
        for number, part in enumerate((IMAGES[:2], IMAGES[2:])):
            files = {}
            for k, _, n in part:
                files[f"{10 * k + n}.png"] = png(10 * k + n)
                files[f"{10 * k + n}.cls"] = b"%d\n" % k
            pack(root / split / f"shard-{number}.tar", files)


IMAGES = [(k, c, n) for k, c in enumerate(("cat", "dog")) for n in range(3)]


@pytest.mark.parametrize("layout", [one_tar, imagenet, class_tars, shards])
def test_layouts(layout, tmp_path, monkeypatch):
    layout(tmp_path)
    source = sources.load(f"tar:{tmp_path}")
    for split in (source.train, source.test):
        assert sorted(values(split)) == [(10 * k + n, k) for k, _, n in IMAGES]
        assert split.labels.dtype == np.int32
    assert source.classes == (0 if layout is shards else 2)
    splits.check(source, classes=2, channels=3)
    assert len(list(tmp_path.glob("*.index.npz"))) == 2 and not list(
        tmp_path.glob("*.part")
    )
    # The second time the index serves, and a reader travels to another process.
    monkeypatch.setattr(tar_members, "read_contents", None)
    again = pickle.loads(pickle.dumps(sources.load(f"tar:{tmp_path}").train))
    np.testing.assert_array_equal(again[4][0], source.train[4][0])


def test_an_index_of_other_files_is_made_anew(tmp_path):
    one_tar(tmp_path)
    sources.load(f"tar:{tmp_path}")
    pack(tmp_path / "train.tar", {f"{c}/0.png": png(200) for c in ("cat", "dog")})
    assert values(sources.load(f"tar:{tmp_path}").train) == [(200, 0), (200, 1)]
    index = tmp_path / "train.index.npz"
    good = dict(np.load(index))
    for bad in (
        {"offsets": good["offsets"] + 10**9},
        {"sizes": good["sizes"][:1]},
        {"numbers": good["numbers"] + 5},
        {"names": good["names"].astype("U")},
    ):
        np.savez(index, **(good | bad))
        assert values(sources.load(f"tar:{tmp_path}").train) == [(200, 0), (200, 1)]
    index.write_bytes(b"not an index")
    assert values(sources.load(f"tar:{tmp_path}").train) == [(200, 0), (200, 1)]


def test_a_folder_that_cannot_be_written_needs_no_index(tmp_path, monkeypatch):
    one_tar(tmp_path)
    for name in ("builtins.open", "io.open"):  # pathlib calls the latter
        monkeypatch.setattr(name, refuse_writing(open))
    assert len(sources.load(f"tar:{tmp_path}").train) == 6
    assert sorted(os.listdir(tmp_path)) == ["test.tar", "train.tar"]


def refuse_writing(real):
    """open(), but for reading only."""

    def refusing(file, mode="r", *more, **keywords):
        if "w" in mode:
            raise PermissionError(file)
        return real(file, mode, *more, **keywords)

    return refusing


def test_what_is_in_a_tar_is_never_a_path(tmp_path):
    """Names that lead elsewhere and links are names, and nothing is written."""
    one_tar(tmp_path)
    outside = tmp_path / "evil"
    images = {"../evil/0.png": png(1), "/evil/1.png": png(2), "dog/2.png": png(3)}
    pack(tmp_path / "train.tar", images)
    pack(tmp_path / "test.tar", {"dog/0.png": png(4)})
    source = sources.load(f"tar:{tmp_path}")
    assert len(source.train) == 3 and source.classes == 2 and not outside.exists()
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        pack(tmp_path / "train.tar", {"cat/0.png": b""}, kind)
        with pytest.raises(UsageError, match="no .*png, .* files in .*train.tar"):
            sources.load(f"tar:{tmp_path}")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:1500])


def garbage_inside(path):
    data = bytearray(path.read_bytes())
    data[1024:1536] = b"\xff" * 512  # where the second header is
    path.write_bytes(data)


def zeros_inside(path):
    data = bytearray(path.read_bytes())
    data[1024:1536] = b"\0" * 512  # the second header, as a lost block of a disk
    path.write_bytes(data)


def size_below_zero(path):
    data = bytearray(path.read_bytes())
    header = data[1024:1536]  # the second one
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256: this header again
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.unlink(), "no train tar in .*train.tar or train/.*`tar -cf"),
        (lambda path: path.write_bytes(b""), "cannot read .*train.tar as an uncompressed"),
        (lambda path: path.write_bytes(b"x" * 5000), "cannot read .*train.tar"),
        (
            lambda path: path.write_bytes(b"\0" * 10240),
            "no .jpg, .jpeg, .* files in .*tar",
        ),
        (cut_off, "cannot read .*train.tar"),
        (garbage_inside, "no tar header at byte 1024"),
        (zeros_inside, "no tar header at byte 1024"),
        (size_below_zero, "has a size below 0"),
        (lambda path: pack(path, {"a.png": png(1)}), "outside of class folders.*train.txt"),
        (lambda path: pack(path, {"a.png": b"", "c/b.png": b""}), "'a.png' is in no class"),
        (lambda path: pack(path, {"c/a.png": b""}), "not in training: cat, dog"),
        (lambda path: pack(path, {"a.png": b"", "a.cls": b"1"}), "only one split"),
        (
            lambda path: pack(path, {"a.png": b"", "b.cls": b"1"}),
            "no .cls file for 'a.png'",
        ),
    ],
)
def test_wrong_tars_are_told_in_one_line(spoil, message, tmp_path):
    one_tar(tmp_path)
    spoil(tmp_path / "train.tar")
    with pytest.raises(UsageError, match=message) as error:
        sources.load(f"tar:{tmp_path}")
    assert "\n" not in str(error.value)


def test_wrong_classes(tmp_path):
    shards(tmp_path)
    pack(tmp_path / "train" / "shard-0.tar", {"a.png": png(1), "a.cls": b"cat"})
    with pytest.raises(UsageError, match="a .cls file holds no class number.*cat"):
        sources.load(f"tar:{tmp_path}")
    imagenet(other := tmp_path / "other")
    (other / "ILSVRC2012_img_val.txt").write_text("cat\n")
    with pytest.raises(UsageError, match="img_val.txt has 1 lines for 6 images"):
        sources.load(f"tar:{other}")


def test_a_corrupt_image_is_named(tmp_path):
    one_tar(tmp_path)
    pack(tmp_path / "train.tar", {"cat/0.png": png(1)[:20], "dog/\n0.png": b""})
    for i, name in enumerate(["'cat/0.png'", r"'dog/\\n0.png'"]):
        with pytest.raises(UsageError, match=f"corrupt image {name} in .*train.tar: repl"):
            sources.load(f"tar:{tmp_path}").train[i]
        assert sources.load(f"tar:{tmp_path}", skip_corrupt=True).train[i] is None


def test_a_tar_that_shrinks_while_it_is_read(tmp_path):
    one_tar(tmp_path)
    split = sources.load(f"tar:{tmp_path}").train
    image = split.reader.read(5)[0]
    kept = int(split.reader.tar.offsets[5]) + len(image) - 1
    os.truncate(tmp_path / "train.tar", kept)
    with pytest.raises(OSError, match="2.png' in .*train.tar is cut off"):
        split.reader.read(5)
    with pytest.raises(UsageError, match="corrupt image"):
        split[5]


def test_classes_of_a_tar_are_those_of_its_files_unpacked(tmp_path):
    """Sub-folders belong to the class, a folder around all is none; no hidden files."""
    files = {
        "./._0.png": b"fork", "photos/cat/a/0.png": png(0), "photos/cat/b/1.png": png(1),
        "photos/cat/.x/2.png": b"", "__MACOSX/photos/dog/._3.png": b"", "notes.txt": b"",
        "photos/cat/2.webp": cv2.imencode(".webp", np.full((4, 4, 3), 2, np.uint8))[1],
        "photos/cafe\u0301/a/10.png": png(10), "photos/caf\u00e9/11.png": png(11),
    }  # fmt: skip
    files = {name: bytes(data) for name, data in files.items()}
    for split in ("train", "test"):
        pack(tmp_path / f"{split}.tar", files)
    source = sources.load(f"tar:{tmp_path}")
    assert source.names == ("caf\u00e9", "cat")
    assert sorted(values(source.train)) == [(0, 1), (1, 1), (2, 1), (10, 0), (11, 0)]
    assert source.notes[0] == f"left out in {tmp_path}/train.tar: 1 .txt"
    assert sources.load(f"tar:{tmp_path}").notes == source.notes  # from the index
    # The class of ImageNet's inner tars is the tar, whatever folders are in it.
    inner = {f"{c}.tar": pack(None, {f"{n}/0.png": png(n)}) for n, c in enumerate("ab")}
    pack(tmp_path / "train.tar", inner)
    pack(tmp_path / "test.tar", inner)
    assert sources.load(f"tar:{tmp_path}").names == ("a", "b")


def test_an_empty_class_folder_is_refused(tmp_path):
    one_tar(tmp_path)
    with tarfile.open(tmp_path / "train.tar", "a") as tar:
        info = tarfile.TarInfo("./cow")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    with pytest.raises(UsageError, match="class folder 'cow' in the tars of .* no images"):
        sources.load(f"tar:{tmp_path}")


def test_a_test_tar_is_named(tmp_path):
    one_tar(tmp_path)
    pack(tmp_path / "val.tar", {"cat/0.png": png(77)})
    source = sources.load(f"tar:{tmp_path}")
    assert len(source.test) == 6
    assert "test.tar, val.tar: test.tar is the test set; config.data" in source.notes[0]
    assert values(sources.load(f"tar:{tmp_path}", test_split="val").test) == [(77, 0)]
