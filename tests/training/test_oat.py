"""OAT and OATS: against the published formulas in numpy, and against their definition."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from models import small
from scipy.fft import dct

from advadapters import losses, meshes, networks, trees
from advadapters.attacks.pgd import pgd
from advadapters.data.augment import make_augment
from advadapters.models import film
from advadapters.training import oat, states, step

LAMBDAS = (0.0, 0.1, 0.4, 1.0)
FILM = film.Film(LAMBDAS, "random", 8, 0.0)
ATTACK = functools.partial(pgd, norm="linf", eps=0.1, steps=2)
METHOD = oat.OAT(LAMBDAS, 0.25, ATTACK, dual=True)
NORMS = (r"(.*/)?(\w+_)?norm\d?/.*",)


@functools.cache
def network(name="preact_resnet", size="4x1", narrow=False, **fields):
    """A small conditioned network."""
    model = small.model(name, size, film=FILM, **fields)
    return networks.make_network(model, (8, 8, 1), narrow=narrow)


def plain(net, seed=0):
    """All leaves random, but for the encoding."""
    made = tiny.plain(net, seed)
    made["params"]["lambda_encoding"]["matrix"] = jnp.array(film.encoding_matrix(FILM))
    return made


def variables(net, method=METHOD, seed=0):
    """The variables of training, the rows of the domains all different."""
    made = states.branches(
        plain(net, seed),
        NORMS,
        len(method.domains()),
        separate=True,
        trained=("(?!lambda_encoding).*",),
    )
    draw = np.random.default_rng(seed)

    def noisy(leaf):
        return leaf * jnp.float32(draw.uniform(0.8, 1.2, leaf.shape))

    stats = made["stats"] | {"adapters": jax.tree.map(noisy, made["stats"]["adapters"])}
    return made | {"adapters": jax.tree.map(noisy, made["adapters"]), "stats": stats}


def on_one_device(loss):
    """The loss with the axis "data" bound, as the step binds it."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    spec = jax.sharding.PartitionSpec()
    return jax.jit(
        jax.shard_map(loss, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    )


@functools.cache
def stepped():
    """(network, variables, batch, key, what the loss gives)."""
    net, batch, key = network(), tiny.batch(8), jax.random.key(3)
    tree = variables(net)
    found = on_one_device(METHOD.loss({1.0: net}))(tree, batch, key)
    return net, tree, batch, key, found


def leaky(x):
    return np.where(x > 0, x, 0.01 * x)


def test_film_is_the_published_formula():
    draw = np.random.default_rng(0)
    x, condition = draw.normal(size=(3, 4, 4, 6)), draw.normal(size=(3, 8))
    module = film.FiLM(0.0, jnp.float32)
    params = module.init(jax.random.key(0), jnp.float32(x), jnp.float32(condition))
    one, two = (params["params"][name] for name in ("fc1", "fc2"))
    hidden = leaky(condition @ np.array(one["kernel"]) + np.array(one["bias"]))
    made = leaky(hidden @ np.array(two["kernel"]) + np.array(two["bias"]))
    gamma, beta = made[:, None, None, :6], made[:, None, None, 6:]
    found = module.apply(params, jnp.float32(x), jnp.float32(condition))
    np.testing.assert_allclose(found, x * gamma + beta, atol=1e-5)
    assert hidden.shape == (3, 12)
    for leaf in jax.tree.leaves(one):  # torch's first values: within 1 / sqrt(fan in)
        assert 0.2 < float(jnp.abs(leaf).max()) <= 8**-0.5


@pytest.mark.parametrize("encoding", ["onehot", "dct", "random"])
def test_encodings_are_rows_of_their_matrices(encoding):
    matrix = film.encoding_matrix(film.Film(LAMBDAS, encoding, 8, 0.0))
    assert matrix.shape == (4, 8)
    if encoding == "onehot":
        np.testing.assert_array_equal(matrix, np.eye(8)[:4])
    elif encoding == "dct":
        np.testing.assert_allclose(matrix, dct(np.eye(8), axis=0)[:4], rtol=1e-6)
        assert matrix[0, 0] == 2.0  # scipy's type 2 without normalisation
    else:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(4), atol=1e-6)


