"""Every source on real files, and what each says when the files are wrong."""

import gzip
import hashlib
import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from test_shifts import values
from tfds_files import prepare, prepare_splits

from advadapters.data import encoded, imaging, shifts, sources, splits
from advadapters.errors import UsageError


def write_folder(root, splits=("train", "test"), count=3, size=8, gray=False):
    """DIR/<split>/<class>/<n>.png; the image's value tells class and number."""
    for split in splits:
        for c, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for n in range(count):
                image = np.full(
                    (size, size) if gray else (size, size, 3), 10 * c + n, np.uint8
                )
                cv2.imwrite(str(root / split / name / f"{n}.png"), image)
    return root


def test_digits_are_all_there_and_split_once():
    source = sources.load("digits", channels=1)
    assert (len(source.train), len(source.test), source.classes) == (1437, 360, 10)
    again = sources.load("digits", channels=1)
    for i in (0, 100, 359):
        np.testing.assert_array_equal(source.test[i][0], again.test[i][0])
    image, label = source.train[0]
    assert image.dtype == np.uint8 and image.shape == (8, 8, 1) and 0 <= label < 10
    both = np.concatenate([source.train.positions, source.test.positions])
    assert sorted(both) == list(range(1797))
    assert max(source.train[i][0].max() for i in range(20)) == 255
    known = load_digits()
    for split in source.train, source.test:
        for i in (0, 200):
            image, label = split[i]
            number = split.positions[i]
            levels = np.round(known.images[number] * (255 / 16))
            np.testing.assert_array_equal(image[..., 0], levels)
            assert label == known.target[number]


# SHA-256 of the first 3,000 training and 2,000 test images, and of their labels, in the
# IDX files that the authors distribute.
FASHION = {
    "train": (
        "3bbcd710c35b580a44d480a6769c75a674d77ed30db75c69438666facc24f185",
        "8d5624275930e1f01c8609f30473cc1367d8318d753a8d5c71f20b95b439681a",
    ),
    "test": (
        "09bbac78738f0229a68f7ca74e62665d7fb34f45ea7a3509ab5c4a202c1370de",
        "a86243d2b2400909bc0a82f5fd5c9df83bf827852a1543e3dc70af890035a9d4",
    ),
}


def test_fashion_is_what_its_authors_distribute():
    source = sources.load("fashion", channels=1)
    splits.check(source, classes=10, channels=1)
    for split, hashes in FASHION.items():
        images, labels = getattr(source, split)
        assert labels.dtype == np.uint8 and images.dtype == np.uint8
        both = images.tobytes(), labels.tobytes()
        assert tuple(hashlib.sha256(data).hexdigest() for data in both) == hashes
    assert source.names[source.test[0][1]] == "ankle boot"
    with pytest.raises(UsageError, match="'fashion' takes no path, got 'x'"):
        sources.load("fashion:x")


def test_folder(tmp_path):
    source = sources.load(f"folder:{write_folder(tmp_path)}")
    assert (len(source.train), len(source.test), source.classes) == (6, 6, 2)
    assert [source.train[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [int(source.train[i][0][0, 0, 0]) for i in range(6)] == [0, 1, 2, 10, 11, 12]
    assert source.train[0][0].shape == (8, 8, 3)
    splits.check(source, classes=2, channels=3)


def test_folder_channel_order_is_rgb(tmp_path):
    write_folder(tmp_path)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 200  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "train" / "cat" / "0.png"), red)
    image, _ = sources.load(f"folder:{tmp_path}").train[0]
    np.testing.assert_array_equal(image[0, 0], [200, 0, 0])


def test_folder_val_serves_as_test_and_gray_is_one_channel(tmp_path):
    write_folder(tmp_path, splits=("train", "val"), gray=True)
    source = sources.load(f"folder:{tmp_path}", channels=1)
    assert source.test[5][0].shape == (8, 8, 1)
    assert int(source.test[5][0][0, 0, 0]) == 12


def test_corrupt_images_are_named_or_left_out(tmp_path):
    write_folder(tmp_path)
    broken = tmp_path / "train" / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:20])
    with pytest.raises(UsageError, match=f"corrupt image {broken}.*skip_corrupt=True"):
        sources.load(f"folder:{tmp_path}").train[1]
    assert sources.load(f"folder:{tmp_path}", skip_corrupt=True).train[1] is None
    broken.write_bytes(b"")
    assert sources.load(f"folder:{tmp_path}", skip_corrupt=True).train[1] is None


