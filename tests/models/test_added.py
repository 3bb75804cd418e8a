"""Added adapters: counts, formulas by hand, nothing changed at the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import small

from advadapters import trees
from advadapters.adapters import lora
from advadapters.errors import UsageError
from advadapters.models import vit
from advadapters.models.added import KINDS, Added

BLOCK = ("q", "k", "v", "proj", "fc1", "fc2")


def targets(*names):
    return tuple(f".*/{name}" for name in names)


# Published for ViT-B (85.8 million parameters), all maps of the 12 blocks: LoRA and its
# layer norms in millions, for q, k and v apart and for a fused qkv.
BUDGET = {
    8: (1.33, 0.17, 1.18, 0.13),
    16: (2.65, 0.17, 2.36, 0.13),
    24: (3.98, 0.17, 3.54, 0.13),
    32: (5.31, 0.17, 4.72, 0.13),
}


def test_parameter_budget_of_vit_b():
    def added_to(names):
        """{rank: (millions of LoRA, of its norms)}; all ranks in one of the 12 blocks."""
        ranks = tuple(
            Added(f"rank{rank}", "lnlora", targets(*names), rank, 1.0) for rank in BUDGET
        )
        model = vit.ViT(
            size=vit.SIZES["B"]._replace(depth=1), classes=10, patch=16,
            mean=(0.5,) * 3, std=(0.5,) * 3, added=ranks,
        )  # fmt: skip
        flat = trees.flatten(small.shapes(model, side=224)["params"])
        found = {}
        for rank in BUDGET:
            sizes = {
                p: trees.count(leaf) for p, leaf in flat.items() if f"_rank{rank}/" in p
            }
            norms = sum(n for p, n in sizes.items() if p.endswith(("/scale", "/bias")))
            whole = sum(sizes.values()) - norms
            found[rank] = 12 * whole / 1e6, 12 * norms / 1e6
        return found

    separate, fused = added_to(BLOCK), added_to(("qkv", "proj", "fc1", "fc2"))
    for rank, budget in BUDGET.items():
        np.testing.assert_allclose((*separate[rank], *fused[rank]), budget, atol=0.006)
        share = 100 * sum(separate[rank]) / 85.8
        published = {8: 1.74, 16: 3.29, 24: 4.83, 32: 6.38}[rank]
        assert share == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize("name", ["vit", "resnet", "wide_resnet"])
def test_nothing_is_changed_at_the_start_and_everything_can_be(name):
    """All kinds beside each other, moved from their start one after the other."""
    layers = ("q", "v", "fc1") if name == "vit" else ("conv1", "conv2")
    more = ("patch_embed", "head") if name == "vit" else ("stem", "head")

    def chosen(kind):
        # Rank 1, the stem has one input channel; that is as large as its kernel's side.
        return (*targets(*layers), *(() if kind.endswith("lora") else more))

    plain, images = small.model(name), small.images()
    base = small.variables(plain)
    added = tuple(Added(f"x{kind}", kind, chosen(kind), 2, 0.5) for kind in KINDS)
    model = small.model(name, added=added)
    drawn = jax.jit(model.init)(jax.random.key(0), images)["params"]
    own = trees.flatten(base["params"])
    fresh = {path: x for path, x in trees.flatten(drawn).items() if path not in own}
    expected = jax.jit(plain.apply)(base, images)

    @jax.jit
    def run(flat):
        return model.apply(base | {"params": trees.unflatten(own | flat)}, images)

    np.testing.assert_allclose(run(fresh), expected, atol=1e-5)
    depth = {"vit": 2, "resnet": 2, "wide_resnet": 3}[name]
    for kind in KINDS:
        moved = {path: x + 0.3 * (f"_x{kind}/" in path) for path, x in fresh.items()}
        assert np.abs(run(moved) - expected).max() > 1e-2
        folders = {p.rpartition(f"_x{kind}/")[0] for p in fresh if f"_x{kind}/" in p}
        extra = 0 if kind.endswith("lora") else 2
        assert len(folders) == depth * len(layers) + extra


@pytest.mark.parametrize("offset, atol", [(0, 1e-5), (50, 2e-4)])
def test_lnlora_by_hand(offset, atol, rng):
    """y = x W + b + s (LN(x) A) B, in numpy; also where the mean is large."""
    from advadapters.models.added import LoRA

    x, y = offset + rng.normal(size=(3, 6)), rng.normal(size=(3, 5))
    leaves = {
        "a": rng.normal(size=(1, 6, 2)), "b": rng.normal(size=(1, 2, 5)),
        "scale": rng.normal(size=(1, 6)), "bias": rng.normal(size=(1, 6)),
    }  # fmt: skip
    normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    normal = normal * leaves["scale"] + leaves["bias"]
    expected = y + 0.7 * normal @ leaves["a"][0] @ leaves["b"][0]
    params = {"params": {k: jnp.asarray(v, jnp.float32) for k, v in leaves.items()}}
    found = LoRA(rank=2, scale=0.7, norm=True).apply(
        params, jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    )
    np.testing.assert_allclose(found, expected, atol=atol)


def lora_network(name, kind="lora"):
    """(model with LoRAs, model without, variables with random LoRAs, images)."""
    layers = ("q", "v", "proj", "fc2") if name == "vit" else ("conv1", "shortcut")
    one = Added("lora", kind, targets(*layers), 2, 0.5)
    model = small.model(name, added=(one,))
    return model, small.model(name), small.variables(model), small.images()


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_merging_is_exact(name):
    model, plain, variables, images = lora_network(name)
    expected = jax.jit(model.apply)(variables, images)
    merged = lora.merge(variables["params"], {"lora": 0.5})
    found = jax.jit(plain.apply)(variables | {"params": merged}, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    without = variables | {"params": drop_loras(variables["params"])}
    assert np.abs(jax.jit(plain.apply)(without, images) - expected).max() > 1e-3


def drop_loras(params):
    flat = trees.flatten(params)
    return trees.unflatten({p: x for p, x in flat.items() if "_lora/" not in p})


def test_lnlora_cannot_be_merged():
    _, _, variables, _ = lora_network("vit", "lnlora")
    with pytest.raises(UsageError, match="is an LNLoRA: its norm divides"):
        lora.merge(variables["params"], {"lora": 0.5})
    with pytest.raises(UsageError, match="no LoRA is named \\['x'\\]"):
        lora.merge(variables["params"], {"x": 0.5})


def test_a_rank_must_be_below_the_kernel():
    one = Added("lora", "lora", (".*/fc1",), 8, 1.0)
    with pytest.raises(UsageError, match="rank=8 is not below the kernel of blocks_0/mlp"):
        small.shapes(small.model("vit", added=(one,)))


@pytest.mark.parametrize("kind", ["lora", "lnlora"])
def test_soups_of_loras_mix_their_updates(kind):
    """sum_k w_k (x A_k) B_k: at one linear layer the outputs mix, not the factors."""
    one = Added("lora", kind, ("head",), 2, 0.5)
    model = small.model("vit", added=(one,))
    first, second = (small.variables(model, seed) for seed in (0, 1))
    rest, loras = trees.split(first["params"], ("head_lora/.*",))
    _, others = trees.split(second["params"], ("head_lora/.*",))
    variables = {
        "shared": rest,
        "adapters": trees.stack([loras, others]),
        "stats": {"shared": {}, "adapters": {}},
    }
    images = small.images()
    run = jax.jit(lambda w: model.apply(trees.plain(variables, w), images))
    modes = [run(np.float32(w)) for w in ((1, 0), (0, 1))]
    base = run(np.float32((0, 0)))
    soup = run(np.float32((0.3, 0.9)))
    expected = base + 0.3 * (modes[0] - base) + 0.9 * (modes[1] - base)
    np.testing.assert_allclose(soup, expected, atol=1e-5)
    alone = jax.jit(model.apply)({"params": trees.merge(rest, loras)}, images)
    np.testing.assert_allclose(modes[0], alone, atol=1e-5)
    # Different mixtures for the rows of one batch.
    weights = jnp.array([[1.0, 0], [0, 1], [0.5, 0.5], [0.3, 0.9]])
    one = lambda w, x: model.apply(trees.plain(variables, w), x[None])[0]  # noqa: E731
    served = jax.jit(jax.vmap(one))(weights, images[:4])
    for row, w in enumerate(weights):
        np.testing.assert_allclose(served[row], run(w)[row], atol=1e-5)


def test_prompts_are_tokens_that_the_head_does_not_read():
    plain, prompted = small.model("vit"), small.model("vit", prompts=3)
    variables, images = small.variables(prompted), small.images()
    assert variables["params"]["prompt"].shape == (1, 3, 8)
    moved = variables["params"] | {"prompt": variables["params"]["prompt"] ** 2 * 9}
    apply = jax.jit(prompted.apply)
    first = apply(variables, images)
    assert np.abs(apply({"params": moved}, images) - first).max() > 1e-3
    counts = [trees.count(small.variables(m)["params"]) for m in (plain, prompted)]
    assert counts[1] - counts[0] == 3 * 8
