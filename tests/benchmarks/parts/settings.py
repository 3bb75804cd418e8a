"""Where and at what size everything is measured, and the networks that are."""

import importlib.metadata
import importlib.util
import pathlib
import platform
import runpy
import subprocess
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advadapters import builders
from advadapters.models import vit

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "imagenet_vit_b16.py"


class Setting(NamedTuple):
    """size: in `parts.SIZES`. dtype: of training's products. options: see `accelerator`."""

    size: str
    device: Any
    dtype: str
    torch: bool
    options: dict

    @property
    def fast(self):
        """Whether this is an accelerator."""
        return self.device.platform != "cpu"


def make(options):
    """The Setting of this process."""
    device = jax.devices()[0]
    fast = device.platform != "cpu"
    return Setting(
        options["size"] or ("full" if fast else "cpu"),
        device,
        "bfloat16" if fast else "float32",
        options["torch"] == "yes" and has_torch(fast),
        options,
    )


def has_torch(fast):
    """Whether torch is there, with its own access to the accelerator if there is one."""
    if importlib.util.find_spec("torch") is None:
        return False
    return not fast or importlib.import_module("torch").cuda.is_available()


def told(setting):
    """What all rows have in common, as plain values."""
    names = ("jax", "jaxlib", "flax", "numpy", *(["torch"] if setting.torch else []))
    return {
        "device": setting.device.device_kind,
        "size": setting.size,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def commit():
    """The commit of the sources, with a + if they were changed; "" without git."""
    try:
        call = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(
            call, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def run_of(shape, method, batch, pgd, dtype, mesh, **changes):
    """The Run of the ImageNet config with another network and no augmentation.

    changes: {key of the config, with dots: value}.
    """
    config = runpy.run_path(str(CONFIG))["get_config"](method)
    size = (shape.width, shape.depth, shape.hidden, shape.heads)
    config.model.size = "x".join(map(str, size))
    config.model.patch, config.data.image_size = shape.patch, shape.side
    config.model.drop_path = config.data.mixup = config.data.cutmix = 0.0
    config.model.dtype = dtype
    config.data.randaugment.layers = 0
    config.data.source, config.data.validation = f"blank:{64 * batch}", 0.0
    config.data.flip = False
    config.validate_every, config.batch_size = 0, batch
    config.evaluation.batch_size = batch
    if method != "nominal":
        config.attacks.linf.steps = pgd
    config.update_from_flattened_dict(changes)
    return builders.build(config.to_dict(), mesh)


def model_of(shape):
    """The ViT of a shape for 1,000 classes."""
    return vit.ViT(
        size=vit.Size(shape.width, shape.depth, shape.hidden, shape.heads),
        classes=1000,
        patch=shape.patch,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def batch_of(shape, count, classes=1000):
    """Random uint8 images, as the pipeline gives them."""
    draw = np.random.default_rng(0)
    sides = (count, shape.side, shape.side, 3)
    return {
        "images": draw.integers(0, 256, sides, np.uint8),
        "labels": draw.integers(classes, size=count).astype(np.int32),
        "index": np.arange(count, dtype=np.int32),
        "seed": np.zeros(count, np.uint32),
    }


def images_of(shape, count):
    """Random images float32 [B, H, W, 3] in [0, 1]."""
    return batch_of(shape, count)["images"].astype(np.float32) / np.float32(255)


def drawn(tree, spread=0.02):
    """A tree of numpy arrays plus noise, so that no zero hides or saves anything."""
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: (leaf + spread * draw.normal(size=leaf.shape)).astype(leaf.dtype), tree
    )


def place(tree, device):
    """The leaves on a device."""
    return jax.tree.map(lambda leaf: jax.device_put(jnp.asarray(leaf), device), tree)
