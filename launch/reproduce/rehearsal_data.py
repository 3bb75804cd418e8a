"""Writes what the rehearsal of the papers reads: made-up images and pretrained networks.

    python launch/reproduce/rehearsal_data.py DIR [NAME ...]

Without names of data sets, all of them. DIR/tfds holds data sets with the names, versions
and features that TensorFlow Datasets gives them, as ArrayRecord files: ImageNet and six
other test sets of it, CIFAR-10 and CIFAR-100, SVHN, STL-10 and Imagenette. An image is a
coarse pattern of its class with noise, so that a small network can learn the classes.
DIR/weights holds small networks with random weights and the names of those that are
published: MAE's encoder, timm's ViT and a robust ResNet-50. Numbers that the rehearsal
finds say nothing about the methods.
"""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

IMAGENET = 1000
KNOWN = tuple(range(0, IMAGENET, 5))  # the 200 classes of which there are images
SHAPES = 16  # classes of Conflict Stimuli
NAMES = (
    "imagenet2012", "imagenet2012_real", "imagenet_v2/matched-frequency", "imagenet_a",
    "imagenet_r", "imagenet_sketch", "geirhos_conflict_stimuli", "cifar10", "cifar100",
    "svhn_cropped", "stl10", "imagenette/full-size",
)  # fmt: skip
SIDES = {"stl10": 96}  # pixels; of the others 32

Example = dict[str, Any]


def pattern(label: int) -> np.ndarray:
    """The coarse image of a class [4, 4, 3]."""
    return np.random.default_rng(label).uniform(-1, 1, (4, 4, 3))


def image(label: int, number: int, side: int = 32, contrast: float = 80.0) -> np.ndarray:
    """The uint8 image of this number of a class [side, side, 3]."""
    draw = np.random.default_rng((label, number))
    coarse = 127 + contrast * pattern(label)
    whole = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_NEAREST)
    return np.clip(whole + draw.normal(0, 25, whole.shape), 0, 255).astype(np.uint8)


def labelled(labels: Iterator[int], first: int = 0, **look: Any) -> Iterator[Example]:
    """Examples with these labels, numbered from `first` on."""
    for number, label in enumerate(labels, start=first):
        yield {"image": image(label, number, **look), "label": label}


def in_turn(classes: Any, count: int) -> Iterator[int]:
    """So many labels, one class after the other."""
    return (int(classes[n % len(classes)]) for n in range(count))


def reassessed(count: int) -> Iterator[Example]:
    """Images with several labels, or with none: ImageNet-Real."""
    for example in labelled(in_turn(KNOWN, count), first=90_000):
        label = example.pop("label")
        several = [label, (label + 1) % IMAGENET] if label % 2 else [label]
        none = label % 50 == 0
        yield example | {"original_label": label, "real_label": [] if none else several}


