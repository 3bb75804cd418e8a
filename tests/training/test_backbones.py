"""Every backbone with every adapter: modes, soups, devices, statistics, FLOPs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from models import small

from advadapters import adapters, hlo, meshes, networks, rng, trees
from advadapters.attacks.pgd import pgd
from advadapters.data.augment import make_augment
from advadapters.models import MODELS
from advadapters.training import states, step, views

COMMON = ("norms", "head", "everything", "nothing")
OWN = {"vit": ("class_token", "pos_embed", "patch_embed")}
CASES = [
    (name, adapter) for name in MODELS for adapter in (*COMMON, *OWN.get(name, ("stem",)))
]
SEED = np.uint32(3)
SGD = optax.apply_if_finite(optax.sgd(0.1), 5)


def attack(logits_fn, images, labels, key, eps=0.1):
    return pgd(logits_fn, images, labels, key, norm="linf", eps=eps, steps=2)


SEEN = [
    views.View("clean", (1.0, 0.0), 0.5),
    views.View("linf", (0.0, 1.0), 0.5, (attack,)),
]


@functools.cache
def network(name, **fields):
    return networks.make_network(small.model(name, **fields), (8, 8, 1))


@functools.cache
def jitted(name):
    """The ordinary network's function, compiled once for all adapters."""
    return jax.jit(network(name).apply)


@functools.cache
def plain_network(name, **fields):
    """Random parameters and statistics."""
    made = small.variables(small.model(name, **fields))
    return {"params": made["params"], "batch_stats": made.get("batch_stats", {})}


def variables(name, adapter, separate=False, **fields):
    """Branches whose rows differ."""
    patterns = adapters.patterns((adapter,))
    tree = states.branches(plain_network(name, **fields), patterns, 2, separate)
    draw = np.random.default_rng(0)

    def apart(leaf):
        return leaf * jnp.asarray(1 + 0.1 * draw.uniform(size=leaf.shape), leaf.dtype)

    stats = tree["stats"] | {"adapters": jax.tree.map(apart, tree["stats"]["adapters"])}
    return tree | {"adapters": jax.tree.map(apart, tree["adapters"]), "stats": stats}


@pytest.mark.parametrize("name, adapter", CASES)
def test_modes_and_soups_are_ordinary_networks(name, adapter):
    tree, images = variables(name, adapter, separate=name != "vit"), small.images()
    ordinary = jitted(name)

    def mixed(tree, weights):
        return ordinary(jax.jit(trees.plain)(tree, weights), images)

    rows = [jax.tree.map(lambda leaf, k=k: leaf[k], tree["adapters"]) for k in (0, 1)]
    stats = [
        jax.tree.map(lambda leaf, k=k: leaf[k], tree["stats"]["adapters"]) for k in (0, 1)
    ]
    by_hand = [
        {
            "params": trees.merge(tree["shared"], row),
            "batch_stats": trees.merge(tree["stats"]["shared"], running),
        }
        for row, running in zip(rows, stats, strict=True)
    ]
    for k, mixture in enumerate(np.eye(2, dtype=np.float32)):
        expected = ordinary(by_hand[k], images)
        np.testing.assert_allclose(mixed(tree, mixture), expected, atol=1e-5)
    soup = jax.tree.map(lambda a, b: 0.3 * a + 0.7 * b, *by_hand)
    expected = ordinary(soup, images)
    np.testing.assert_allclose(mixed(tree, np.float32([0.3, 0.7])), expected, atol=1e-5)
    # A soup of equal rows is the row.
    equal = states.branches(by_hand[0], adapters.patterns((adapter,)), 2, name != "vit")
    np.testing.assert_allclose(
        mixed(equal, np.float32([0.4, 0.6])), ordinary(by_hand[0], images), atol=1e-5
    )


