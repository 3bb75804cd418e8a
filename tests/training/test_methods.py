"""What is special about each baseline, on cases small enough to compute by hand."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from advadapters import balls, builders, defaults, losses, meshes, rng, trees
from advadapters.attacks.n_fgsm import n_fgsm
from advadapters.attacks.pgd import choose_goal, pgd
from advadapters.training import optim, states, step, views

NET = tiny.network()
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def config(variant, file="digits.py"):
    """A variant of a config as nested dicts, on the smallest network."""
    spec = importlib.util.spec_from_file_location("config", CONFIGS / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.get_config(variant).to_dict()
    found["model"]["size"] = "16x1x32x2" if file == "digits.py" else "10-1"
    return found


def apply_linear(plain, images, key=None, index=None):
    """One product with a matrix of weights."""
    return images.reshape(images.shape[0], -1) @ plain["params"]["kernel"]


def train_linear(plain, images, key, index, pooled):
    return apply_linear(plain, images), {}


LINEAR = NET._replace(apply=apply_linear, train=train_linear)


def linear_variables(seed=0, classes=5):
    kernel = np.random.default_rng(seed).normal(size=(64, classes)).astype(np.float32)
    plain = {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(classes)}}
    return states.branches(plain, (), 1)


def shift(logits_fn, images, labels, keys):
    """An "attack" that can be repeated by hand."""
    return jnp.clip(images + 0.1, 0, 1)


def value(seen, tree, batch=None, **settings):
    """The loss and its metrics."""
    loss = views.views_loss(LINEAR, seen, **settings)
    found, (_, metrics) = jax.jit(loss)(tree, batch or tiny.batch(), jax.random.key(0))
    return float(found), metrics


def test_trades_is_cross_entropy_and_kl_between_the_two_images():
    """Zhang et al. 2019, Eq. 5, in numpy."""
    batch, tree = tiny.batch(), linear_variables()
    seen = build_views("trades", attack=shift)
    flat = np.asarray(batch["images"], np.float64).reshape(8, -1)
    kernel = np.asarray(tree["shared"]["kernel"], np.float64)

    def probabilities(x):
        raised = np.exp(x @ kernel - (x @ kernel).max(1, keepdims=True))
        return raised / raised.sum(1, keepdims=True)

    clean, moved = probabilities(flat), probabilities(np.clip(flat + 0.1, 0, 1))
    entropy = -np.log(clean[np.arange(8), batch["labels"]]).mean()
    kl = (clean * np.log(clean / moved)).sum(1).mean()
    found, metrics = value(seen, tree)
    assert found == pytest.approx(entropy + 6 * kl, rel=1e-4)
    assert metrics["loss/linf"] == pytest.approx(6 * kl, rel=1e-4)


def test_trades_gradient_flows_through_both_images():
    batch, tree = tiny.batch(), linear_variables()
    seen, key = build_views("trades", shift), jax.random.key(0)

    def by_hand(kernel):
        flat = batch["images"].reshape(8, -1)
        clean, moved = flat @ kernel, jnp.clip(flat + 0.1, 0, 1) @ kernel
        old, new = jax.nn.log_softmax(clean), jax.nn.log_softmax(moved)
        kl = jnp.sum(jnp.exp(old) * (old - new), axis=1)
        return jnp.mean(losses.cross_entropy(clean, batch["labels"]) + 6 * kl)

    loss = views.views_loss(LINEAR, seen)
    found, _, _ = jax.jit(step.differentiated(loss))(tree, batch, key)
    expected = jax.grad(by_hand)(tree["shared"]["kernel"])
    np.testing.assert_allclose(found["shared"]["kernel"], expected, atol=1e-4)


def build_views(variant, attack=None):
    """The views of digits.py's variant over one domain, with another attack."""
    run = builders.build(config(variant), meshes.make())
    swap = dict(attacks=(attack,)) if attack else {}
    return [view._replace(**swap) if view.attacks else view for view in run.method.views]


def test_trades_attacks_the_clean_predictions_and_not_the_labels():
    told = []

    def spy(logits_fn, images, labels, keys):
        expected = jax.nn.softmax(logits_fn(images))
        told.append(labels.shape)
        return images + 0 * jnp.sum(labels) + jnp.max(jnp.abs(labels - expected))

    found = value(build_views("trades", spy), linear_variables())[0]
    assert told[0] == (8, 5)
    assert found == pytest.approx(
        value(build_views("trades", lambda f, x, y, k: x), linear_variables())[0]
    )