def test_a_lambda_gets_the_row_of_its_value_and_none_is_lambda_itself():
    module = film.Encode(FILM)
    params = module.init(jax.random.key(0), jnp.zeros(1))
    found = module.apply(params, jnp.array([1.0, 0.1, 0.0, 0.4]))
    np.testing.assert_array_equal(found, film.encoding_matrix(FILM)[[3, 1, 0, 2]])
    scalar = film.Encode(FILM._replace(encoding="none"))
    np.testing.assert_array_equal(scalar.apply({}, jnp.array([0.25])), [[0.25]])


@pytest.mark.parametrize("name", sorted(small.SIZES))
def test_a_lambda_of_each_example_in_one_batch(name):
    net = network(name, small.SIZES[name])
    tree, images = plain(net), small.images(4)
    lam = jnp.array([0.0, 1.0, 0.4, 0.1])
    apply = jax.jit(net.apply)
    mixed = apply(tree | {"lambda": lam}, images)
    for row, value in enumerate(lam):
        same = apply(tree | {"lambda": jnp.full(4, value)}, images)
        np.testing.assert_allclose(mixed[row], same[row], rtol=1e-4, atol=1e-5)
    other = apply(tree | {"lambda": jnp.ones(4)}, images)
    assert float(jnp.abs(other[0] - mixed[0]).max()) > 1e-4


def test_a_network_with_film_must_be_told_lambda():
    net = network()
    with pytest.raises(ValueError, match="conditioned on lambda"):
        jax.eval_shape(net.apply, plain(net), small.images(1))


@pytest.mark.parametrize("count, share, zeros", [(8, 0.25, 2), (128, 1 / 6, 22), (6, 0, 0)])
def test_the_share_of_zeros_is_exact_and_spread_evenly(count, share, zeros):
    zero, rest = oat.split_rows(count, share)
    assert len(zero) == zeros and sorted([*zero, *rest]) == list(range(count))
    if zeros:
        assert np.ptp(np.diff([*zero, zero[0] + count])) <= 1


def test_a_batch_on_more_devices_has_the_same_zeros():
    whole, _ = oat.split_rows(16, 0.25)
    part, _ = oat.split_rows(4, 0.25)
    np.testing.assert_array_equal(whole, [d * 4 + row for d in range(4) for row in part])


def test_lambdas_are_drawn_evenly_by_the_images_numbers():
    index = jnp.arange(6000)
    zero = np.arange(0, 6000, 6)
    lam = np.array(oat.draw(LAMBDAS, zero, jax.random.key(0), index))
    assert (lam[zero] == 0).all()
    values, counts = np.unique(np.delete(lam, zero), return_counts=True)
    np.testing.assert_allclose(values, [0.1, 0.4, 1.0])
    assert (np.abs(counts - 5000 / 3) < 5 * (5000 * 2 / 9) ** 0.5).all()
    again = oat.draw(LAMBDAS, np.array([], int), jax.random.key(0), index[10:20])
    np.testing.assert_array_equal(again[jnp.array([1, 3])], lam[[11, 13]])


