"""The ViT: published parameter counts, and its options against one another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import small
import tiny

from advadapters import adapters, costs, trees
from advadapters.errors import UsageError
from advadapters.models import layers, vit

TWO = vit.Size(16, 2, 32, 2)  # where blocks are told apart

# timm's vit_*_patch16_224 (and huge_patch14) with 1000 classes.
PUBLISHED = {
    ("Ti", 16): 5_717_416,
    ("S", 16): 22_050_664,
    ("B", 16): 86_567_656,
    ("L", 16): 304_326_632,
    ("H", 14): 632_045_800,
}


@functools.cache
def shapes(size, patch, **fields):
    model = vit.ViT(
        size=vit.SIZES[size],
        classes=1000,
        patch=patch,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        **fields,
    )
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


@pytest.mark.parametrize("size, patch", PUBLISHED)
def test_parameter_counts(size, patch):
    assert trees.count(shapes(size, patch)) == PUBLISHED[size, patch]


def test_every_size_is_counted():
    assert {size for size, _ in PUBLISHED} == set(vit.SIZES)


@pytest.mark.parametrize(
    "patterns, count",
    [
        (adapters.patterns(["class_token"]), 768),
        (("blocks_.*/norm.*",), 36_864),
        (adapters.patterns(["norms"]), 38_400),
        (adapters.patterns(["pos_embed"]), 151_296),
        (adapters.patterns(["patch_embed"]), 590_592),
        (adapters.patterns(["head"]), 769_000),
        (adapters.patterns(["everything"]), 86_567_656),
    ],
)
def test_adapter_counts_of_vit_b16(patterns, count):
    for pool in ("tokens", "class", "normed_tokens"):
        _, chosen = trees.split(shapes("B", 16, pool=pool), patterns)
        assert trees.count(chosen) == count


def test_scan_has_the_same_parameters():
    scanned = shapes("B", 16, scan=True)
    assert trees.count(scanned) == PUBLISHED["B", 16]
    _, norms = trees.split(scanned, adapters.patterns(["norms"]))
    assert trees.count(norms) == 38_400
    assert "pos_embed" not in shapes("B", 16, positions="sincos")


def to_scanned(params):
    """blocks_0, blocks_1, ... -> blocks with a leading axis [depth]."""
    blocks = [params[f"blocks_{i}"] for i in range(2)]
    rest = {k: v for k, v in params.items() if not k.startswith("blocks")}
    return rest | {"blocks": trees.stack(blocks)}


def test_scan_and_remat_change_nothing():
    images = tiny.batch()["images"]
    plain = tiny.network(size=TWO)
    params = tiny.plain(plain)["params"]

    def run(net, params):
        def total(params):
            logits = net.apply({"params": params}, images)
            return logits.sum(), logits

        slopes, logits = jax.jit(jax.grad(total, has_aux=True))(params)
        return logits, slopes["pos_embed"]

    expected, slopes = run(plain, params)
    for fields in (
        dict(remat="full"), dict(remat="dots"), dict(scan=True),
        dict(scan=True, remat="full"),
    ):  # fmt: skip
        other = tiny.network(size=TWO, **fields)
        same = to_scanned(params) if "scan" in fields else params
        logits, again = run(other, same)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        np.testing.assert_allclose(again, slopes, atol=1e-4)


GELUS = {
    "erf": lambda x: x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2))),
    "tanh": lambda x: x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def by_hand(params, images, heads, pool="tokens", gelu="erf", norm_eps=1e-6):
    """The network written out in numpy (float64), one image and one head at a time.

    What else it has, it has if its parameters are there.
    """
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def dense(p, x):
        return x @ p["kernel"] + p.get("bias", 0)

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        variance = (x**2).mean(-1, keepdims=True)
        return x / np.sqrt(variance + norm_eps) * p["scale"] + p["bias"]

    def attend(p, x):
        qkv = dense(p["qkv"], x)
        width, parts = x.shape[1] // heads, []
        for h in range(heads):
            q, k, v = (qkv[:, s * x.shape[1] + h * width :][:, :width] for s in range(3))
            scores = np.exp(q @ k.T / np.sqrt(width))
            parts.append(scores / scores.sum(-1, keepdims=True) @ v)
        return dense(p["proj"], np.concatenate(parts, axis=1))

    def factor(p, i):
        return p.get(f"layer_scale{i}", {"gamma": 1})["gamma"]

    def logits(image):
        image = (image - 0.5) / 0.25
        patches = [image[r : r + 4, c : c + 4].ravel() for r in (0, 4) for c in (0, 4)]
        x = dense(tree["patch_embed"], np.stack(patches))
        empty, positions = np.zeros((0, x.shape[1])), tree["pos_embed"][0]
        token = tree["class_token"][0] if "class_token" in tree else empty
        if len(positions) == 5:
            token, positions = token + positions[:1], positions[1:]
        prompt = tree["prompt"][0] if "prompt" in tree else empty
        first = len(token) + len(prompt)
        x = np.concatenate([token, prompt, x + positions])
        x = norm(tree["norm_pre"], x) if "norm_pre" in tree else x
        for i in range(2):
            p = tree[f"blocks_{i}"]
            x = x + factor(p, 1) * attend(p["attn"], norm(p["norm1"], x))
            hidden = GELUS[gelu](dense(p["mlp"]["fc1"], norm(p["norm2"], x)))
            x = x + factor(p, 2) * dense(p["mlp"]["fc2"], hidden)
        normed = norm(tree["norm"], x)
        read = {
            "tokens": norm(tree["norm"], x[first:].mean(0)),
            "class": normed[0],
            "normed_tokens": normed[first:].mean(0),
            "class_and_tokens": np.concatenate([normed[0], normed[first:].mean(0)]),
        }
        return dense(tree["head"], read[pool])

    return np.stack([logits(image) for image in np.asarray(images, np.float64)])


def test_gelu_and_its_slope_are_those_of_jax():
    x = jnp.linspace(-8, 8, 1001)
    exact = functools.partial(jax.nn.gelu, approximate=False)
    for change in (lambda f: f, lambda f: jax.vmap(jax.grad(f))):
        expected = change(exact)(x)
        np.testing.assert_allclose(change(layers.gelu)(x), expected, atol=1e-6)
        x = x.astype(jnp.bfloat16)  # whose own error is 2**-9
        expected = change(exact)(x.astype(jnp.float32))
        found = jax.jit(change(layers.gelu))(x).astype(jnp.float32)
        np.testing.assert_allclose(found, expected, rtol=2**-8, atol=2**-16)
        x = x.astype(jnp.float32)


def test_remat_by_name_keeps_products_with_the_weights_of_a_view():
    """Counted in the gradient: all, those of attention computed again, all again."""
    network = tiny.network()
    plain = tiny.plain(network)["params"]
    views = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), plain)
    images = jnp.stack([tiny.batch()["images"]] * 2)

    def products(remat):
        apply = tiny.network(remat=remat).apply

        def total(views):
            one = jax.vmap(lambda plain, images: apply({"params": plain}, images))
            return one(views, images).sum()

        return costs.products(jax.make_jaxpr(jax.grad(total))(views).jaxpr)

    none, dots, full = map(products, ("none", "dots", "full"))
    # Attention's two products are little beside four with weights.
    assert none < dots < none + (full - none) / 3


# What pretrained networks have, in a few of their combinations.
VARIANTS = {
    "plain": {},
    "class": dict(pool="class"),
    "big_vision": dict(pool="normed_tokens", class_token=False, gelu="tanh"),
    "dinov2": dict(pool="class_and_tokens", layer_scale=0.1, prompts=2),
    "deit3": dict(pool="class", layer_scale=0.1, class_position=False),
    "clip": dict(
        pool="class", gelu="quick", norm_eps=1e-5, pre_norm=True, patch_bias=False
    ),
    "no biases": dict(qkv_bias=False, norm_eps=1e-2, class_token=False, prompts=1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_pass_against_numpy(name):
    fields = VARIANTS[name]
    net, images = tiny.network(size=TWO, **fields), tiny.batch(3)["images"]
    params = tiny.plain(net)
    told = {k: v for k, v in fields.items() if k in ("pool", "gelu", "norm_eps")}
    expected = by_hand(params["params"], images, heads=2, **told)
    np.testing.assert_allclose(jax.jit(net.apply)(params, images), expected, atol=2e-5)


def test_what_is_added_has_a_name_and_a_first_value():
    fields = dict(layer_scale=0.25, pre_norm=True, class_position=False, qkv_bias=False)
    net = tiny.network(size=TWO, patch_bias=False, prompts=2, **fields)
    here = net.init(jax.random.key(0))["params"]
    usual = trees.flatten(tiny.network(size=TWO).init(jax.random.key(0))["params"])
    flat = trees.flatten(here)
    gammas = [path for path in flat if path.endswith("gamma")]
    assert gammas == trees.select(flat, adapters.patterns(["layer_scale"])) and gammas[3:]
    assert all((flat[path] == 0.25).all() for path in gammas)
    assert set(flat) - set(usual) == {*gammas, "prompt", "norm_pre/scale", "norm_pre/bias"}
    biases = {f"blocks_{i}/attn/qkv/bias" for i in range(2)} | {"patch_embed/bias"}
    assert set(usual) - set(flat) == biases
    assert flat["pos_embed"].shape == (1, 4, 16)
    with pytest.raises(UsageError, match="pool='class' needs class_token=True"):
        tiny.network(pool="class", class_token=False).init(jax.random.key(0))


def test_bfloat16_gives_float32_logits_near_the_exact_ones():
    images = tiny.batch()["images"]
    params = tiny.plain(tiny.network())
    logits = jax.jit(tiny.network(dtype=jnp.bfloat16).apply)(params, images)
    assert logits.dtype == jnp.float32
    exact = jax.jit(tiny.network().apply)(params, images)
    np.testing.assert_allclose(logits, exact, atol=0.1)


def test_drop_path_drops_whole_branches_only_with_a_key():
    net = tiny.network(size=TWO, drop_path=0.5)
    params, images = tiny.plain(net), tiny.batch(64)["images"]
    still = tiny.network(size=TWO).apply(params, images)
    np.testing.assert_array_equal(net.apply(params, images), still)
    moved = net.apply(params, images, jax.random.key(1))
    same = np.isclose(moved, still, atol=1e-5).all(axis=1)
    assert not same.all()


def test_sincos_positions():
    table = layers.sincos((2, 3), 8)
    assert table.shape == (6, 8)
    # The first quarter is sin(column * omega), the third sin(row * omega).
    omega = 1 / 10000 ** (np.arange(2) / 2)
    np.testing.assert_allclose(table[5, :2], np.sin(2 * omega), atol=1e-6)
    np.testing.assert_allclose(table[5, 4:6], np.sin(1 * omega), atol=1e-6)
    np.testing.assert_allclose(table[5, 6:], np.cos(1 * omega), atol=1e-6)


def test_patches_are_row_by_row():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(
        vit.patchify(image, 2)[0],
        [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]],
    )
    with pytest.raises(ValueError, match="does not divide"):
        tiny.network(patch=3)[0](jax.random.key(0))


def test_batch_statistics_are_the_same_scanned():
    model = small.model("vit", norm="batch")
    variables, images = small.variables(model), small.images()

    def run(model, variables):
        apply = functools.partial(model.apply, train=True, mutable="batch_stats")
        return jax.jit(apply)(variables, images)

    logits, changed = run(model, variables)
    scanned = {name: to_scanned(tree) for name, tree in variables.items()}
    found, stats = run(model.clone(scan=True, remat="full"), scanned)
    np.testing.assert_allclose(found, logits, atol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-5),
        stats["batch_stats"],
        to_scanned(changed["batch_stats"]),
    )