def test_mart_on_numbers():
    """Wang et al. 2020, Eq. 8 to 10, for one image."""
    p_adv, p_clean = np.array([0.5, 0.3, 0.2]), np.array([0.7, 0.2, 0.1])
    logits, reference = jnp.log(p_adv)[None] + 3, jnp.log(p_clean)[None] - 1
    label = jnp.array([0])
    boosted = losses.boosted_cross_entropy(logits, label)
    np.testing.assert_allclose(boosted, [-np.log(0.5) - np.log(1 - 0.3)], rtol=1e-5)
    kl = (p_clean * np.log(p_clean / p_adv)).sum()
    weighted = losses.weighted_kl(logits, reference, label)
    np.testing.assert_allclose(weighted, [kl * (1 - 0.7)], rtol=1e-4)
    np.testing.assert_allclose(losses.kl(logits, reference, label), [kl], rtol=1e-4)


def test_mart_looks_at_clean_images_without_a_loss_on_them():
    seen = build_views("mart", shift)
    tree, batch = linear_variables(), tiny.batch()
    plain = trees.plain(tree, (1.0,))
    clean = LINEAR.apply(plain, batch["images"])
    moved = LINEAR.apply(plain, jnp.clip(batch["images"] + 0.1, 0, 1))
    expected = losses.boosted_cross_entropy(moved, batch["labels"])
    expected += 6 * losses.weighted_kl(moved, clean, batch["labels"])
    assert value(seen, tree)[0] == pytest.approx(float(expected.mean()), rel=1e-5)


def test_weight_perturbation_is_the_gradient_at_the_worst_nearby_weights():
    seen = [views.View("linf", (1.0,), 1.0, (shift,))]
    tree, batch, size = linear_variables(), tiny.batch(), 0.05
    images = jnp.clip(batch["images"] + 0.1, 0, 1).reshape(8, -1)

    def plain_loss(kernel):
        return losses.cross_entropy(images @ kernel, batch["labels"]).mean()

    kernel = tree["shared"]["kernel"]
    slope = jax.grad(plain_loss)(kernel)
    worse = kernel + size * jnp.linalg.norm(kernel) * slope / jnp.linalg.norm(slope)
    loss = views.views_loss(LINEAR, seen, perturbation=size)
    found = jax.grad(lambda t: loss(tree | t, batch, jax.random.key(0))[0])(
        states.trained(tree)
    )
    np.testing.assert_allclose(
        found["shared"]["kernel"], jax.grad(plain_loss)(worse), atol=1e-5
    )
    assert plain_loss(worse) > plain_loss(kernel)
    assert value(seen, tree, perturbation=size)[0] == pytest.approx(
        float(plain_loss(worse)), rel=1e-5
    )


def test_weight_perturbation_of_adapters_goes_by_domain():
    draw = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)
    weight, slope = draw * np.array([1, 5]).reshape(1, 2, 1, 1)
    tree = {"shared": {"bias": jnp.ones(3)}, "adapters": {"kernel": jnp.asarray(weight)}}

    def objective(tree):
        return jnp.sum(tree["adapters"]["kernel"] * slope) + jnp.sum(
            tree["shared"]["bias"]
        ), None

    found = views.perturb(objective, tree, 0.1, None)
    for k in (0, 1):
        move = 0.1 * np.linalg.norm(weight[k]) * slope[k] / np.linalg.norm(slope[k])
        np.testing.assert_allclose(
            found["adapters"]["kernel"][k], weight[k] + move, rtol=1e-5
        )
    np.testing.assert_array_equal(found["shared"]["bias"], jnp.ones(3))


def test_weight_perturbation_on_eight_devices(mesh, one_device):
    """Its slopes are those of the whole batch, not of a device's part."""
    seen = [views.View("linf", (1.0,), 1.0, (shift,))]
    loss = views.views_loss(LINEAR, seen, perturbation=0.05, axis="data")
    gradient = step.differentiated(loss)
    tree, key = linear_variables(), jax.random.key(0)
    slopes = [
        jax.jit(step.over_devices(gradient, m, meshes.replicated(m)))(
            tree, tiny.batch(16), key
        )[0]
        for m in (mesh, one_device)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *slopes)


def test_eat_draws_norms_by_their_running_errors():
    def mark(number):
        return lambda logits_fn, images, labels, keys: images * 0 + number

    seen = [views.View("attacked", (1.0,), 1.0, (mark(0.0), mark(0.5), mark(1.0)))]
    tree = linear_variables()
    errors = jnp.array([0.6, 0.0, 0.2])
    tree = tree | {"stats": tree["stats"] | {"errors": {"attacked": errors}}}
    loss = jax.jit(views.views_loss(LINEAR, seen))
    counts = np.zeros(3)
    for number in range(200):
        _, (stats, metrics) = loss(tree, tiny.batch(), jax.random.key(number))
        moved = np.flatnonzero(np.abs(stats["errors"]["attacked"] - errors) > 1e-7)
        error = 1 - metrics["accuracy/attacked"]
        if len(moved):
            (drawn,) = moved
            counts[drawn] += 1
            np.testing.assert_allclose(
                stats["errors"]["attacked"][drawn], 0.9 * errors[drawn] + 0.1 * error,
                rtol=1e-5,
            )  # fmt: skip
    assert counts[1] == 0 and counts.sum() > 150
    # 3 to 1; the standard deviation of the share is 0.03.
    assert counts[0] / counts.sum() == pytest.approx(0.75, abs=0.12)


