"""How many of timm's vision transformers this program's ViT can be.

    pip install timm torch
    python tests/benchmarks/timm_vits.py

For each entry point of timm.models.vision_transformer: are all names in the table, do the
shapes say a network that there is, and is what no shape shows (activation, epsilon, pool) a
setting. Nothing is computed; tests/weights/test_timm_parity.py compares logits.
"""

import collections
import sys

import numpy as np
import timm
import torch

from advadapters.errors import UsageError
from advadapters.weights import rules, settings, vits

SMALL = dict(depth=1, embed_dim=192, num_heads=3)  # the rest is as it is
GELUS = {"GELU": "erf", "GELUTanh": "tanh", "QuickGELU": "quick"}


def arrays_of(model):
    """{name: array of zeros, without memory of its own} of a module without data."""
    return {
        name: np.broadcast_to(np.float32(0), tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }


def hidden(model):
    """The settings that no shape shows. Raises UsageError for what is none of ours."""
    block = model.blocks[0]
    activation = type(block.mlp.act).__name__
    if activation not in GELUS:
        raise UsageError(f"activation {activation}")
    if type(block.norm1).__name__ != "LayerNorm":
        raise UsageError(f"norm {type(block.norm1).__name__}")
    if type(block).__name__ not in ("Block", "LayerScaleBlock"):
        raise UsageError(f"blocks {type(block).__name__}")
    if model.attn_pool is not None or model.global_pool not in ("token", "avg", ""):
        raise UsageError(f"pool {model.global_pool}")
    if model.pos_embed is None:
        raise UsageError("no learned positions")
    if getattr(block.attn, "num_heads", 0) * block.attn.head_dim != model.embed_dim:
        raise UsageError("heads that are not the width together")
    return dict(gelu=GELUS[activation], norm_eps=block.norm1.eps)


def judge(name):
    """ "" for a model that ours can be, or why not."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10, **SMALL)
    try:
        named = rules.read(vits.TIMM, arrays_of(model))
        settings.from_vit(named.leaves["params"])
        hidden(model)
    except UsageError as error:
        text = str(error)
        for _, what in rules.FOREIGN:
            text = what if what in text else text
        return "SwiGLU" if "SwiGLU" in text else text
    return ""


def main():
    """Prints the counts."""
    names = timm.list_models(module="vision_transformer")
    why = {name: judge(name) for name in names}
    fits = [name for name, text in why.items() if not text]
    print(f"timm {timm.__version__}: {len(fits)} of {len(names)} entry points")
    for text, count in collections.Counter(filter(None, why.values())).most_common():
        example = next(name for name in names if why[name] == text)
        print(f"  {count:>3}  {text} ({example})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
