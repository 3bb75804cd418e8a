"""What a run remembers of its data: the same for the same images, wherever they lie."""

import json
import os
import tarfile

import numpy as np
import pytest
from test_sources import write_folder

from advadapters.data import identity, sources, splits
from advadapters.errors import UsageError


def record(spec):
    return identity.describe(sources.load(spec), 2)


def test_the_same_images_have_one_record_wherever_they_lie(tmp_path):
    """In another folder, and in tars, whose members are as they were sorted."""
    first = record(f"folder:{write_folder(tmp_path / 'a')}")
    assert record(f"folder:{write_folder(tmp_path / 'b')}") == first
    (tmp_path / "tars").mkdir()
    for split in ("train", "test"):
        with tarfile.open(tmp_path / "tars" / f"{split}.tar", "w") as tar:
            for file in sorted((tmp_path / "a" / split).rglob("*.png")):
                tar.add(file, file.relative_to(tmp_path / "a" / split))
    assert record(f"tar:{tmp_path}/tars") == first
    assert first["classes"] == ["cat", "dog"]
    assert first["train"]["images"] == 6 and first["test"]["counts"] == [3, 3]


def test_other_images_labels_or_order_have_another_fingerprint():
    images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1)
    labels = np.array([0, 0, 0, 1, 1, 1])
    other = images.copy()
    other[3, 0, 0, 0] += 1
    turned = [0, 2, 1, 3, 4, 5]
    parts = [
        splits.ArraySplit(images, labels),
        splits.ArraySplit(other, labels),
        splits.ArraySplit(images, labels[::-1]),
        splits.ArraySplit(images[turned], labels),
        splits.ArraySplit(images[:5], labels[:5]),
    ]
    assert len({identity.fingerprint(split) for split in parts}) == len(parts)
    again = splits.Subset(parts[3], np.array(turned))
    assert identity.fingerprint(again) == identity.fingerprint(parts[0])


def test_classes_are_told_with_their_imbalance():
    assert identity.counts_in_words(["cat", "dog"], [30, 20]) == "cat 30, dog 20"
    many = [f"n{number}" for number in range(1000)]
    counts = [10] + [20] * 998 + [35]
    said = identity.counts_in_words(many, counts)
    assert said.startswith("1,000 classes, the fewest 10 (n0), the most 35 (n999)")
    assert "3.5 times as many as the smallest" in said
    assert "NONE of 1 classes: b" in identity.counts_in_words(["a", "b"], [5, 0])


def test_names_that_are_no_utf8_are_kept_and_printed(tmp_path):
    write_folder(tmp_path)
    for split in ("train", "test"):
        folder = os.fsencode(tmp_path / split)
        os.rename(folder + b"/cat", folder + b"/caf\xe9")
    found = json.loads(json.dumps(record(f"folder:{tmp_path}")))
    assert os.fsencode(found["classes"][0]) == b"caf\xe9"
    assert r"caf\udce9 3, dog 3" in "\n".join(identity.lines_about(found)).encode().decode()


@pytest.mark.parametrize(
    "here, said",
    [
        (("a", "c", "b"), "class 1 is 'b' in X and 'c' in Y (the same names in another"),
        (("a", "b"), "class 2 is 'c' in X and missing in Y"),
        (("a", "b", "d"), "class 2 is 'c' in X and 'd' in Y (other names)"),
    ],
)
def test_the_first_difference_of_names_is_told(here, said):
    with pytest.raises(UsageError) as error:
        identity.need_same_names(("a", "b", "c"), here, ("X", "Y"))
    assert said in str(error.value)


def test_names_that_are_missing_are_not_compared():
    assert identity.need_same_names((), (), ("X", "Y")) == ""
    assert "not compared: Y without any" in identity.need_same_names(("a",), (), ("X", "Y"))