def test_images_are_decoded_as_they_are_stored():
    """No turn by EXIF; gray JPEGs become RGB, RGB ones gray; nothing is raised."""
    ramp = np.repeat(np.arange(0, 240, 10, np.uint8)[None], 8, axis=0)  # 8x24
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "JPEG", quality=100, exif=exif)
    for channels in (1, 3):
        found = imaging.decode(file.getvalue(), channels)
        assert found.shape == (8, 24, channels)
        assert np.abs(found.astype(int) - ramp[..., None]).max() <= 2
    file = io.BytesIO()
    Image.new("CMYK", (9, 7)).save(file, "JPEG")
    assert imaging.decode(file.getvalue(), 3).shape == (7, 9, 3)
    png = cv2.imencode(".png", ramp)[1].tobytes()
    head = png[12:16] + (40000).to_bytes(4, "big") * 2 + png[24:29]  # its size, as it says
    huge = png[:12] + head + zlib.crc32(head).to_bytes(4, "big") + png[33:]
    assert imaging.decode(huge, 3) is None and imaging.decode(b"", 3) is None


def test_npz_and_idx(tmp_path):
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    labels = np.array([3, 1], np.uint8)
    arrays = {
        f"{split}_{kind}": value
        for split in ("train", "test")
        for kind, value in (("images", images), ("labels", labels))
    }
    np.savez(tmp_path / "data.npz", **arrays)
    for prefix in ("train", "t10k"):
        header = np.array([0x803, 2, 28, 28], ">i4").tobytes()
        with gzip.open(tmp_path / f"{prefix}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + images.tobytes())
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, 2], ">i4").tobytes() + labels.tobytes()
        )
    for spec in (f"npz:{tmp_path}/data.npz", f"idx:{tmp_path}"):
        source = sources.load(spec)
        for split in (source.train, source.test):
            image, label = split[1]
            np.testing.assert_array_equal(image[..., 0], images[1])
            assert label == 1
        splits.check(source, classes=10, channels=1)


def test_tfds_from_array_records_without_tensorflow(tmp_path):
    import sys

    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(6, 6, 3)),
                "label": tfds.features.ClassLabel(num_classes=4),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                png = cv2.imencode(".png", np.full((6, 6, 3), i, np.uint8))[1]
                yield i, {"image": png.tobytes(), "label": i % 4}

    Tiny(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = sources.load("tfds:tiny", data_dir=str(tmp_path))
    assert (len(source.train), len(source.test), source.classes) == (5, 2, 4)
    values = sorted(int(source.train[i][0][0, 0, 0]) for i in range(5))
    assert values == [0, 1, 2, 3, 4]
    image, label = source.train[2]
    assert label == image[0, 0, 0] % 4 and image.dtype == np.uint8
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    "spec, message",
    [
        ("folder:/no/such/dir", "/no/such/dir is not there.*`mkdir -p .* tar -xf"),
        ("tar:/no/such/dir", "no train tar in /no/such/dir: expected train.tar"),
        ("npz:/no/such.npz", "cannot read /no/such.npz"),
        ("idx:/no", "`apt-get install dataset-fashion-mnist`"),
        ("tfds:no_such_data_set", "no_such_data_set"),
        ("tfds:mnist", "`tfds build mnist --file_format=array_record --data_dir=/"),
        ("disk:x", "unknown data source 'disk'; there are: digits, fashion, folder"),
        ("digits:x", "takes no path"),
        ("tfds:", "cannot read TFDS"),
        ("tfds:cifar10/foo", "cannot read TFDS"),
    ],
)
def test_what_is_missing_is_said_in_one_line(spec, message, tmp_path):
    with pytest.raises(UsageError, match=message) as error:
        sources.load(spec, data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


def test_wrong_folders(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match="no class folders"):
        sources.load(f"folder:{tmp_path}")
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(UsageError, match=r"class folder .*train/cat has no images.*\.jpg"):
        sources.load(f"folder:{tmp_path}")
    write_folder(tmp_path, splits=("train",))
    with pytest.raises(UsageError, match="test is not there|val is not there"):
        sources.load(f"folder:{tmp_path}")
    write_folder(tmp_path, splits=("test",))
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "cow")
    with pytest.raises(UsageError, match="classes that training has not.*cow"):
        sources.load(f"folder:{tmp_path}")