def test_eat_starts_even(mesh):
    run = builders.build(config("eat"), mesh)
    (view,) = run.method.views
    assert [attack.keywords["norm"] for attack in view.attacks] == ["linf", "l2", "l1"]
    first = jax.jit(lambda: builders.initial_state(run))().variables
    np.testing.assert_array_equal(first["stats"]["errors"]["attacked"], jnp.ones(3))


def test_eat_on_eight_devices_in_parts(mesh, one_device):
    """All devices and parts use the one attack that is drawn for the batch."""
    marks = [lambda f, x, y, k, n=n: x * 0 + n / 4 for n in range(4)]
    seen = [views.View("attacked", (1.0,), 1.0, tuple(marks))]
    tree = linear_variables()
    errors = jnp.array([0.6, 0.5, 0.2, 0.4])
    tree = tree | {"stats": tree["stats"] | {"errors": {"attacked": errors}}}
    loss = views.views_loss(LINEAR, seen, axis="data")
    found = []
    for m, parts in ((mesh, 2), (one_device, 1), (one_device, 4)):
        gradient = step.accumulated(step.differentiated(loss), parts)
        run = jax.jit(step.over_devices(gradient, m, meshes.replicated(m)))
        found.append([run(tree, tiny.batch(16), jax.random.key(n)) for n in range(5)])
    for other in found[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[0], other
        )
    moved = jnp.abs(found[0][0][1]["errors"]["attacked"] - errors) > 1e-4
    assert moved.sum() == 1


def test_advprop_attacks_its_own_norms_towards_a_random_class(mesh):
    run = builders.build(config("advprop"), mesh)
    clean, attacked = run.method.views
    assert clean.mixture == (1.0, 0.0) and attacked.mixture == (0.0, 1.0)
    assert attacked.attacks[0].keywords["target"] == "random"
    tree = states.branches(tiny.plain(NET), run.patterns, 2)
    tree["adapters"] = jax.tree.map(
        lambda leaf: leaf * jnp.array([1.0, 1.3]).reshape(2, *[1] * (leaf.ndim - 1)),
        tree["adapters"],
    )

    @jax.jit
    def distances(tree):
        seen = []

        def spy(logits_fn, images, labels, keys):
            own = NET.apply(trees.plain(tree, (0.0, 1.0)), images)
            other = NET.apply(trees.plain(tree, (1.0, 0.0)), images)
            seen.extend((jnp.abs(logits_fn(images) - own), jnp.abs(own - other)))
            return images

        views.views_loss(NET, [clean, attacked._replace(attacks=(spy,))])(
            tree, tiny.batch(), jax.random.key(0)
        )
        return seen

    to_own, to_other = distances(tree)
    assert to_own.max() < 1e-5 < 1e-2 < to_other.max()


def test_a_random_target_is_uniform_over_the_other_classes():
    labels = jnp.arange(3000) % 5
    keys = rng.by_index(jax.random.key(0), jnp.arange(3000))
    logits_fn = functools.partial(jnp.zeros, (3000, 5))
    images = jnp.zeros((3000, 1, 1, 1))
    goal, sign = choose_goal(lambda x: logits_fn(), images, labels, keys, "random")
    assert sign == -1 and not (goal == labels).any()
    shares = np.bincount((goal - labels) % 5, minlength=5)[1:] / 3000
    # Four other classes; the standard deviation of a share is 0.008.
    np.testing.assert_allclose(shares, 0.25, atol=0.035)


def test_separate_statistics_make_advprop_of_a_conv_net(mesh):
    run = builders.build(config("batch_dual", "digits_conv.py"), mesh)
    first = jax.eval_shape(lambda: builders.initial_state(run)).variables
    assert first["stats"]["shared"] == {}
    assert first["stats"]["adapters"]["norm"]["mean"].shape == (2, 64)
    assert first["adapters"]["norm"]["scale"].shape == (2, 64)
    pooled = builders.build(config("batch_dual_affine", "digits_conv.py"), mesh)
    first = jax.eval_shape(lambda: builders.initial_state(pooled)).variables
    assert first["stats"]["adapters"] == {}


def linear_fn(slope):
    return lambda x: jnp.stack([0 * x.sum((1, 2, 3)), (x * slope).sum((1, 2, 3))], 1)