@functools.cache
def function_of(mesh, net, separate, seen, tx, accumulate):
    """The step, traced once for all tests that share it."""
    augment = make_augment(
        5, flip_horizontal=False, pad=0, mixup_alpha=0.0, cutmix_alpha=0.0,
        label_smoothing=0.0,
    )  # fmt: skip
    loss = views.views_loss(net, seen, pooled=not separate, axis="data")
    return step.make_step(
        loss, augment, tx, ema_decay=0.9, accumulate=accumulate, mesh=mesh
    )


def make(mesh, name, adapter, *, separate=False, seen=SEEN, tx=SGD, accumulate=1, **fields):
    """(step, first state) with the gentlest augmentation."""
    net = network(name, **fields)
    function = function_of(mesh, net, separate, tuple(seen), tx, accumulate)
    first = states.create(variables(name, adapter, separate, **fields), tx)
    first = jax.tree.map(jnp.copy, first)  # the step donates what others still use
    return function, jax.device_put(first, meshes.replicated(mesh))


def run(mesh, name, adapter, steps=2, **settings):
    """The variables after a few steps, on the host."""
    function, current = make(mesh, name, adapter, **settings)
    for i in range(steps):
        batch = meshes.global_batch(mesh, tiny.raw_batch(16, seed=i))
        current, _ = function(current, batch, SEED)
    return jax.device_get(current.variables)


@pytest.mark.parametrize(
    "name, separate", [("resnet", False), ("resnet", True), ("preact_resnet", True)]
)
def test_eight_devices_train_like_one(name, separate, mesh, one_device):
    many = run(mesh, name, "norms", separate=separate)
    one = run(one_device, name, "norms", separate=separate)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), many, one)
    before = jax.device_get(variables(name, "norms", separate))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, before)
    assert min(jax.tree.leaves(moved["stats"])) > 1e-4


@pytest.mark.parametrize("name, adapter", [("resnet", "head"), ("preact_resnet", "norms")])
def test_a_one_hot_view_touches_its_own_row_alone(name, adapter, one_device):
    seen = [SEEN[1]._replace(mixture=(0.0, 1.0))]
    before = jax.device_get(variables(name, adapter, separate=True))
    after = run(one_device, name, adapter, steps=1, seen=seen, separate=True)
    for branch in ("adapters", "stats"):
        old, new = before[branch], after[branch]
        for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
            np.testing.assert_array_equal(a[0], b[0])
    moved = [
        np.abs(a[1] - b[1]).max()
        for a, b in zip(
            jax.tree.leaves(before["adapters"]),
            jax.tree.leaves(after["adapters"]),
            strict=True,
        )
    ]
    assert min(moved) > 0


def statistics_by_hand(name, tree, mixtures, images, pooled):
    """Mean and variance of the stem's output, view by view or together."""
    kernel = trees.plain(tree, mixtures[0])["params"]["stem"]["kernel"]
    out = [
        jax.lax.conv_general_dilated(
            (x - 0.5) / 0.25, kernel, (1, 1), ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for x in images
    ]  # fmt: skip
    out = [jnp.concatenate(out)] * len(out) if pooled else out
    return [(jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))) for x in out]


@pytest.mark.parametrize("pooled", [True, False])
def test_statistics_are_of_the_training_images_and_no_attack_touches_them(
    pooled, one_device
):
    """The stem norm's running statistics, computed by hand from the views' images."""
    tree = variables("resnet", "norms", separate=not pooled)
    raw = tiny.raw_batch(16)
    images = jnp.asarray(raw["images"], jnp.float32) / 255
    moved = jnp.clip(images + 0.2, 0, 1)

    def busy(logits_fn, images, labels, keys):
        for _ in range(3):  # looks at images of another brightness
            dark = jnp.sum(logits_fn(images * 0.1))
        return jnp.clip(images + 0.2, 0, 1) + 0 * dark

    for train_mode in (False, True):
        seen = [SEEN[0], SEEN[1]._replace(attacks=(busy,), train_mode=train_mode)]
        after = run(one_device, "resnet", "norms", 1, separate=not pooled, seen=seen)
        expected = statistics_by_hand(
            "resnet", tree, [(1.0, 0.0), (0.0, 1.0)], [images, moved], pooled
        )
        for k, (mean, variance) in enumerate(expected):
            old, new = (
                t["stats"]["shared" if pooled else "adapters"]["norm"]
                for t in (tree, after)
            )
            if not pooled:
                old, new = (jax.tree.map(lambda leaf, k=k: leaf[k], t) for t in (old, new))
            for leaf, value in (("mean", mean), ("var", variance)):
                np.testing.assert_allclose(
                    new[leaf], 0.9 * old[leaf] + 0.1 * value, atol=1e-4
                )


