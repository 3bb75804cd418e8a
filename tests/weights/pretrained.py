"""Networks of other programs, small and random, and ours of the same weights."""

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import trees
from advadapters.models import MODELS
from advadapters.weights import settings

SIDE, CLASSES = 16, 5
SIZE = dict(embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0)


def stirred(module, seed=0):
    """A torch module in evaluation mode, no parameter of which is 0 or 1."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn_like(parameter) * 0.2
            parameter.copy_(parameter + noise if "norm" in name else noise)
    return module.eval()


def images(count=2, side=SIDE, channels=3, seed=0):
    """[B, H, W, C] in [0, 1]."""
    drawn = np.random.default_rng(seed).uniform(size=(count, side, side, channels))
    return drawn.astype(np.float32)


def torch_logits(module, pictures):
    """A torch module's logits [B, L] of images as ours are normalised."""
    import torch

    with torch.no_grad():
        x = torch.from_numpy(((pictures - 0.5) / 0.5).transpose(0, 3, 1, 2).copy())
        out = module(x)
    return getattr(out, "logits", out).numpy()


def ours(weights, heads=2, **fields):
    """Our module for the weights, as they describe it."""
    told = settings.keys_of(weights.model | {"heads": heads})
    told |= dict(mean=(0.5,) * 3, std=(0.5,) * 3) | fields
    model = MODELS[told.pop("name")]
    return model(size=model.read_size(told.pop("size")), **told)


def logits(module, leaves, pictures):
    """Our logits [B, L]; every leaf has to have its place."""
    tree = {branch: trees.unflatten(flat) for branch, flat in leaves.items() if flat}
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(pictures))
    for branch, flat in leaves.items():
        here = trees.flatten(shapes.get(branch, {}))
        assert {k: v.shape for k, v in here.items()} == {
            k: v.shape for k, v in flat.items()
        }
    return np.asarray(jax.jit(module.apply)(tree, jnp.asarray(pictures)))
