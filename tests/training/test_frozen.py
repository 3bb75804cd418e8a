"""Fine-tuning beside a frozen backbone: what it costs, and whom its attacks attack."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from advadapters import losses, trees
from advadapters.attacks.pgd import pgd
from advadapters.data.augment import make_augment
from advadapters.models.added import Added
from advadapters.models.vit import Size
from advadapters.training import states, step, views

# Wide enough that matrix products are nearly all there is.
WIDTH, DEPTH, MLP, PATCH, BATCH, RANK, CLASSES = 512, 2, 2048, 2, 16, 2, 5
TARGETS = tuple(f".*/{name}" for name in ("q", "k", "v", "proj", "fc1", "fc2"))
ADDED = (Added("lora", "lnlora", TARGETS, RANK, 1.0),)
CASES = {  # what is added, what is trained
    "full": ((), (".*",)),
    "linear_probe": ((), ("head/.*",)),
    "lnlora": (ADDED, (".*_lora/.*", "head/.*")),
}


def attack(logits_fn, images, labels, key, steps=3):
    return pgd(
        logits_fn, images, labels, key, norm="linf", eps=0.1, steps=steps,
        random_start=False,
    )  # fmt: skip


def step_flops(added, trained, attacks, mesh):
    """FLOPs of one training step as the compiler counts them; nothing is allocated."""
    fields = dict(size=Size(WIDTH, DEPTH, MLP, 4), patch=PATCH, added=added)
    net = tiny.network(**fields)
    tx = optax.apply_if_finite(optax.sgd(0.1), 5)
    augment = make_augment(
        CLASSES, flip_horizontal=False, pad=0, mixup_alpha=0.0, cutmix_alpha=0.0,
        label_smoothing=0.0,
    )  # fmt: skip

    def create():
        plain = net.init(jax.random.key(0))
        return states.create(states.branches(plain, (), 1, trained=trained), tx)

    loss = views.views_loss(net, [views.View("all", (1.0,), 1.0, attacks)], axis="data")
    function = step.make_step(loss, augment, tx, ema_decay=0.9, accumulate=1, mesh=mesh)
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tiny.raw_batch(BATCH)))
    compiled = function.lower(jax.eval_shape(create), batch, np.uint32(0)).compile()
    return compiled.cost_analysis()["flops"]


def on_paper(name):
    """(FLOPs of the training pass, of one step of PGD), matrix products only.

    With M products forward: full fine-tuning needs M for the gradients of the weights
    and M for those of the inputs, but for the first layer's; attention, without weights,
    has twice its forward products backward. Where the backbone is frozen there are no
    gradients of its weights, nor of inputs below the first LoRA.
    """
    patches = (8 // PATCH) ** 2
    tokens = patches + 1
    rows = 2 * BATCH * tokens
    blocks = DEPTH * rows * (4 * WIDTH**2 + 2 * WIDTH * MLP)
    first = rows * 3 * WIDTH**2  # qkv of the first block
    attention = DEPTH * rows * 2 * tokens * WIDTH
    embed = 2 * BATCH * patches * PATCH**2 * WIDTH
    head = 2 * BATCH * WIDTH * CLASSES
    sides = 4 * (WIDTH + WIDTH) + 2 * (WIDTH + MLP)
    added = DEPTH * rows * RANK * sides if name == "lnlora" else 0
    forward = blocks + attention + embed + head + added
    through = blocks + 2 * attention + head + added  # gradients of inputs
    trained = {
        "full": through + blocks + embed + head,
        "linear_probe": head,
        "lnlora": through - first + added + head,
    }[name]
    return forward + trained, forward + through + embed


@pytest.mark.parametrize("name", CASES)
def test_no_gradients_of_frozen_weights_are_computed(name, one_device):
    """2 forward passes to train LNLoRAs where full fine-tuning needs 3; 2 a step of PGD.

    Within 5% of the paper's count: the rest is norms, softmax, GELU and the update. A
    loop's body is counted once, so of PGD one step is seen.
    """
    clean = step_flops(*CASES[name], (), one_device)
    attacked = step_flops(*CASES[name], (attack,), one_device)
    training, one_step = on_paper(name)
    assert clean == pytest.approx(training, rel=0.05)
    assert attacked - clean == pytest.approx(one_step, rel=0.05)
    forward = on_paper("linear_probe")[0]
    expected = {"full": 3.0, "lnlora": 2.0, "linear_probe": 1.0}[name]
    assert clean / forward == pytest.approx(expected, abs=0.15)
    assert (attacked - clean) / forward == pytest.approx(2.0, abs=0.15)


def test_a_view_attacks_the_network_with_its_own_prompt():
    net = tiny.network(prompts=3)
    tree = states.branches(tiny.plain(net), ("prompt",), 2, trained=("head/.*",))
    draw = np.random.default_rng(0).normal(size=tree["adapters"]["prompt"].shape)
    tree["adapters"]["prompt"] = jnp.asarray(3 * draw, jnp.float32)
    batch, key = tiny.batch(64), jax.random.key(0)
    networks = [trees.plain(tree, row) for row in np.eye(2, dtype=np.float32)]

    @jax.jit
    def attacked(plain):
        return attack(lambda x: net.apply(plain, x), batch["images"], batch["labels"], key)

    @jax.jit
    def loss(plain, images):
        return jnp.mean(losses.cross_entropy(net.apply(plain, images), batch["labels"]))

    shown = [attacked(plain) for plain in networks]
    differ = np.mean(np.abs(shown[0] - shown[1]) > 0.01)
    assert differ > 0.2  # of the pixels
    found = np.array([[loss(plain, images) for images in shown] for plain in networks])
    # Each prompt's own attack is the stronger one.
    assert (np.diag(found) > found[::-1].diagonal()[::-1] + 1e-3).all(), found
    seen = [
        views.View("first", (1.0, 0.0), 0.5, (attack,)),
        views.View("second", (0.0, 1.0), 0.5, (attack,)),
    ]
    _, (_, metrics) = jax.jit(views.views_loss(net, seen))(tree, batch, key)
    np.testing.assert_allclose(metrics["loss/first"], found[0, 0], rtol=1e-4)
    np.testing.assert_allclose(metrics["loss/second"], found[1, 1], rtol=1e-4)