def conflicting(count: int) -> Iterator[Example]:
    """Images whose coarse pattern is of one class and whose noise is of another."""
    members = [[int(k) for k in part[:3]] for part in np.array_split(KNOWN, SHAPES)]
    for number in range(count):
        shape, texture = number % SHAPES, (number // SHAPES + number) % SHAPES
        label = members[shape][number % 3]
        yield {
            "image": image(label, number, contrast=60.0),
            "shape_label": shape,
            "shape_imagenet_labels": members[shape],
            "texture_label": texture,
            "texture_imagenet_labels": members[texture],
        }


def splits_of(name: str) -> dict[str, Iterator[Example]]:
    """{split: examples} of a data set."""
    if name == "imagenet2012":
        return {
            "train": labelled(in_turn(KNOWN, 2000)),
            "validation": labelled(in_turn(KNOWN, 200), first=90_000),
        }
    if name == "imagenet2012_real":
        return {"validation": reassessed(200)}
    if name == "geirhos_conflict_stimuli":
        return {"test": conflicting(160)}
    if name.startswith("imagenet_"):
        contrast = {"imagenet_a": 30.0, "imagenet_r": 50.0, "imagenet_sketch": 40.0}
        look = dict(contrast=contrast.get(name, 70.0))
        return {"test": labelled(in_turn(KNOWN, 200), first=70_000, **look)}
    classes, look = range(100 if name == "cifar100" else 10), {"side": SIDES.get(name, 32)}
    test = "validation" if name.startswith("imagenette") else "test"
    return {
        "train": labelled(in_turn(classes, 400), **look),
        test: labelled(in_turn(classes, 100), first=90_000, **look),
    }


def complete(example: Example, number: int, features: Any) -> Example:
    """The example with its image encoded and the features that say nothing here."""
    code = features["image"].encoding_format or "jpeg"
    encoded = cv2.imencode(f".{code}", example["image"])[1].tobytes()
    fillers = {"file_name": f"{number}.jpg", "id": str(number), "coarse_label": 0}
    return (
        {k: v for k, v in fillers.items() if k in features} | example | {"image": encoded}
    )


def write_set(name: str, folder: str) -> None:
    """Writes a data set as TFDS' own builder of this name would."""
    import tensorflow_datasets as tfds

    real = tfds.builder(name, data_dir=folder)
    features, splits = real.info.features, splits_of(name)
    with tfds.core.registered.skip_registration():

        class Writer(tfds.core.GeneratorBasedBuilder):
            """The builder with other examples."""

            VERSION = real.version
            BUILDER_CONFIGS = [real.builder_config] if real.builder_config else []

            def _info(self) -> Any:
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, manager: Any) -> Any:
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split: str) -> Any:
                for number, example in enumerate(splits[split]):
                    yield number, complete(example, number, features)

    Writer.name = real.name
    Writer(data_dir=folder, file_format="array_record").download_and_prepare()


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random tensors of these names and shapes; scales and variances are ones."""
    draw, tensors = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        ones = name.endswith("running_var") or (len(shape) == 1 and "weight" in name)
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 1e4
        values = np.ones(shape) if ones else draw.normal(0, fan_in**-0.5, shape)
        tensors[name] = values.astype(np.float32)
    return tensors


def vit_shapes(width: int, blocks: int, patch: int, patches: int, classes: int) -> dict:
    """{name: shape} of a ViT by timm's names; without head and norm for no classes."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + patches, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in range(blocks):
        layers = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
            "norm1": (width,),
            "norm2": (width,),
        }
        for layer, shape in layers.items():
            shapes[f"blocks.{block}.{layer}.weight"] = shape
            shapes[f"blocks.{block}.{layer}.bias"] = shape[:1]
    if classes:
        shapes |= {"head.weight": (classes, width), "head.bias": (classes,)}
    return shapes


def resnet_shapes(width: int, stages: int, classes: int) -> dict:
    """{name: shape} of a ResNet with a bottleneck a stage, by torchvision's names."""
    shapes = {"conv1.weight": (width, 3, 7, 7)} | norm_shapes("bn1", width)
    inputs = width
    for stage in range(stages):
        middle, name = width * 2**stage, f"layer{stage + 1}.0"
        sizes = [(inputs, middle, 1), (middle, middle, 3), (middle, 4 * middle, 1)]
        for number, (before, after, kernel) in enumerate(sizes, start=1):
            shapes[f"{name}.conv{number}.weight"] = (after, before, kernel, kernel)
            shapes |= norm_shapes(f"{name}.bn{number}", after)
        shapes[f"{name}.downsample.0.weight"] = (4 * middle, inputs, 1, 1)
        shapes |= norm_shapes(f"{name}.downsample.1", 4 * middle)
        inputs = 4 * middle
    return shapes | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def norm_shapes(name: str, width: int) -> dict:
    """{name: shape} of a batch norm."""
    return {
        f"{name}.{part}": (width,)
        for part in ("weight", "bias", "running_mean", "running_var")
    }


def write_weights(folder: pathlib.Path) -> None:
    """Writes the small networks in place of the published ones."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    mask = {"mask_token": (1, 1, 48)}  # what MAE's file has besides the encoder
    for name, shapes in {
        "mae_pretrain_vit_base": vit_shapes(64, 2, patch=8, patches=16, classes=0) | mask,
        "vit_base_patch16_224": vit_shapes(64, 2, patch=16, patches=196, classes=IMAGENET),
        "resnet50_linf_eps4": resnet_shapes(8, 2, classes=IMAGENET),
    }.items():
        save_file(drawn(shapes), folder / f"{name}.safetensors")


def main() -> None:
    """Writes everything; what is there already is left as it is."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-") or {*sys.argv[2:]} - {*NAMES}:
        sys.exit(f"{__doc__}\nThe data sets are {', '.join(NAMES)}.")
    folder = pathlib.Path(sys.argv[1])
    for name in sys.argv[2:] or NAMES:
        write_set(name, str(folder / "tfds"))
    write_weights(folder / "weights")


if __name__ == "__main__":
    main()
