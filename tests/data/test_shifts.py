"""Shift suites, from files that TFDS' own builders of these names write."""

import numpy as np
import pytest
from tfds_files import prepare

from advadapters.data import shifts
from advadapters.errors import UsageError


def values(split):
    """{grey value of the image / 40: label} of the examples that count."""
    found = [split[i] for i in range(len(split))]
    return {
        round(e[0].mean() / 40): np.asarray(e[1]).tolist() for e in found if e is not None
    }


def test_classes_that_do_not_occur_are_masked(tmp_path):
    prepare("imagenet_a", "test", [{"label": 6}, {"label": 999}, {"label": 6}], tmp_path)
    shift = shifts.load("imagenet_a", str(tmp_path))
    assert values(shift.split) == {0: 6, 1: 999, 2: 6} and shift.classes == 1000
    assert sorted(np.flatnonzero(shift.groups >= 0).tolist()) == [6, 999]
    assert shift.groups[[6, 999]].tolist() == [6, 999]
    image, _ = shift.split[0]
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8


def test_any_reassessed_label_is_right_and_none_leaves_an_image_out(tmp_path):
    examples = [
        {"original_label": 1, "real_label": labels} for labels in ([3, 5], [], [7])
    ]  # fmt: skip
    prepare("imagenet2012_real", "validation", examples, tmp_path)
    shift = shifts.load("imagenet_real", str(tmp_path))
    found = {k: sorted(v)[-2:] for k, v in values(shift.split).items()}
    assert found == {0: [3, 5], 2: [shifts.NO_LABEL, 7]}


def test_shape_and_texture_count_in_sixteen_classes(tmp_path):
    def example(shape, texture):
        return {
            "shape_label": shape, "shape_imagenet_labels": [10 * shape, 10 * shape + 1],
            "texture_label": texture, "texture_imagenet_labels": [0],
        }  # fmt: skip

    examples = [example(2, 3), example(4, 4), example(3, 2)]
    prepare("geirhos_conflict_stimuli", "test", examples, tmp_path)
    shift = shifts.load("conflict_stimuli", str(tmp_path))
    assert shift.readings == ("shape", "texture")
    # 4 with 4 is no conflict, but counts for accuracy.
    assert values(shift.split) == {0: [2, 3], 1: [4, 4], 2: [3, 2]}
    members = {g: np.flatnonzero(shift.groups == g).tolist() for g in (2, 3, 4)}
    assert members == {2: [20, 21], 3: [30, 31], 4: [40, 41]}
    assert (shift.groups >= 0).sum() == 6


def test_any_tfds_name_with_a_test_split(tmp_path):
    prepare("cifar10_corrupted/fog_3", "test", [{"label": 9}], tmp_path)
    shift = shifts.load("cifar10_corrupted/fog_3", str(tmp_path))
    assert shift.classes == 10 and shift.groups is None and values(shift.split) == {0: 9}


@pytest.mark.parametrize(
    "name, message",
    [
        ("imagenet_r", "tfds build imagenet_r --file_format=array_record"),
        ("imagenet_z", "there are imagenet, imagenet_real"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(name, message, tmp_path):
    with pytest.raises(UsageError, match=message) as error:
        shifts.load(name, str(tmp_path))
    assert "\n" not in str(error.value)
