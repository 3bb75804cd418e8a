"""Names there and back, for every family, and what is refused by name."""

import re

import numpy as np
import pytest
import tiny

from advadapters import trees, weights
from advadapters.errors import UsageError
from advadapters.models import MODELS
from advadapters.weights import FAMILIES, fitting, resnets, rules, settings, vits
from advadapters.weights.layouts import Geometry

COMMON = dict(classes=5, mean=(0.5,) * 3, std=(0.5,) * 3)
VIT = COMMON | dict(size="32x2x48x4", patch=4, pool="class")
SCALED = dict(layer_scale=0.1)

# For each family the networks of which it has a name for every leaf.
NETWORKS = {
    vits.TIMM.name: [
        VIT,
        VIT | SCALED | dict(prompts=2, class_position=False, pre_norm=True),
        VIT | dict(pool="tokens", qkv_bias=False, patch_bias=False),
        VIT | dict(pool="normed_tokens", class_token=False, scan=True),
        VIT | dict(pool="class_and_tokens", mean=(0.5,), std=(0.5,)),
    ],
    vits.HF_VIT.name: [VIT, VIT | dict(prompts=1)],
    vits.HF_DINOV2.name: [
        VIT | SCALED,
        VIT | SCALED | dict(pool="class_and_tokens", prompts=4),
    ],
    vits.HF_CLIP.name: [VIT | dict(pre_norm=True, patch_bias=False)],
    vits.FLAX.name: [VIT, VIT | dict(pool="normed_tokens", class_token=False)],
    resnets.RESNET.name: [
        COMMON | dict(size="basic-4x2x1"),
        COMMON | dict(size="bottleneck-4x1x1", stem="imagenet"),
    ],
    resnets.CIFAR_RESNET.name: [
        COMMON | dict(size="basic-4x2x1"),
        COMMON | dict(size="bottleneck-4x1x1"),
    ],
    resnets.PREACT_RESNET.name: [COMMON | dict(size="4x1x2")],
    resnets.WIDE_RESNET.name: [COMMON | dict(size="16-2")],
}
CASES = [(family, told) for family in FAMILIES for told in NETWORKS[family.name]]
NAMES = [f"{family.name} {i}" for i, (family, _) in enumerate(CASES)]


def network(family, told):
    """{branch: {path: leaf}} of a network with these settings, all random."""
    import jax
    import jax.numpy as jnp

    told, model = dict(told), MODELS[family.model]
    module = model(size=model.read_size(told.pop("size")), **told)
    images = jnp.zeros((1, 16, 16, len(told["mean"])))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    flat = {b: trees.flatten(tree) for b, tree in tiny.filled(dict(shapes), 0).items()}
    return {"params": {}, "batch_stats": {}} | flat


def test_every_family_is_tried():
    assert list(NETWORKS) == [family.name for family in FAMILIES]


@pytest.mark.parametrize("family, told", CASES, ids=NAMES)
def test_there_and_back_is_bitwise(family, told):
    leaves = network(family, told)
    geometry = Geometry(heads=4, patch=4, channels=len(told["mean"]))
    arrays = weights.write(family.name, leaves, geometry, told)
    assert rules.choose(FAMILIES, list(arrays)) is family
    read = rules.read(family, arrays)
    if told.get("scan"):
        leaves["params"] = fitting.unrolled_blocks(leaves["params"])
    for branch, flat in leaves.items():
        assert read.leaves[branch].keys() == flat.keys()
        for path, leaf in flat.items():
            np.testing.assert_array_equal(read.leaves[branch][path], leaf)
    # And what is written of them again is the same, whatever stands before the names.
    again = weights.write(family.name, read.leaves, geometry, told)
    assert again.keys() == arrays.keys()
    start = "opt/target/" if family is vits.FLAX else "module.model."
    wrapped = {start + name: array for name, array in arrays.items()}
    assert rules.read(family, wrapped).leaves["params"].keys() == flat_keys(read)


def flat_keys(read):
    return read.leaves["params"].keys()


@pytest.mark.parametrize("family, told", CASES, ids=NAMES)
def test_settings_are_read_off_the_leaves(family, told):
    if family.model != "vit":
        pytest.skip("sizes of convolutional networks are the config's word")
    flat = fitting.unrolled_blocks(network(family, told)["params"])
    found = settings.keys_of(settings.from_vit(flat) | {"heads": 4})
    usual = dict(
        prompts=0, class_token=True, pre_norm=False, qkv_bias=True, patch_bias=True
    )
    expected = usual | told
    for key in ("size", "patch", "classes", *usual):
        assert found[key] == expected[key], key
    assert bool(found["layer_scale"]) == bool(told.get("layer_scale"))
    assert found["class_position"] == told.get("class_position", True)
    assert ("pool" in found) == (told["pool"] == "class_and_tokens")