def by_hand(net, tree, batch, key, method=METHOD):
    """OAT's loss and statistics with plain calls, pass after pass."""
    zero, rest = oat.split_rows(8, 0.25)
    lam = oat.draw(LAMBDAS, zero, oat.rng.fold(key, "lambda"), batch["index"])

    def through(stats, domain, images, rows):
        knob = networks.Knob(jax.nn.one_hot(domain, 2), lam[rows])
        made = net.at(tree | {"stats": stats}, knob)
        return made, net.train(made, images, key, batch["index"][rows], False)

    def put(stats, domain, seen):
        rows = jax.tree.map(
            lambda old, new: old.at[domain].set(new), stats["adapters"], seen
        )
        return stats | {"adapters": rows}

    labels, stats = batch["labels"], tree["stats"]
    _, (first, seen) = through(stats, 0, batch["images"][zero], zero)
    stats = put(stats, 0, seen)
    _, (second, seen) = through(stats, 1, batch["images"][rest], rest)
    stats = put(stats, 1, seen)
    made = net.at(tree | {"stats": stats}, networks.Knob(jax.nn.one_hot(1, 2), lam[rest]))
    keys = oat.rng.by_index(oat.rng.fold(key, "attack", "start"), batch["index"][rest])
    attacked = method.attack(
        lambda x: net.apply(made, x), batch["images"][rest], labels[rest], keys
    )
    _, (third, seen) = through(stats, 1, attacked, rest)
    stats = put(stats, 1, seen)
    ce = losses.cross_entropy
    total = (
        jnp.sum(ce(first, labels[zero]))
        + jnp.sum((1 - lam[rest]) * ce(second, labels[rest]))
        + jnp.sum(lam[rest] * ce(third, labels[rest]))
    )
    return total / 8, stats


def test_the_loss_and_the_statistics_are_those_by_hand():
    net, tree, batch, key, (total, (stats, metrics)) = stepped()
    hand = on_one_device(functools.partial(by_hand, net))
    expected, seen = hand(tree, batch, key)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), stats, seen
    )
    assert set(metrics) == {"loss", "accuracy/clean", "accuracy/attacked"}