def test_several_views_of_one_domain_move_its_statistics_by_their_mean():
    stats = {"shared": {"a": jnp.zeros(1)}, "adapters": {"b": jnp.zeros((2, 1))}}
    mixtures = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    seen = {"a": jnp.array([[1.0], [2.0], [6.0]]), "b": jnp.array([[1.0], [2.0], [6.0]])}
    found = views.move_statistics(stats, mixtures, seen)
    np.testing.assert_allclose(found["shared"]["a"], [3.0])
    np.testing.assert_allclose(found["adapters"]["b"], [[1.5], [6.0]])


def test_statistics_run_through_the_parts_of_a_batch(one_device):
    """With a rate of zero, two parts of a batch are two steps on its halves."""
    still = optax.apply_if_finite(optax.sgd(0.0), 5)
    seen = [SEEN[0], views.View("other", (0.0, 1.0), 0.5)]
    settings = dict(separate=True, seen=seen, tx=still)
    raw = tiny.raw_batch(16)
    function, whole = make(one_device, "resnet", "norms", accumulate=2, **settings)
    batch = meshes.global_batch(one_device, raw)
    program = hlo.computations(function.lower(whole, batch, SEED).compile().as_text())
    whole, _ = function(whole, batch, SEED)
    function, halves = make(one_device, "resnet", "norms", **settings)
    for part in (0, 1):
        half = {name: rows[part::2] for name, rows in raw.items()}
        halves, _ = function(halves, meshes.global_batch(one_device, half), SEED)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        whole.variables["stats"], halves.variables["stats"],
    )  # fmt: skip
    fast, slow = hlo.convolutions_in_loops(program)
    assert fast and not slow  # where kernels of two views are mapped over, too


def test_statistics_are_averaged_and_survive_a_bad_batch(one_device):
    def bad(logits_fn, images, labels, keys):
        return images * jnp.nan

    function, current = make(one_device, "resnet", "norms", separate=True)
    before = jax.device_get(current.variables["stats"])
    current, _ = function(
        current, meshes.global_batch(one_device, tiny.raw_batch(16)), SEED
    )
    after = jax.device_get(current.variables["stats"])
    # The average's first decay is 1 / 10.
    for name in ("mean", "var"):
        old, new, ema = (
            tree["adapters"]["norm"][name]
            for tree in (before, after, jax.device_get(current.ema["stats"]))
        )
        np.testing.assert_allclose(ema, 0.1 * old + 0.9 * new, rtol=1e-4, atol=1e-6)
    seen = [SEEN[0], SEEN[1]._replace(attacks=(bad,))]
    function, current = make(one_device, "resnet", "norms", separate=True, seen=seen)
    current, metrics = function(
        current, meshes.global_batch(one_device, tiny.raw_batch(16)), SEED
    )
    assert metrics["nonfinite"] == 1
    found = jax.device_get(current.variables["stats"])
    jax.tree.map(np.testing.assert_array_equal, found, before)


