"""Networks as folders that timm and transformers load: the same logits."""

import jax
import numpy as np
import pytest
import tiny

from advadapters import networks
from advadapters.errors import UsageError
from advadapters.exports import timm_files
from advadapters.models import vit
from advadapters.models.added import Added

IMAGES = np.random.default_rng(1).uniform(size=(3, 16, 16, 3)).astype(np.float32)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
LORA = Added("lora", "lora", (".*/(q|v|proj|fc1)",), rank=2, scale=0.5)

# Settings of our ViT.
KINDS = {
    "mean, then norm": {},
    "class token": dict(pool="class"),
    "sincos": dict(positions="sincos"),
    "prompts": dict(prompts=2),
    "prompts, class token": dict(prompts=2, pool="class"),
    "scanned": dict(scan=True),
    "LoRA": dict(added=(LORA,)),
    "no class token": dict(class_token=False),
    "norm, then mean": dict(pool="normed_tokens", class_position=False),
    "LayerScale": dict(layer_scale=0.1, pre_norm=True),
    "a norm, prompts": dict(pre_norm=True, prompts=2, layer_scale=0.1),
    "tanh": dict(gelu="tanh", qkv_bias=False, patch_bias=False),
}


def network(**fields):
    """(Network, plain tree, metadata) of a small ViT."""
    size = vit.Size(16, 2, 40, 2)
    settings = dict(size=size, classes=5, patch=4, mean=MEAN, std=STD) | fields
    net = networks.make_network(vit.ViT(**settings), (16, 16, 3))
    plain = tiny.plain(net)
    model = dict(
        name="vit", size="16x2x40x2", patch=4, mean=MEAN, std=STD, pool="tokens",
        positions="learned", norm="layer", resize=0, prompts=0, scan=False,
    )  # fmt: skip
    model |= {k: v for k, v in fields.items() if k != "added"}
    model["added"] = {
        one.name: {"kind": one.kind, "scale": one.scale} for one in fields.get("added", ())
    }
    about = {"classes": list("abcde"), "image": [16, 16, 3], "source": {"model": model}}
    return net, plain, about


def torch_logits(model):
    """A torch module's logits of the images, as they are normalised before it."""
    import torch

    with torch.no_grad():
        pixels = ((IMAGES - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2)
        out = model(torch.from_numpy(np.float32(pixels)))
    return getattr(out, "logits", out).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_timm_computes_the_same_logits(kind):
    timm = pytest.importorskip("timm")
    import torch

    net, plain, about = network(**KINDS[kind])
    arrays = timm_files.arrays_of(plain, about)
    arguments = timm_files.arguments_of(about)
    model = timm.create_model(timm_files.ARCHITECTURE, num_classes=5, **arguments)
    state = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    model.load_state_dict(state, strict=True)
    expected = jax.jit(net.evaluate)(plain, IMAGES)
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(torch_logits(model.eval()), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["class token", "LoRA"])
def test_timm_reads_big_visions_arrays(kind, tmp_path):
    timm = pytest.importorskip("timm")
    net, plain, about = network(**(KINDS[kind] | dict(pool="class")))
    arrays = timm_files.big_vision_arrays(plain, about)
    np.savez(tmp_path / "model.npz", **arrays)
    model = timm.create_model(
        timm_files.ARCHITECTURE,
        num_classes=5,
        checkpoint_path=str(tmp_path / "model.npz"),
        **timm_files.arguments_of(about),
    )
    expected = jax.jit(net.evaluate)(plain, IMAGES)
    np.testing.assert_allclose(torch_logits(model.eval()), expected, rtol=0, atol=1e-4)


def test_the_width_of_the_mlp_survives_timms_ratio():
    for width in range(4, 400, 4):
        for mlp in range(1, 1000, 7):
            assert int(width * timm_files._ratio(mlp, width)) == mlp


BAD = {
    "a norm": (dict(norm="batch"), "config.model.norm='layer', this one has 'batch'"),
    "an adapter": (
        dict(added=(Added("down", "bottleneck", (".*/fc1",), 2, 1.0),)),
        "only LoRAs can be merged .* down is bottleneck",
    ),
    "resizing": (dict(resize=32), "config.model.resize=0, this one has 32"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_timm_cannot_be_is_refused(case):
    fields, message = BAD[case]
    _, plain, about = network(**fields)
    with pytest.raises(UsageError, match=message):
        timm_files.arrays_of(plain, about)


def test_what_has_no_name_in_big_visions_files_is_refused():
    _, plain, about = network()
    with pytest.raises(UsageError, match="no norm after the mean of the tokens"):
        timm_files.big_vision_arrays(plain, about)
    _, plain, about = network(pool="class", prompts=2)
    with pytest.raises(UsageError, match="prompt has no name in"):
        timm_files.big_vision_arrays(plain, about)


def test_another_model_is_refused():
    about = {"source": {"model": {"name": "resnet"}}}
    with pytest.raises(UsageError, match="of a vit, and this is resnet"):
        timm_files.arrays_of({}, about)