def test_labels_and_channels_are_checked(tmp_path):
    source = sources.load(f"folder:{write_folder(tmp_path)}")
    with pytest.raises(UsageError, match="2 classes but config.model.classes=10"):
        splits.check(source, classes=10, channels=3)
    with pytest.raises(UsageError, match="config.data.channels=1"):
        splits.check(source, classes=2, channels=1)
    split = splits.ArraySplit(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 7]))
    with pytest.raises(UsageError, match="labels run from 0 to 7"):
        splits.check(splits.Source(split, split, 0), classes=5, channels=1)


def test_a_pickle_in_an_npz_is_refused(tmp_path):
    np.savez(tmp_path / "bad.npz", train_images=np.array([{"a": 1}], object))
    with pytest.raises(UsageError, match="cannot read"):
        sources.load(f"npz:{tmp_path}/bad.npz")


def test_hold_out_is_a_partition():
    split = splits.ArraySplit(np.zeros((10, 1, 1, 1), np.uint8), np.arange(10))
    rest, held = splits.hold_out(split, 0.3)
    assert sorted([rest[i][1] for i in range(7)] + [held[i][1] for i in range(3)]) == [
        *range(10)
    ]


def test_imagenet_is_evaluated_where_it_has_labels(tmp_path):
    """The split "test" of imagenet2012 has label -1 for every image."""
    parts = {
        "train": [{"label": 1}],
        "validation": [{"label": 7}],
        "test": [{"label": -1}] * 2,
    }
    prepare_splits("imagenet2012", parts, tmp_path)
    source = sources.load("tfds:imagenet2012", data_dir=str(tmp_path))
    assert [source.test[i][1] for i in range(len(source.test))] == [7]
    splits.check(source, classes=1000, channels=3)
    unlabelled = sources.load(
        "tfds:imagenet2012", data_dir=str(tmp_path), test_split="test"
    )
    with pytest.raises(UsageError, match="number 0 of imagenet2012/test has label -1"):
        splits.check(unlabelled, classes=1000, channels=3)
    with pytest.raises(UsageError, match="no labelled split in .* only .*validation"):
        sources.load("tfds:imagenet2012", data_dir=str(tmp_path), test_split="labelled")
    assert values(shifts.load("imagenet2012", str(tmp_path)).split) == {0: 7}