def test_the_norms_of_lambda_0_see_clean_images_of_lambda_0_alone():
    """Momentum 0.9 once for the first set and twice for the second."""
    net, tree, batch, key, (_, (stats, _)) = stepped()
    zero, _ = oat.split_rows(8, 0.25)
    before, after = (s["adapters"]["stage1_block1"]["norm1"]["mean"] for s in
                     (tree["stats"], stats))  # fmt: skip
    made = net.at(tree, networks.Knob(jax.nn.one_hot(0, 2), jnp.zeros(2)))
    kernel = made["params"]["stem"]["kernel"]
    stem = jax.lax.conv_general_dilated(
        (batch["images"][zero] - 0.5) / 0.25, kernel, (1, 1), [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    expected = 0.9 * before[0] + 0.1 * stem.mean((0, 1, 2))
    np.testing.assert_allclose(after[0], expected, rtol=1e-4, atol=1e-5)


def test_attacks_change_no_statistic():
    """The same statistics whatever the attack, as long as it gives the same images."""
    net, tree, batch, key, _ = stepped()
    gentle = dataclasses.replace(METHOD, attack=lambda f, images, labels, keys: images)

    def looking(logits_fn, images, labels, keys):
        seen = logits_fn(100 * images) + logits_fn(1 - images)
        return images + 0 * jnp.sum(seen)

    found = [
        on_one_device(dataclasses.replace(METHOD, attack=attack).loss({1.0: net}))(
            tree, batch, key
        )[1][0]
        for attack in (gentle.attack, looking)
    ]
    # Two programs, which may round otherwise; what is looked at is much brighter.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # noqa: E731
    jax.tree.map(close, *found)


def test_gradients_reach_all_but_the_encoding():
    net, tree, batch, key, _ = stepped()
    loss = METHOD.loss({1.0: net})

    def slopes(tree, batch, key):
        return jax.grad(lambda t: loss(tree | t, batch, key)[0])(states.trained(tree))

    flat = trees.flatten(on_one_device(slopes)(tree, batch, key))
    assert not any("lambda_encoding" in path for path in flat)
    dead = [path for path, leaf in flat.items() if not float(jnp.abs(leaf).max())]
    assert not dead


WIDTHS = (0.5, 0.75, 1.0)


@functools.cache
def slim_networks(size="16x1x1"):
    """{width: network} for a preactivation network of 16, 12 and 8 channels."""
    model = small.model("preact_resnet", size, film=FILM)
    return {
        width: networks.make_network(
            model.clone(size=model.size.scaled(width)), (8, 8, 1), narrow=width < 1
        )
        for width in WIDTHS
    }


SLIM = dataclasses.replace(METHOD, widths=WIDTHS)


def test_widths_and_kinds_are_domains():
    assert SLIM.domains() == (
        "clean0.5", "robust0.5", "clean0.75", "robust0.75", "clean1", "robust1",
    )  # fmt: skip
    np.testing.assert_array_equal(SLIM.knob(0.0, 0.75).mixture, np.eye(6)[2])
    np.testing.assert_array_equal(SLIM.knob(0.4, 1.0).mixture, np.eye(6)[5])
    assert dataclasses.replace(METHOD, dual=False).domains() == ("all",)


def test_a_narrow_network_is_an_ordinary_one_with_the_corner_of_the_leaves():
    """Slimmable convolutions slice the first channels of one kernel, as FiLM does."""
    nets = slim_networks()
    tree = variables(nets[1.0], SLIM)
    wide = nets[1.0].at(tree, SLIM.knob(0.4, 0.5))
    cut = nets[0.5].at(tree, SLIM.knob(0.4, 0.5))
    ordinary = networks.make_network(
        small.model("preact_resnet", "8x1x1", film=FILM), (8, 8, 1)
    )
    shapes = jax.eval_shape(ordinary.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, {k: cut[k] for k in shapes}) == jax.tree.map(
        lambda leaf: leaf.shape, shapes
    )
    np.testing.assert_array_equal(
        cut["params"]["stage1_block1"]["conv1"]["kernel"],
        wide["params"]["stage1_block1"]["conv1"]["kernel"][:, :, :8, :8],
    )
    np.testing.assert_array_equal(
        cut["params"]["stage1_block1"]["norm1_film"]["fc2"]["kernel"],
        wide["params"]["stage1_block1"]["norm1_film"]["fc2"]["kernel"][:16, :16],
    )
    images = small.images(3)
    np.testing.assert_array_equal(
        jax.jit(nets[0.5].apply)(cut, images), jax.jit(ordinary.apply)(cut, images)
    )


def test_slimmable_convolution_batch_norm_and_dense_are_the_published_formulas():
    """numpy: slice the kernel, normalise by the width's own statistics, slice the head."""
    model = small.model("preact_resnet", "4x1")
    net = networks.make_network(model.clone(size=model.size.scaled(0.5)), (8, 8, 1), narrow=True)  # fmt: skip # noqa: E501
    full = networks.make_network(model, (8, 8, 1))
    tree = states.branches(tiny.plain(full), NORMS, 2, separate=True)
    images = np.array(small.images(2))
    cut = net.at(tree, networks.Knob(np.array([1.0, 0.0], np.float32)))
    p, s = cut["params"], cut["batch_stats"]
    flat = trees.flatten(tiny.plain(full)["params"])

    def conv(x, kernel):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        size = x.shape[1]
        return sum(
            padded[:, i : i + size, j : j + size] @ kernel[i, j]
            for i in range(3)
            for j in range(3)
        )

    def bn(x, path):
        mean, var = (np.array(trees.flatten(s)[f"{path}/{n}"]) for n in ("mean", "var"))
        scale, bias = (np.array(trees.flatten(p)[f"{path}/{n}"]) for n in ("scale", "bias"))
        assert mean.shape == (2,)
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = conv((images - 0.5) / 0.25, np.array(flat["stem/kernel"])[..., :1, :2])
    block = "stage1_block1"
    inner = np.maximum(bn(x, f"{block}/norm1"), 0)
    inner = conv(inner, np.array(flat[f"{block}/conv1/kernel"])[..., :2, :2])
    inner = np.maximum(bn(inner, f"{block}/norm2"), 0)
    x = x + conv(inner, np.array(flat[f"{block}/conv2/kernel"])[..., :2, :2])
    pooled = np.maximum(bn(x, "norm"), 0).mean((1, 2))
    expected = pooled @ np.array(flat["head/kernel"])[:2] + np.array(flat["head/bias"])
    found = jax.jit(net.apply)(cut, jnp.array(images))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_one_step_of_oats_is_the_sum_over_its_widths():
    nets, batch, key = slim_networks("8x1"), tiny.batch(8), jax.random.key(0)
    tree = variables(nets[1.0], SLIM)
    total, (stats, metrics) = on_one_device(SLIM.loss(nets))(tree, batch, key)
    parts = []
    for number, width in enumerate(WIDTHS):
        rows = slice(2 * number, 2 * number + 2)
        cut = lambda branch: jax.tree.map(lambda leaf: leaf[rows], branch)  # noqa: B023, E731
        own = tree | {
            "adapters": cut(tree["adapters"]),
            "stats": tree["stats"] | {"adapters": cut(tree["stats"]["adapters"])},
        }
        part, (seen, _) = on_one_device(METHOD.loss({1.0: nets[width]}))(own, batch, key)
        parts.append(float(part))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            cut(stats["adapters"]),
            seen["adapters"],
        )
    np.testing.assert_allclose(total, sum(parts), rtol=1e-5)
    assert {f"accuracy/clean/{width:g}" for width in WIDTHS} < set(metrics)


def test_lambda_as_a_mixture_of_class_tokens():
    method = dataclasses.replace(METHOD, dual=False, mixed=True)
    net = networks.make_network(small.model("vit"), (8, 8, 1))
    tree = states.branches(tiny.plain(net), ("class_token",), 2)
    tokens = jax.tree.map(lambda x: x * jnp.array([1.0, -1.0])[:, None, None, None], tree["adapters"])  # fmt: skip # noqa: E501
    tree = tree | {"adapters": tokens}
    batch, key = tiny.batch(8), jax.random.key(0)
    total, _ = on_one_device(method.loss({1.0: net}))(tree, batch, key)
    zero, rest = oat.split_rows(8, 0.25)
    lam = np.array(oat.draw(LAMBDAS, zero, oat.rng.fold(key, "lambda"), batch["index"]))
    keys = oat.rng.by_index(oat.rng.fold(key, "attack", "start"), batch["index"])

    @jax.jit
    def two_losses(mixture, image, label, key):
        """Of one image, clean and attacked, through a network of its own."""
        one = trees.plain(tree, mixture)
        moved = ATTACK(lambda x: net.apply(one, x), image, label, key)
        return [losses.cross_entropy(net.apply(one, x), label)[0] for x in (image, moved)]

    expected = 0.0
    for row, value in enumerate(lam):
        own = (part[row : row + 1] for part in (batch["images"], batch["labels"], keys))
        clean, attacked = two_losses(np.array([1 - value, value]), *own)
        expected += (1 - value) * clean + value * attacked
    np.testing.assert_allclose(total, expected / 8, rtol=1e-4)


def train(devices, accumulate=1):
    """The variables after a step on so many devices."""
    mesh = meshes.make(jax.devices()[:devices])
    method, net = dataclasses.replace(METHOD, zeros=0.5), network()
    tx = optax.apply_if_finite(optax.sgd(0.1), 5)
    run = step.make_step(
        method.loss({1.0: net}, "data"),
        make_augment(
            5, flip_horizontal=False, pad=0, mixup_alpha=0.0, cutmix_alpha=0.0,
            label_smoothing=0.0, mix_probability=1.0,
        ),
        tx, ema_decay=0.9, accumulate=accumulate, mesh=mesh,
    )  # fmt: skip
    now = jax.device_put(states.create(variables(net), tx), meshes.replicated(mesh))
    now, _ = run(now, meshes.global_batch(mesh, tiny.raw_batch(16)), np.uint32(0))
    return now.variables


def test_eight_devices_are_one_device():
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
        train(1),
        train(8),
    )