def test_frozen_parameters_stay_bitwise_and_cost_no_memory(one_device):
    trained = ("head/.*",)
    plain = jax.device_get(plain_network("resnet"))
    tree = states.branches(plain, ("head/bias",), 2, trained=trained)
    assert set(trees.flatten(tree["shared"])) == {"head/kernel"}
    assert len(trees.flatten(tree["frozen"])) == len(trees.flatten(plain["params"])) - 2
    function, _ = make(one_device, "resnet", "norms")
    current = jax.tree.map(jnp.copy, states.create(tree, SGD))
    assert "frozen" not in current.ema
    for i in range(3):
        batch = meshes.global_batch(one_device, tiny.raw_batch(16, seed=i))
        current, _ = function(current, batch, SEED)
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(current.variables["frozen"]),
        jax.device_get(tree["frozen"]),
    )  # fmt: skip
    moved = current.variables["shared"]["head"]["kernel"] - tree["shared"]["head"]["kernel"]
    assert np.abs(moved).max() > 1e-4
    full = states.averaged(current)
    assert set(full) == {"shared", "adapters", "frozen", "stats"}


def test_a_conv_net_on_a_mesh_costs_what_it_should(mesh, one_device):
    """No device works on another one's images, and nothing is computed twice.

    On paper, in forward passes: PGD 2 a step (the loop's body is counted once), the
    training pass 3 for each of two views.
    """
    fields = dict(size="basic-16x1x1")

    def flops(mesh):
        function, current = make(mesh, "resnet", "norms", **fields)
        batch = meshes.global_batch(mesh, tiny.raw_batch(64))
        return function.lower(current, batch, SEED).compile().cost_analysis()["flops"]

    net, plain = network("resnet", **fields), plain_network("resnet", **fields)
    forward = jax.jit(net.apply).lower(plain, small.images(64)).compile()
    forward = forward.cost_analysis()["flops"]
    alone, together = flops(one_device), flops(mesh)
    assert alone / forward == pytest.approx(2 + 2 * 3, rel=0.15)
    assert together == pytest.approx(alone / 8, rel=0.15)


def test_dropout_and_drop_path_draw_by_example(one_device):
    net = network("wide_resnet", dropout=0.5, norm="group")
    plain, images = plain_network("wide_resnet", norm="group"), small.images(8)
    key = jax.random.key(0)
    logits = jax.jit(net.apply)(plain, images, key, jnp.arange(8))
    part = jax.jit(net.apply)(plain, images[4:], key, jnp.arange(4, 8))
    np.testing.assert_allclose(part, logits[4:], atol=1e-4)
    still = jax.jit(net.apply)(plain, images)
    assert np.abs(still - logits).max() > 0.01


def test_evaluation_counts_by_device(mesh, one_device):
    from advadapters.evaluation import accuracy

    tree = variables("resnet", "norms", separate=True)
    batch = tiny.raw_batch(64) | {"seed": np.zeros(64, np.uint32)}
    mixtures = networks.Knob(jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))

    def count(mesh):
        predictor = accuracy.make_predictor(network("resnet"), attack, mesh=mesh)
        placed = meshes.global_batch(mesh, batch)
        compiled = predictor.lower(tree, mixtures, placed).compile()
        return predictor(tree, mixtures, placed), compiled.cost_analysis()["flops"]

    (one, alone), (many, together) = count(one_device), count(mesh)
    np.testing.assert_array_equal(one, many)
    assert together == pytest.approx(alone / 8, rel=0.15)


def test_keys_of_a_step_do_not_depend_on_devices(mesh, one_device):
    """What an attack draws for an image is the same wherever the image is."""

    def noisy(logits_fn, images, labels, keys):
        noise = jax.vmap(lambda k: jax.random.normal(rng.fold(k, "x"), images.shape[1:]))
        return jnp.clip(images + 0.3 * noise(keys), 0, 1)

    seen = [SEEN[0], SEEN[1]._replace(attacks=(noisy,))]
    many = run(mesh, "preact_resnet", "norms", seen=seen)
    one = run(one_device, "preact_resnet", "norms", seen=seen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), many, one)
