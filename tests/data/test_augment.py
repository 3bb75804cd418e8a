"""Augmentation against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from advadapters.data import augment


def make(**settings):
    base = dict(
        flip_horizontal=False, pad=0, mixup_alpha=0.0, cutmix_alpha=0.0, label_smoothing=0.0
    )
    return jax.jit(augment.make_augment(5, **(base | settings)))


def test_nothing_on_is_division_by_255():
    raw = tiny.raw_batch()
    found = make()(raw, jax.random.key(0))
    np.testing.assert_allclose(found["images"], raw["images"] / np.float32(255), rtol=1e-6)
    np.testing.assert_array_equal(found["labels"], np.eye(5)[raw["labels"]])
    assert found["images"].dtype == found["labels"].dtype == jnp.float32


def test_label_smoothing():
    found = make(label_smoothing=0.1)(tiny.raw_batch(), jax.random.key(0))["labels"]
    np.testing.assert_allclose(np.unique(found), [0.02, 0.92], rtol=1e-6)


def test_flip_mirrors_half_of_the_images():
    raw = tiny.raw_batch(400)
    found = np.asarray(make(flip_horizontal=True)(raw, jax.random.key(0))["images"])
    plain = raw["images"] / np.float32(255)
    same = np.isclose(found, plain).all((1, 2, 3))
    mirrored = np.isclose(found, plain[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all() and abs(same.mean() - 0.5) < 0.08


def test_pad_crop_shifts_by_up_to_the_padding():
    image = jnp.arange(1.0, 17.0).reshape(4, 4, 1)
    padded = np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)))
    windows = {padded[t : t + 4, s : s + 4].tobytes() for t in range(3) for s in range(3)}
    cut = jax.jit(lambda key: augment.pad_crop(key, image, 1))
    found = {np.asarray(cut(jax.random.key(i))).tobytes() for i in range(60)}
    assert found == windows


def test_erasing_puts_noise_in_a_box_of_the_published_sizes():
    mean, std = (0.4, 0.5, 0.6), (0.05,)
    erase = jax.jit(jax.vmap(lambda key: augment.erase(
        key, jnp.zeros((40, 60, 3)), 0.5, mean, std)))  # fmt: skip
    found = np.asarray(erase(jax.random.split(jax.random.key(0), 600)))
    hit = (found > 0).all(-1)
    boxes = [np.argwhere(one) for one in hit if one.any()]
    assert abs(len(boxes) / 600 - 0.5) < 0.08
    sides = np.array([box.max(0) - box.min(0) + 1 for box in boxes])
    areas, ratios = sides.prod(1) / 2400, sides[:, 0] / sides[:, 1]
    assert [len(box) for box in boxes] == sides.prod(1).tolist()  # whole rectangles
    assert 0.015 < areas.min() < 0.05 and 0.28 < areas.max() < 0.35
    assert 0.25 < ratios.min() < 0.4 and 2.3 < ratios.max() < 3.7
    assert (sides < (40, 60)).all()
    # Somewhere else each time, up to every border.
    ends = np.array([(*box.min(0), *box.max(0)) for box in boxes])
    assert ends.min(0).tolist()[:2] == [0, 0] and ends.max(0).tolist()[2:] == [39, 59]
    noise = found[hit]
    np.testing.assert_allclose(noise.mean(0), mean, atol=0.002)
    np.testing.assert_allclose(noise.std(0), 0.05, rtol=0.02)
    untouched = augment.erase(jax.random.key(0), jnp.zeros((40, 60, 3)), 0.0, mean, std)
    assert not untouched.any()


def test_erasing_comes_before_mixing():
    erasing = dict(probability=1.0, mean=(1.0,), std=(0.0,))
    raw = tiny.raw_batch() | {"images": np.zeros((8, 8, 8, 1), np.uint8)}
    found = make(erasing=erasing, mixup_alpha=1.0)(raw, jax.random.key(0))["images"]
    shares = np.unique(np.round(found, 4))
    assert {0.0, 1.0} < set(shares.tolist()) and len(shares) in (3, 4)


def test_mixup_blends_images_and_labels_alike():
    data = tiny.batch()
    labels = jax.nn.one_hot(data["labels"], 5)
    images, mixed = augment.mixup(jax.random.key(0), data["images"], labels, 0.8)
    share = jax.random.beta(jax.random.key(0), 0.8, 0.8)
    assert 0 < share < 1
    np.testing.assert_allclose(
        images, share * data["images"] + (1 - share) * data["images"][::-1], atol=1e-6
    )
    np.testing.assert_allclose(
        mixed, share * labels + (1 - share) * labels[::-1], atol=1e-6
    )


def test_cutmix_pastes_one_box_and_labels_follow_its_area():
    images = jnp.stack([jnp.zeros((16, 16, 1)), jnp.ones((16, 16, 1))])
    labels = jnp.eye(2)
    shares = []
    cut = jax.jit(augment.cutmix, static_argnums=3)
    for i in range(40):
        found, mixed = cut(jax.random.key(i), images, labels, 1.0)
        pasted = np.asarray(found[0, :, :, 0])
        np.testing.assert_array_equal(found[1, :, :, 0], 1 - pasted)
        rows, columns = pasted.any(1), pasted.any(0)
        assert pasted.sum() == rows.sum() * columns.sum()  # a box
        np.testing.assert_allclose(mixed[0], [1 - pasted.mean(), pasted.mean()], atol=1e-6)
        shares.append(pasted.mean())
    assert 0.15 < np.mean(shares) < 0.5 and np.std(shares) > 0.1


@pytest.mark.parametrize("first, second", [(0.8, 0.0), (0.8, 1.0)])
def test_mixing_touches_its_share_of_the_batches(first, second):
    settings = dict(mixup_alpha=first, cutmix_alpha=second)
    raw = tiny.raw_batch()
    plain = make()(raw, jax.random.key(0))
    always, never, some = (make(**settings, mix_probability=p) for p in (1.0, 0.0, 0.3))
    mixed = 0
    for i in range(200):
        key = jax.random.key(i)
        found = some(raw, key)
        same = np.array_equal(found["labels"], plain["labels"])
        expected = plain if same else always(raw, key)
        for name in ("images", "labels"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
        mixed += not same
    assert abs(mixed / 200 - 0.3) < 0.1  # three standard deviations
    jax.tree.map(np.testing.assert_array_equal, never(raw, jax.random.key(1)), plain)


@pytest.mark.parametrize("first, second", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_labels_stay_probabilities(first, second):
    function = make(mixup_alpha=first, cutmix_alpha=second, label_smoothing=0.1)
    kinds = set()
    for i in range(12):
        raw = tiny.raw_batch()
        found = function(raw, jax.random.key(i))
        np.testing.assert_allclose(found["labels"].sum(1), 1, atol=1e-6)
        assert 0 <= found["images"].min() and found["images"].max() <= 1
        plain = raw["images"] / np.float32(255)
        pasted = np.isclose(found["images"], plain, atol=1e-6)
        pasted |= np.isclose(found["images"], plain[::-1], atol=1e-6)
        kinds.add("cutmix" if pasted.all() else "mixup")
    assert kinds == {name for name, on in (("mixup", first), ("cutmix", second)) if on}
