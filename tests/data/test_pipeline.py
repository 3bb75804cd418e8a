"""The pipeline: the same global batches on any host count, exact resume, no loss."""

import multiprocessing

import cv2
import numpy as np
import pytest

from advadapters.data import imaging, pipeline
from advadapters.data.encoded import Encoded, Files
from advadapters.data.splits import ArraySplit
from advadapters.errors import UsageError


class Holey(ArraySplit):
    """A split whose examples 2 and 3 are corrupt and skipped."""

    def __getitem__(self, i):
        return None if i in (2, 3) else super().__getitem__(i)


def numbered(count, kind=ArraySplit):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 4, 4, 1), np.uint8
    )
    return kind(images, np.arange(count))


def batches(split, start=0, stop=6, process=(0, 1), crop="central", threads=2):
    settings = dict(size=4, crop=crop, batch_size=8, seed=3)
    return list(
        pipeline.train_batches(
            split, start=start, stop=stop, process=process, threads=threads, **settings
        )
    )


def test_every_host_count_sees_the_same_global_batches():
    whole = batches(numbered(20), crop="random_resized")
    for count in (2, 4):
        parts = [
            batches(numbered(20), process=(i, count), crop="random_resized", threads=1)
            for i in range(count)
        ]
        for step, expected in enumerate(whole):
            for key in expected:
                joined = np.concatenate([part[step][key] for part in parts])
                np.testing.assert_array_equal(joined, expected[key])


def test_resuming_is_asking_for_a_later_step():
    whole, rest = batches(numbered(20)), batches(numbered(20), start=4)
    assert len(whole) == 6 and len(rest) == 2
    for a, b in zip(whole[4:], rest, strict=True):
        np.testing.assert_array_equal(a["images"], b["images"])
        np.testing.assert_array_equal(a["index"], np.arange(8))


def test_each_epoch_shows_every_image_once_in_a_new_order():
    labels = np.concatenate([b["labels"] for b in batches(numbered(16), stop=4)])
    assert sorted(labels[:16]) == sorted(labels[16:]) == list(range(16))
    assert list(labels[:16]) != list(labels[16:])
    assert batches(numbered(16))[0]["images"].dtype == np.uint8