def test_scanned_blocks_of_flax_are_taken_apart():
    told = VIT | dict(pool="normed_tokens", class_token=False)
    leaves = network(vits.FLAX, told)
    arrays = weights.write(vits.FLAX.name, leaves, Geometry(4, 4), told)
    scanned, rows = {}, {}
    for name, array in arrays.items():
        if "encoderblock_" in name:
            name = re.sub(r"encoderblock_\d/", "encoderblock/", name)
            rows.setdefault(name, []).append(array)
        else:
            scanned["params/" + name] = array
    assert len(rows) == 16
    scanned |= {"params/" + name: np.stack(pair) for name, pair in rows.items()}
    found = rules.read(vits.FLAX, weights._unrolled(scanned)).leaves["params"]
    for path, leaf in leaves["params"].items():
        np.testing.assert_array_equal(found[path], leaf)


def test_numbers_of_modules_before_linen():
    arrays = weights.write(vits.FLAX.name, network(vits.FLAX, VIT), Geometry(4, 4), VIT)
    numbers = (
        ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
        ("LayerNorm_1", "LayerNorm_2"),
        ("MlpBlock_0", "MlpBlock_3"),
        ("pos_embedding", "Transformer/posembed_input/pos_embedding"),
    )
    old = {}
    for name, array in arrays.items():
        for new, before in numbers:
            name = name.replace(new, before)
        old[name] = array
    assert not any("LayerNorm_1" in name for name in old)
    read, expected = (rules.read(vits.FLAX, a).leaves["params"] for a in (old, arrays))
    assert all((read[path] == leaf).all() for path, leaf in expected.items())


FOREIGN = {
    "blocks.0.attn.rope.freqs": "rotary positions",
    "blocks.0.mlp.w12.weight": "SwiGLU",
    "attn_pool.latent": "a head of attention",
    "blocks.0.attn.relative_position_bias_table": "relative positions",
    "blocks.0.attn.q_norm.weight": "more norms",
    "blocks.0.attns.1.qkv.weight": "parallel blocks",
    "patch_embed.proj.0.weight": "a stem of convolutions",
    "patch_embed.backbone.stem.conv.weight": "a stem of convolutions",
    "something.else": "timm has no such name; near ones are",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_no_model_has_is_refused_by_name(name):
    arrays = weights.write("timm", network(vits.TIMM, VIT), Geometry(4, 4), VIT)
    with pytest.raises(UsageError, match=FOREIGN[name]) as error:
        rules.read(vits.TIMM, arrays | {name: np.ones(3, np.float32)})
    assert name in str(error.value) and "\n" not in str(error.value)


def test_packed_swiglu_is_refused():
    leaves = network(vits.TIMM, VIT)["params"]
    leaves["blocks_0/mlp/fc2/kernel"] = np.ones((24, 32), np.float32)
    with pytest.raises(UsageError, match="SwiGLU"):
        settings.from_vit(leaves)


def test_parts_and_types_are_needed():
    told = VIT | SCALED
    arrays = weights.write(
        vits.HF_DINOV2.name, network(vits.HF_DINOV2, told), Geometry(4, 4), told
    )
    key = "encoder.layer.1.attention.attention.key.weight"
    for change, message in (
        ({key: None}, "there is no encoder.layer.{i}.attention.attention.key.weight"),
        ({key: arrays[key].astype(int)}, "key.weight must hold floats, got int64"),
        ({key: arrays[key][:8]}, "must have one shape"),
        ({key: arrays[key][0]}, "key.weight must have 2 axes"),
        ({key: arrays[key] * np.nan}, "key.weight has values that are not finite"),
        ({f"model.{key}": arrays[key] + 1}, "are the same leaf and differ"),
    ):
        changed = {k: v for k, v in (arrays | change).items() if v is not None}
        with pytest.raises(UsageError) as error:
            rules.read(vits.HF_DINOV2, changed)
        assert message in str(error.value)


def test_leaves_without_a_name_are_refused():
    leaves = network(vits.TIMM, VIT | SCALED)
    with pytest.raises(UsageError, match="layer_scale1/gamma has no name in transformers"):
        weights.write("transformers ViT", leaves, Geometry(4, 4), VIT)
    with pytest.raises(UsageError, match="no family is called 'other'"):
        weights.write("other", leaves, Geometry(4, 4), VIT)