def test_n_fgsm_is_one_step_from_its_noise():
    slope = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 1)), jnp.float32)
    images, labels = jnp.full((4, 8, 8, 1), 0.5), jnp.zeros(4, int)
    found = n_fgsm(linear_fn(slope), images, labels, jax.random.key(0), eps=0.1, noise=2.0)
    noise = found - images - 0.1 * jnp.sign(slope)
    assert jnp.abs(noise).max() <= 0.2 + 1e-6 and jnp.abs(noise).max() > 0.19
    assert jnp.abs(jnp.mean(noise)) < 0.03  # uniform around zero
    assert balls.BALLS["linf"].norm(found - images).max() > 0.25


def test_fgsm_rs_is_one_clipped_step(mesh):
    run = builders.build(config("fgsm_rs"), mesh)
    (view,) = run.method.views
    settings = view.attacks[0].keywords
    assert settings["steps"] == 1 and settings["random_start"]
    assert settings["step_size"] == pytest.approx(1.25 * settings["eps"])
    assert view.alarm.keywords["steps"] == 10
    slope = jnp.ones((8, 8, 1))
    images, labels = jnp.full((4, 8, 8, 1), 0.5), jnp.zeros(4, int)
    found = pgd(
        linear_fn(slope), images, labels, jax.random.key(0),
        norm="linf", eps=0.1, steps=1, step_size=0.125,
    )  # fmt: skip
    assert float(jnp.max(found)) == pytest.approx(0.6)
    assert float(jnp.min(found)) >= 0.5 + 0.025 - 1e-6


def test_catastrophic_overfitting_is_told(capsys):
    from advadapters.runs import evaluating

    evaluating.warn_of_overfitting("linf", 0.8, 0.1)
    out = capsys.readouterr().out
    assert "catastrophic overfitting of view linf" in out and "10.0% under its alarm" in out
    evaluating.warn_of_overfitting("linf", 0.8, 0.6)
    assert not capsys.readouterr().out


def test_layer_decay_by_path():
    """MAE's rule: embedding decay^13, block i decay^(12 - i), head 1, for 12 blocks."""
    paths = ["class_token", "pos_embed", "patch_embed/kernel", "norm/scale", "head/bias"]
    paths += [f"blocks_{i}/attn/qkv/kernel" for i in range(12)]
    scales = optim.layer_scales(paths, defaults.VIT_LAYERS, 0.75)
    assert scales["class_token"] == scales["patch_embed/kernel"] == 0.75**13
    assert scales["blocks_0/attn/qkv/kernel"] == 0.75**12
    assert scales["blocks_11/attn/qkv/kernel"] == 0.75
    assert scales["head/bias"] == scales["norm/scale"] == 1.0


def test_layer_decay_scales_the_updates_of_adamw():
    net = tiny.network(size=tiny.vit.Size(16, 2, 32, 2))
    tree = states.branches(tiny.plain(net), ("class_token",), 2)
    trained = states.trained(tree)
    slopes = jax.tree.map(jnp.ones_like, trained)

    def update(**settings):
        tx = optim.make(
            optim.adam(0.9, 0.95), learning_rate=lambda step: 0.1, weight_decay=0.5,
            decayed=(".*",), clip_norm=0.0, **settings,
        )  # fmt: skip
        found, _ = tx.update(slopes, tx.init(trained), trained)
        return found

    full, scaled = update(), update(layers=defaults.VIT_LAYERS, layer_decay=0.5)
    for branch, path, factor in (
        ("adapters", "class_token", 0.125),
        ("shared", "blocks_0/mlp/fc1/kernel", 0.25),
        ("shared", "blocks_1/mlp/fc1/kernel", 0.5),
        ("shared", "head/kernel", 1.0),
    ):
        a, b = (trees.flatten(t[branch])[path] for t in (full, scaled))
        np.testing.assert_allclose(b, factor * a, rtol=1e-6)


def test_sgd_is_torch_like():
    """Weight decay joins the gradient, then momentum, then the rate."""
    tx = optim.make(
        optim.sgd(0.9), learning_rate=lambda step: 0.1, weight_decay=0.5,
        decayed=("kernel",), clip_norm=0.0,
    )  # fmt: skip
    tree = {"shared": {"kernel": jnp.array([2.0])}, "adapters": {}}
    slopes = {"shared": {"kernel": jnp.array([1.0])}, "adapters": {}}
    memory, weight, velocity = tx.init(tree), 2.0, 0.0
    for _ in range(3):
        updates, memory = tx.update(slopes, memory, tree)
        tree = optax.apply_updates(tree, updates)
        velocity = 0.9 * velocity + 1.0 + 0.5 * weight
        weight -= 0.1 * velocity
        np.testing.assert_allclose(tree["shared"]["kernel"], [weight], rtol=1e-6)