def test_labels_below_zero_are_refused(tmp_path):
    arrays = {
        "train_images": np.zeros((3, 4, 4, 1), np.uint8),
        "train_labels": np.array([0, 1, -1], np.int64),
        "test_images": np.zeros((1, 4, 4, 1), np.uint8),
        "test_labels": np.array([0], np.int64),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    for classes in (0, 2):
        with pytest.raises(
            UsageError, match="train labels run from -1 to 1, -1 first at i"
        ):
            splits.check(sources.load(f"npz:{tmp_path}/a.npz"), classes, channels=1)
    prepare("imagenet_r", "test", [{"label": 5}, {"label": -1}], tmp_path)
    split = shifts.load("imagenet_r", str(tmp_path)).split
    with pytest.raises(UsageError, match="image . of the test set has label -1"):
        [split[i] for i in range(2)]


def test_a_test_split_is_named_where_there_are_several():
    with pytest.raises(UsageError, match="test_split='val' is for folder, tar, tfds"):
        sources.load("digits", channels=1, test_split="val")


def test_folders_are_read_as_torchvision_reads_them(tmp_path):
    """Sub-folders and every format belong to the class; hidden things to nothing."""
    write_folder(tmp_path)
    cat, image = tmp_path / "train" / "cat", np.full((8, 8, 3), 99, np.uint8)
    (cat / "a" / "b").mkdir(parents=True)
    for suffix in ("bmp", "webp", "tiff", "JPEG", "ppm"):
        data = cv2.imencode(f".{suffix.lower()}", image)[1].tobytes()
        (cat / "a" / "b" / f"x.{suffix}").write_bytes(data)
    for hidden in ("train/.ipynb_checkpoints", "train/cat/.cache", "test/__MACOSX/dog"):
        (tmp_path / hidden).mkdir(parents=True)
        (tmp_path / hidden / "0.png").write_bytes((cat / "0.png").read_bytes())
    (cat / "._0.png").write_bytes(b"resource fork")
    (cat / "a" / "up").symlink_to(cat)  # a circle
    for name in ("cat/list.TXT", "cat/a/b/notes", "readme.txt"):
        (tmp_path / "train" / name).write_text("text")
    source = sources.load(f"folder:{tmp_path}")
    assert source.names == ("cat", "dog") and len(source.test) == 6
    assert source.train.labels.tolist() == [0] * 8 + [1] * 3
    found = [int(source.train[i][0][0, 0, 0]) for i in range(8)]
    assert np.abs(np.subtract(sorted(found), [0, 1, 2] + 5 * [99])).max() <= 1
    assert source.notes == (f"left out in {tmp_path}/train: 2 .txt, 1 no suffix",)


def test_every_suffix_is_decoded():
    """What is read by its name is what OpenCV makes an 8-bit image of."""
    image = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    pillow = {".jp2": "JPEG2000", ".gif": "GIF", ".avif": "AVIF"}
    netpbm = {".pgm": b"P2\n2 2\n255\n9 9 9 9\n", ".pbm": b"P1\n2 2\n0 0 0 0\n"}
    for suffix in encoded.SUFFIXES:
        if suffix in netpbm:
            values = [9] if suffix == ".pgm" else [255]
            assert np.unique(imaging.decode(netpbm[suffix], 3)) == values
            continue
        if suffix in pillow:
            file = io.BytesIO()
            Image.fromarray(image).save(file, pillow[suffix])
            data = file.getvalue()
        else:
            written = ".jpg" if suffix == ".jfif" else suffix
            data = cv2.imencode(written, image[..., ::-1])[1].tobytes()
        found = imaging.decode(data, 3)
        assert found.dtype == np.uint8 and found.shape == image.shape, suffix
        assert np.abs(found.astype(int) - image).max() <= 6, suffix


def test_an_empty_class_is_refused(tmp_path):
    write_folder(tmp_path)
    for split in ("train", "test"):
        empty = tmp_path / split / "cow"
        empty.mkdir()
        (empty / "a.xcf").write_bytes(b"")
        with pytest.raises(UsageError, match=f"class folder {empty} has no images.*1 .xcf"):
            sources.load(f"folder:{tmp_path}")
        (empty / "a.xcf").unlink()
        empty.rmdir()


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path):
    """What macOS writes as e and an accent, Linux writes as one letter."""
    write_folder(tmp_path)
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (tmp_path / "train" / "cat").rename(tmp_path / "train" / composed)
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / decomposed)
    source = sources.load(f"folder:{tmp_path}")
    assert source.names == (composed, "dog")
    assert source.train.labels.tolist() == source.test.labels.tolist() == [0] * 3 + [1] * 3
    assert int(source.test[1][0][0, 0, 0]) == 1
    (tmp_path / "train" / decomposed).mkdir()
    one = tmp_path / "train" / decomposed / "9.png"
    one.write_bytes((tmp_path / "train" / "dog" / "0.png").read_bytes())
    assert sources.load(f"folder:{tmp_path}").train.labels.tolist() == [0] * 4 + [1] * 3


@pytest.mark.parametrize("name", ["test", "val", "validation", "valid"])
def test_names_of_test_folders(name, tmp_path):
    write_folder(tmp_path, splits=("train", name))
    source = sources.load(f"folder:{tmp_path}")
    assert len(source.test) == 6 and not source.notes
    if name == "valid":
        write_folder(tmp_path, splits=("val",), count=1)
        source = sources.load(f"folder:{tmp_path}")
        assert len(source.test) == 2
        assert (
            "has val, valid: val is the test set; config.data.test_split" in source.notes[0]
        )
        source = sources.load(f"folder:{tmp_path}", test_split="valid")
        assert len(source.test) == 6 and not source.notes


def test_some_classes_alone_and_a_few_images():
    whole = sources.load("digits")
    part = splits.only(whole, (7, 2))
    assert part.classes == 2 and {*part.train.labels} == {0, 1}
    sevens = np.flatnonzero(whole.train.labels == 7)
    first = int(np.flatnonzero(part.train.labels == 0)[0])
    image, label = part.train[first]
    np.testing.assert_array_equal(image, whole.train[int(sevens[0])][0])
    assert label == part.train.find(first)[1] == 0
    assert part.train.raw(first) == whole.train.raw(int(sevens[0]))
    assert (part.train.labels == 0).sum() == len(sevens)
    assert splits.only(whole, ()) is whole
    for classes in ((1, 1), (10,), (-1, 2)):
        with pytest.raises(UsageError, match="must be different numbers from 0 to 9"):
            splits.only(whole, classes)
    some = splits.few(whole.test, 20)
    assert len(some) == 20 and len({some.raw(i) for i in range(20)}) == 20
    assert splits.few(whole.test, 0) is splits.few(whole.test, 360) is whole.test
