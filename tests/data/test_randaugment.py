"""RandAugment's operations against Pillow's, which timm calls, and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from advadapters import rng as keys
from advadapters.data import augment, randaugment

OPERATIONS = randaugment.OPERATIONS
FILL = (124, 116, 104)


def photo(height=48, width=60, channels=3):
    """A piece of a photograph, uint8 [H, W, C]."""
    return load_sample_images().images[0][150 : 150 + height, 200 : 200 + width, :channels]


def affine(image, *matrix):
    colour = FILL if image.mode == "RGB" else FILL[0]
    return image.transform(
        image.size, Image.AFFINE, matrix, resample=Image.BICUBIC, fillcolor=colour
    )


def brighten(image, more):
    table = [min(255, i + int(more)) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


def turn(image, degrees):
    colour = FILL if image.mode == "RGB" else FILL[0]
    return image.rotate(degrees, resample=Image.BICUBIC, fillcolor=colour)


PILLOW = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Rotate": turn,
    "PosterizeIncreasing": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "SolarizeIncreasing": lambda image, level: ImageOps.solarize(image, int(level)),
    "SolarizeAdd": brighten,
    "ColorIncreasing": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "ContrastIncreasing": lambda image, f: ImageEnhance.Contrast(image).enhance(f),
    "BrightnessIncreasing": lambda image, f: ImageEnhance.Brightness(image).enhance(f),
    "SharpnessIncreasing": lambda image, f: ImageEnhance.Sharpness(image).enhance(f),
    "ShearX": lambda image, f: affine(image, 1, f, 0, 0, 1, 0),
    "ShearY": lambda image, f: affine(image, 1, 0, 0, f, 1, 0),
    "TranslateXRel": lambda image, f: affine(image, 1, 0, f * image.width, 0, 1, 0),
    "TranslateYRel": lambda image, f: affine(image, 1, 0, 0, 0, 1, f * image.height),
}


GRAY = ("Equalize", "ColorIncreasing", "ContrastIncreasing", "Rotate")


@pytest.mark.parametrize(
    "name, channels", [*((name, 3) for name in OPERATIONS), *((name, 1) for name in GRAY)]
)
def test_operations_are_pillows(name, channels):
    run, value = OPERATIONS[name]
    run, colour = jax.jit(run), jnp.array(FILL[:channels], jnp.float32)
    array = photo(channels=channels)
    image = Image.fromarray(array.squeeze())
    for magnitude, sign in ((0.0, 1.0), (4.7, -1.0), (9.3, 1.0), (9.3, -1.0)):
        level = float(value(jnp.float32(magnitude), sign))
        expected = np.asarray(PILLOW[name](image, level), int).reshape(array.shape)
        found = np.asarray(run(jnp.asarray(array, jnp.float32), level, colour))
        np.testing.assert_array_equal(found, found.astype(np.uint8))
        wrong = np.abs(found - expected)
        # Where a value is nearly whole, its last bit decides what is cut off.
        assert wrong.max() <= name.startswith(("Auto", "Rot", "Shear", "Trans"))
        assert (wrong > 0).mean() < 0.03


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 2, 1)])
def test_flat_and_tiny_images(shape):
    flat = jnp.full(shape, 77.0)
    for name in ("AutoContrast", "Equalize", "ContrastIncreasing", "SharpnessIncreasing"):
        found = jax.jit(OPERATIONS[name][0])(flat, 1.7, jnp.zeros(1))
        np.testing.assert_array_equal(found, flat)


def test_magnitudes():
    """timm's table at magnitudes 9 and 10, both signs."""
    told = {
        "Rotate": (27, -27, 30, -30),
        "PosterizeIncreasing": (1, 1, 0, 0),
        "SolarizeIncreasing": (26, 26, 0, 0),
        "SolarizeAdd": (99, 99, 110, 110),
        "ColorIncreasing": (1.81, 0.19, 1.9, 0.1),
        "ContrastIncreasing": (1.81, 0.19, 1.9, 0.1),
        "BrightnessIncreasing": (1.81, 0.19, 1.9, 0.1),
        "SharpnessIncreasing": (1.81, 0.19, 1.9, 0.1),
        "ShearX": (0.27, -0.27, 0.3, -0.3),
        "ShearY": (0.27, -0.27, 0.3, -0.3),
        "TranslateXRel": (0.405, -0.405, 0.45, -0.45),
        "TranslateYRel": (0.405, -0.405, 0.45, -0.45),
    }
    assert set(OPERATIONS) - set(told) == {"AutoContrast", "Equalize", "Invert"}
    for name, expected in told.items():
        value = OPERATIONS[name][1]
        found = [value(jnp.float32(m), s) for m in (9, 10) for s in (1.0, -1.0)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


def test_what_is_drawn():
    many = jax.random.split(jax.random.key(0), 20000)
    number, magnitude, sign = jax.vmap(lambda key: randaugment.draw(key, 9.0, 0.5))(many)
    shares = np.bincount(number, minlength=16) / len(many)
    np.testing.assert_allclose(shares[:15], 0.5 / 15, atol=0.006)  # 4.5 deviations
    assert abs(shares[15] - 0.5) < 0.016 and abs(np.mean(sign)) < 0.03
    # A normal distribution cut off at 10, two deviations above its mean.
    assert magnitude.max() == 10 and abs(np.mean(magnitude == 10) - 0.0228) < 0.005
    assert abs(np.median(magnitude) - 9) < 0.02
    assert abs(np.mean(magnitude < 8.5) - 0.1587) < 0.012
    assert abs(np.corrcoef(number, sign)[0, 1]) < 0.03


def test_layers_follow_each_other_and_batches_do_not_matter(mesh):
    images = np.stack([photo(12, 14)[i : i + 8, i : i + 8] for i in range(4)] * 2)
    settings = dict(layers=2, magnitude=9.0, std=0.5, fill=(0.5,))
    augmented = jax.jit(randaugment.make_randaugment(mesh, **settings))
    index = np.array([3, 1, 40, 7, 5, 9, 11, 2])
    own = keys.by_index(jax.random.key(2), index)
    whole = augmented(own, images)
    assert whole.dtype == jnp.uint8 and whole.shape == images.shape
    np.testing.assert_array_equal(augmented(own[::-1], images[::-1])[::-1], whole)
    draw = jax.jit(lambda key, i: randaugment.draw(jax.random.fold_in(key, i), 9.0, 0.5))
    applied = 0
    for key, image, found in zip(own, images, whole, strict=True):
        expected = jnp.asarray(image, jnp.float32)
        for number, magnitude, sign in (draw(key, layer) for layer in range(2)):
            if number < len(OPERATIONS):
                run, value = list(OPERATIONS.values())[number]
                level = value(magnitude, sign)
                expected = jax.jit(run)(expected, level, jnp.array([128.0]))
                applied += 1
        assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1
    assert 4 < applied < 12


def test_no_layers_is_nothing(mesh):
    assert (
        randaugment.make_randaugment(mesh, layers=0, magnitude=9.0, std=0.5, fill=(0.5,))
        is None
    )


def test_it_comes_after_the_flip():
    seen = {}

    def note(own, images):
        seen.update(keys=own, images=np.asarray(images))
        return images

    raw = {
        "images": np.arange(8 * 16, dtype=np.uint8).reshape(8, 4, 4, 1),
        "labels": np.arange(8) % 5,
        "index": np.arange(8) + 3,
    }
    settings = dict(pad=0, mixup_alpha=0.0, cutmix_alpha=0.0, label_smoothing=0.0)
    key = jax.random.key(5)
    augment.make_augment(5, flip_horizontal=True, randaugment=note, **settings)(raw, key)
    same = (seen["images"] == raw["images"]).all((1, 2, 3))
    mirrored = (seen["images"] == raw["images"][:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all() and 0 < mirrored.sum() < 8
    assert (
        seen["keys"] == keys.by_index(keys.fold(key, "randaugment"), raw["index"])
    ).all()