def test_corrupt_images_are_replaced_in_training():
    labels = np.concatenate([b["labels"] for b in batches(numbered(8, Holey), stop=1)])
    assert sorted(labels) == [0, 1, 4, 4, 4, 5, 6, 7]


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_sees_each_image_once_and_pads_the_last_batch(count):
    found = []
    for host in range(count):
        for batch in pipeline.eval_batches(
            numbered(11, Holey), size=4, crop_ratio=1.0, batch_size=4, process=(host, count)
        ):
            assert batch["images"].shape == (4 // count, 4, 4, 1)
            found += list(batch["labels"][batch["mask"]])
            kept = batch["index"][batch["mask"]]
            np.testing.assert_array_equal(kept, batch["labels"][batch["mask"]])
    assert sorted(found) == [0, 1, 4, 5, 6, 7, 8, 9, 10]


def test_hosts_must_divide_the_batch():
    with pytest.raises(UsageError, match="batch_size 8 is not divisible by 3 hosts"):
        batches(numbered(20), process=(0, 3))


def test_crops(rng):
    image = rng.integers(0, 256, (6, 10, 3)).astype(np.uint8)
    middle = imaging.central_crop(image, 6, 1.0)
    np.testing.assert_array_equal(middle, image[:, 2:8])
    assert imaging.central_crop(image, 8, 0.875).shape == (8, 8, 3)
    square = imaging.central_crop(image, 5, 0.875)
    np.testing.assert_array_equal(imaging.central_crop(square, 5, 0.875), square)
    areas = set()
    for _ in range(20):
        crop = imaging.random_resized_crop(image, 5, rng)
        assert crop.shape == (5, 5, 3) and crop.dtype == np.uint8
        areas.add(crop.tobytes())
    assert len(areas) > 15
    assert imaging.random_resized_crop(image[..., :1], 5, rng).shape == (5, 5, 1)


def test_evaluation_prepares_images_as_the_readme_says(rng):
    """500x375, size 224, ratio 0.875: 341x256 by area, then the middle; by hand."""
    image = rng.integers(0, 256, (375, 500, 3)).astype(np.uint8)
    small = cv2.resize(image, (341, 256), interpolation=cv2.INTER_AREA)
    found = imaging.central_crop(image, 224, 0.875)
    np.testing.assert_array_equal(found, small[16:240, 58:282])
    image = rng.integers(0, 256, (90, 60, 1)).astype(np.uint8)
    large = cv2.resize(image, (256, 384), interpolation=cv2.INTER_CUBIC)[..., None]
    found = imaging.central_crop(image, 224, 0.875)
    np.testing.assert_array_equal(found, large[80:304, 16:240])
    # By area, half the size is the mean of four pixels.
    image = rng.integers(0, 256, (8, 12, 3)).astype(np.uint8)
    mean = image.reshape(4, 2, 6, 2, 3).mean((1, 3))
    assert np.abs(imaging.central_crop(image, 4, 1.0) - mean[:, 1:5]).max() <= 0.5


def cubic(x):
    """Keys' kernel (1981) with a = -1/2."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS = {"bicubic": cubic, "bilinear": lambda x: np.maximum(1 - np.abs(x), 0)}


def matrix(size, result, kernel):
    """[result, size]: one axis resized, the kernel as wide as a new pixel if it shrinks."""
    scale = size / result
    center = (np.arange(result)[:, None] + 0.5) * scale
    weights = kernel((np.arange(size) + 0.5 - center) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("side", [8, 40], ids=["shrunk", "enlarged"])
def test_interpolation_is_that_of_torchvision_where_it_shrinks_too(name, side, rng):
    # So grey that nothing is clipped between the two axes, where Pillow rounds as well.
    image = rng.integers(60, 190, (20, 25, 3)).astype(np.uint8)
    rows, columns = (matrix(n, m, KERNELS[name]) for n, m in ((20, side), (25, side + 1)))
    exact = np.einsum("hH,HWC,wW->hwC", rows, image, columns)
    found = imaging.resize(image, side, side + 1, name)
    assert found.dtype == np.uint8
    assert np.abs(found - exact).max() < 1.3
    gray = imaging.resize(image[..., :1], side, side + 1, name)
    assert np.abs(gray - exact[..., :1]).max() < 1.3
    assert np.abs(imaging.resize(image, side, side + 1) - exact).max() > 3


def test_batches_are_interpolated_as_they_are_asked(rng):
    image = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
    split = ArraySplit(image[None], np.array([0], np.int32))
    whole = imaging.resize(image, 8, 8, "bicubic")
    settings = dict(size=8, batch_size=1, interpolation="bicubic")
    (found,) = pipeline.eval_batches(split, crop_ratio=1.0, **settings)
    np.testing.assert_array_equal(found["images"][0], whole)
    (found,) = pipeline.train_batches(
        split, crop="central", seed=0, start=0, stop=1, **settings
    )
    np.testing.assert_array_equal(found["images"][0], whole)


def test_random_resized_crop_has_the_area_and_ratio_it_says(monkeypatch, rng):
    shapes = []

    def resize(image, height, width, interpolation):
        shapes.append(image.shape)
        return np.zeros((height, width, 3), np.uint8)

    monkeypatch.setattr(imaging, "resize", resize)
    for _ in range(500):
        imaging.random_resized_crop(np.zeros((200, 200, 3), np.uint8), 32, rng)
    areas = np.array([h * w for h, w, _ in shapes]) / 200**2
    ratios = np.array([w / h for h, w, _ in shapes])
    assert 0.07 < areas.min() < 0.15 and 0.85 < areas.max() <= 1
    assert 0.72 < ratios.min() < 0.8 and 1.25 < ratios.max() < 1.38


def running():
    """How many processes of workers there are."""
    return len(multiprocessing.active_children())


def test_workers_make_the_same_batches_and_end(tmp_path):
    split = numbered(20)
    plain = batches(split, crop="random_resized")
    before = running()
    settings = dict(start=0, stop=6, size=4, batch_size=8, seed=3)
    made = pipeline.train_batches(split, crop="random_resized", workers=2, **settings)
    for step, expected in enumerate(plain[:4]):
        found = next(made)
        assert found.keys() == expected.keys() and running() == before + 2, step
        for key in expected:
            np.testing.assert_array_equal(found[key], expected[key])
    del found, made
    assert running() == before
    one = tmp_path / "broken.png"
    one.write_bytes(b"")
    broken = Encoded(Files(str(tmp_path), [one.name], np.zeros(1, np.int32)), 3, False)
    made = pipeline.train_batches(broken, crop="central", workers=1, **settings)
    with pytest.raises(UsageError) as error:
        next(made)
    assert str(error.value).startswith(f"corrupt image {one}: replace it")
    assert "\n" not in str(error.value) and running() == before
