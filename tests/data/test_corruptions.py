"""Corruptions against references in numpy, SciPy, OpenCV and Pillow, on two photographs."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_corruptions as reference
from sklearn.datasets import load_sample_images

from advadapters.data import corruptions, distortions, filters, jpeg
from advadapters.errors import UsageError

COPIES = 16
EXACT = (
    "gaussian_blur", "defocus_blur", "zoom_blur", "brightness", "saturate", "contrast",
    "pixelate",
)  # fmt: skip
# Corruption, severity and a neighbour of it whose parameters give nearly the same images.
ALIKE = {
    ("motion_blur", 3, 4), ("glass_blur", 3, 2), ("snow", 3, 2), ("fog", 5, 4),
    ("elastic_transform", 3, 2),
    ("elastic_transform", 3, 4),
}  # fmt: skip


@functools.cache
def photographs(side, copies=1):
    """float32 [2 * copies, side, side, 3]: a temple and a flower, one after the other."""
    pictures = [picture[:, :427] for picture in load_sample_images().images]
    small = [cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in pictures]
    return np.repeat(np.stack(small), copies, axis=0).astype(np.float32) / 255


@functools.cache
def jitted(name, severity):
    return jax.jit(functools.partial(corruptions.corrupt, name=name, severity=severity))


def ours(images, name, severity):
    return np.asarray(jitted(name, severity)(images, jax.random.key(severity)))


def theirs(images, name, severity):
    draw = np.random.default_rng(severity)
    return np.stack([reference.corrupt(draw, one, name, severity) for one in images])


@pytest.mark.parametrize("name", EXACT)
def test_what_draws_nothing_is_equal(name):
    for side, severities in ((32, (1, 3, 5)), (224, (1, 5))):
        for severity in severities:
            found = ours(photographs(side), name, severity)
            expected = theirs(photographs(side), name, severity)
            # Rounding errors may put a value on the other side of a step of 1/255.
            assert np.abs(found - expected).max() < 1.01 / 255, (side, severity)
            assert (np.abs(found - expected) > 0.5 / 255).mean() < 1e-3, (side, severity)


@pytest.mark.parametrize("side", [36, 224])
def test_jpeg_is_libjpeg_up_to_rounding(side):
    image = photographs(side)[0]
    compress = jax.jit(jpeg.compress, static_argnums=1)
    for quality in (10, 80):
        found = compress(image, quality)
        expected = reference.jpeg_compression(None, image, quality)
        assert np.abs(found - expected).mean() < 0.8 / 255
        assert np.abs(
            found - reference.jpeg_compression(None, image, quality + 5)
        ).mean() > (1.2 * np.abs(found - expected).mean())
    grey = np.round(image[..., :1] * 255)
    _, coded = cv2.imencode(".jpg", grey.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 20])
    expected = cv2.imdecode(coded, cv2.IMREAD_UNCHANGED)[..., None]
    assert np.abs(255 * compress(grey / 255, 20) - expected).mean() < 0.5


def statistics(images, clean):
    """[photograph, copy, 3]: mean absolute change, mean and deviation of each image."""
    found = [np.abs(images - clean).mean((1, 2, 3)), images.mean((1, 2, 3))]
    found.append(images.std((1, 2, 3)))
    return np.stack(found, axis=-1).reshape(2, -1, 3)


def apart(a, b):
    """Largest difference between two means over copies, in standard errors."""
    variance = (a.var(axis=1) + b.var(axis=1)) / (a.shape[1] - 1)
    return (np.abs(a.mean(axis=1) - b.mean(axis=1)) / np.sqrt(variance + 1e-8)).max()


RANDOM = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur",
    "motion_blur", "snow", "fog", "spatter", "elastic_transform",
)  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_what_draws_has_the_statistics_of_its_severity_only(name):
    clean = photographs(32, 64 if name == "elastic_transform" else COPIES)
    expected = {s: statistics(theirs(clean, name, s), clean) for s in (2, 3, 4, 5)}
    for severity, others in ((3, (2, 4)), (5, (4,))):
        found = statistics(ours(clean, name, severity), clean)
        assert apart(found, expected[severity]) < 4.5, severity
        for other in others:
            if (name, severity, other) not in ALIKE:
                assert apart(found, expected[other]) > 5.5, (severity, other)


@pytest.mark.parametrize("name", ["fog", "spatter"])
def test_statistics_of_large_images(name):
    clean = photographs(224, 3)
    found = statistics(ours(clean, name, 3), clean).mean(axis=1)
    expected = statistics(theirs(clean, name, 3), clean).mean(axis=1)
    np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=0.1)
    np.testing.assert_allclose(found, expected, rtol=0.25)


def test_more_severe_is_further_away():
    for name in (*EXACT, *RANDOM):
        if name in ("saturate", "spatter", "elastic_transform"):
            continue  # other kinds of change, not more of one
        drawn = name in RANDOM
        clean = photographs(32, COPIES if drawn else 1)
        severities = (3, 5) if drawn else (1, 3, 5)
        changes = [np.abs(ours(clean, name, s) - clean).mean() for s in severities]
        assert name == "pixelate" or changes == sorted(changes), name
        assert changes[-1] > 1.05 * changes[0], name


def test_displacing_is_going_from_pixel_to_pixel(rng):
    for reach in (1, 3):
        image = rng.uniform(size=(20, 30, 3)).astype(np.float32)
        shifts = rng.integers(-reach, reach, (2, 20, 30))
        # A copy: jax may read the array itself, and later than the loop below writes it.
        displace = jax.jit(distortions.displace, static_argnums=2)
        found = displace(image.copy(), shifts, reach)
        for y in range(20 - reach, reach, -1):
            for x in range(30 - reach, reach, -1):
                image[y, x] = image[y + shifts[0, y, x], x + shifts[1, y, x]]
        np.testing.assert_array_equal(found, image)


def test_filters_are_opencvs(rng):
    grid = cv2.GaussianBlur(rng.uniform(0, 255, (40, 60)), (0, 0), 1.5).astype(np.uint8)
    edges = jax.jit(filters.canny, static_argnums=(1, 2))(grid.astype(np.float32), 50, 150)
    expected = cv2.Canny(grid, 50, 150) > 0
    assert 0.05 < expected.mean() < 0.5
    np.testing.assert_array_equal(edges, expected)
    marked = rng.random((40, 60)) < 0.005
    far = jax.jit(filters.distance, static_argnums=1)(marked, 20)
    expected = cv2.distanceTransform(np.uint8(~marked), cv2.DIST_L2, 5)
    np.testing.assert_allclose(far, np.minimum(expected, 20), atol=1e-3)
    steps = rng.integers(3, 21, (40, 60)).astype(np.uint8)
    even = jax.jit(filters.equalize, static_argnums=1)(steps.astype(np.float32), 21)
    np.testing.assert_array_equal(even, cv2.equalizeHist(steps))


def test_motion_blur_at_an_angle():
    image = photographs(32)[0].astype(np.float64)
    for angle in (-131.0, -31.0, 20.0):
        found = jax.jit(filters.motion_blur, static_argnums=(1, 2))(image, 8, 3, angle)
        assert np.abs(found - reference.moved(image, 8, 3, angle)).max() < 1 / 255


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_any_size_grey_images_and_no_influence_of_the_batch(name):
    images = photographs(32, 2)[:, :9, :14, :1]
    keys = jax.random.split(jax.random.key(0), 4)
    found = np.asarray(jitted(name, 4)(images, keys))
    assert found.shape == images.shape and found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
    np.testing.assert_allclose(found * 255, np.round(found * 255), atol=1e-4)
    assert name == "saturate" or np.abs(found - images).max() > 0.02
    again = jitted(name, 4)(images[::-1], keys[::-1])
    np.testing.assert_array_equal(found, again[::-1])


def test_severities_and_keys_draw_differently():
    images = photographs(32, 2)
    one = ours(images, "gaussian_noise", 1)
    assert np.abs(one[0] - one[1]).max() > 0.05
    other = jitted("gaussian_noise", 2)(images, jax.random.key(1))
    assert np.abs((other - images) / 1.5 - (one - images)).max() > 0.05


def test_black_and_white_stay_finite():
    images = jnp.stack([jnp.zeros((8, 8, 3)), jnp.ones((8, 8, 3))])
    for name in ("fog", "saturate"):
        assert jnp.all(jnp.isfinite(jitted(name, 3)(images, jax.random.key(0)))), name


def test_parameters_by_size_and_mistakes():
    assert corruptions.parameters("contrast", 2, 84) == (0.5,)
    assert corruptions.parameters("contrast", 2, 85) == (0.3,)
    assert len(corruptions.COMMON) == 15
    for name, row in corruptions.CORRUPTIONS.items():
        for side, rows in ((224, row.large), (32, row.small)):
            if name == "frost":
                continue
            typed = [v if isinstance(v, tuple) else (v,) for v in
                     reference.PARAMETERS[name][side]]  # fmt: skip
            scale = side if name == "elastic_transform" else 1
            np.testing.assert_allclose(np.array(rows) * scale, typed, err_msg=name)
    with pytest.raises(UsageError, match="unknown corruption 'rain'; there are: gaussian_"):
        corruptions.parameters("rain", 1, 32)
    with pytest.raises(UsageError, match="severity must be one of 1, 2, 3, 4, 5, got 6"):
        corruptions.parameters("fog", 6, 32)
    with pytest.raises(UsageError, match="images with 1 or 3 channels, not 4"):
        ours(np.zeros((1, 8, 8, 4)), "fog", 1)
