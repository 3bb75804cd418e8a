"""The sections of a config, every key with its value and what it means.

Values are plain, so that flags can override all of them.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from advadapters.errors import pick
from advadapters.plugins import load

Values = dict[str, Any]  # a part of a config: plain values, or sections of them, by key

# The keys of config.start for a network that starts afresh.
NO_START = dict(
    workdir="",  # another run, whose checkpoint is started from; "" is none
    mixture={},  # of its domains, {name: weight}
    fresh=(),  # patterns of parameters that are initialised all the same
    dropped=(),  # patterns of those there that are left behind
    changed=(),  # keys of config.model that are others on purpose
    weights="",  # or a file of weights, of this program or another: see docs/weights.md
    # Positions and patches of another size: as timm resizes them, or "cubic" (transformers,
    # DINOv2), or "linear" (augreg, big_vision).
    resample="bicubic",
)

# Keys of config.model that change no result of evaluation, but for the rounding of sums.
TRAINING_ONLY = ("attention", "drop_path", "dropout", "dtype", "head_std", "remat")


def config(plugins: Sequence[str] = ()) -> ConfigDict:
    """A whole config but for its data source, model size, method and evaluation suites.

    Args:
      plugins: names of modules to import first, which add attacks, models and others.
    """
    load(plugins)
    return ConfigDict(
        dict(
            seed=0,  # of all that is drawn
            plugins=tuple(plugins),  # modules to import first, which add attacks, ...
            epochs=1.0,  # passes over the training images
            batch_size=128,  # images of a step, over all devices
            accumulate=1,  # parts that a batch is worked off in
            sharding="replicated",  # of the training state; or "fsdp": split over devices
            ema_decay=0.9999,  # of the averaged parameters, which are evaluated
            keep_checkpoints=2,  # the newest so many, and the best
            log_every=50,  # steps
            validate_every=0,  # steps; 0 is never
            checkpoint_every=1000,  # steps
            # Batch statistics of all views together, or "separate" for each view, and
            # running ones for each domain.
            statistics="pooled",
            weight_perturbation=0.0,  # size of adversarial weight perturbations (AWP)
            trained=(".*",),  # patterns; what neither these nor adapters match is frozen
            start=dict(
                # Checkpoint: "latest" is looked up when training begins, or a number.
                step="latest",
            )
            | NO_START,
            model=model("vit", ""),
            data=data(),
            optimizer=adamw(),
            evaluation=dict(
                # Images that are read at once; how many fit a call is found out.
                batch_size=100,
                dtype="float32",  # of matrix products in evaluation and its attacks
                # Of float32 products there; "default" is rounded on TPUs and recent GPUs.
                precision="highest",
                # Soups w * (first domain) + (1 - w) * (each other domain).
                soup_weights=tuple(round(0.1 * i, 1) for i in range(11, -2, -1)),
                soups_at_once=13,  # in one call, at most
            ),
        )
    )


def data() -> Values:
    """The keys of config.data."""
    return dict(
        source="",  # digits, fashion, folder:DIR, tar:DIR, npz:FILE, idx:DIR or tfds:NAME
        data_dir="",  # of TFDS; "" is its own default
        # The split of TFDS, or the folder or tar, to evaluate on; "" is the usual.
        test_split="",
        classes=(),  # numbers of those that are kept, and numbered anew; () is all
        image_size=224,  # side in pixels
        channels=3,  # 1 for gray
        crop="central",  # or "random_resized"
        crop_ratio=1.0,  # evaluation: crop size / size of the shorter side
        interpolation="area",  # bicubic where it enlarges; or "bicubic", "bilinear"
        validation=0.0,  # fraction of the training images held out
        train_images=0,  # so many of the others, a fixed draw; 0 is all
        judged_on="test",  # what tables are of; or "validation", to choose settings by
        test_images=0,  # so many of these, a fixed draw; 0 is all
        skip_corrupt=False,  # leave out training images that cannot be decoded
        threads=2,  # that decode and crop, in each process
        workers=0,  # processes beside this one that do so; 0: this one does
        flip=True,  # half of the training images, left to right
        pad=0,  # pixels of zero padding before a random crop
        randaugment=dict(
            layers=0,  # operations per image; 0 is off
            magnitude=9.0,  # their mean strength, of 10
            std=0.5,  # its deviation
            fill=(0.5,),  # colour of what comes in from outside, one or one per channel
        ),
        random_erasing=dict(
            probability=0.0,  # of a box of normal noise; 0 is off
            mean=(0.5,),  # of the noise
            std=(0.25,),  # its deviation
        ),
        mixup=0.0,  # alpha of the Beta distribution; 0 is off
        cutmix=0.0,  # alpha of the Beta distribution; 0 is off
        mix_probability=1.0,  # share of batches that mixup and cutmix touch
        label_smoothing=0.0,  # share of the label that goes to all classes alike
    )


def model(name: str, size: str, **more: Any) -> Values:
    """The keys of config.model for a backbone.

    Beside the keys that all models have, these are the settings that the fields of the
    model's class are annotated as, with their defaults.

    Args:
      name: a row of `advadapters.models.MODELS`.
      size: a name in the model's table of sizes, or its numbers (see its `read_size`).
      **more: other values of the keys.

    Raises:
      UsageError: there is no such model.
    """
    from advadapters import schema
    from advadapters.models import MODELS

    module = pick(MODELS, name, "config.model.name")
    fields = module.__dataclass_fields__
    settings = {k: v for k, v in schema.defaults_of(module).items() if k != "dtype"}
    common = dict(
        name=name,  # in advadapters.models.MODELS
        size=size,  # a name in the model's table, or its numbers
        classes=10,  # of the data
        mean=(0.5, 0.5, 0.5),  # of each channel, taken off inside the model
        std=(0.5, 0.5, 0.5),  # of each channel, divided by inside the model
    )
    special = dict(
        added={},  # {name: added(...)}: LoRA and others
        film={},  # or film(...): the network is conditioned on lambda
        dtype="float32",  # of matrix products; or "bfloat16"
    )
    settings |= {key: value for key, value in special.items() if key in fields}
    if getattr(module, "scales", False):
        settings |= dict(width=1.0)  # factor of all channels, at most 1
    return common | settings | more


def added(kind: str, targets: tuple[str, ...], rank: int, scale: float = 1.0) -> Values:
    """An entry of config.model.added, whose settings `advadapters.models.added` explains.

    The parameters of its modules are at LAYER_NAME/..., where NAME is the entry's key.
    """
    return dict(kind=kind, targets=targets, rank=rank, scale=scale)


def film(
    lambdas: tuple[float, ...],
    encoding: str = "random",
    size: int = 128,
    center: float = 0.0,
) -> Values:
    """The keys of config.model.film, which `advadapters.models.film.Film` explains."""
    return dict(lambdas=lambdas, encoding=encoding, size=size, center=center)


def adamw(**more: Any) -> Values:
    """The keys of config.optimizer for AdamW."""
    settings = dict(
        name="adamw",  # or "sgd"
        b1=0.9,  # of the gradient's average
        b2=0.95,  # of the squared gradient's average
        weight_decay=0.05,  # per step, times the rate
    )
    return schedule_keys() | settings | more


def sgd(**more: Any) -> Values:
    """The keys of config.optimizer for SGD with momentum."""
    settings = dict(
        name="sgd",  # or "adamw"
        momentum=0.9,  # of the gradient's average
        weight_decay=5e-4,  # is added to the gradient
    )
    return schedule_keys() | settings | more


def schedule_keys() -> Values:
    """The keys of config.optimizer that all optimizers have."""
    return dict(
        base_lr=1e-3,  # for a batch of 256, scaled linearly
        decayed=(".*kernel",),  # patterns of what weight decay acts on
        warmup_epochs=5.0,  # over which the rate grows from 0
        # ((epoch, factor of the base rate), ...): constant rates from these epochs on,
        # before them the base rate; () is a cosine to 0.
        drops=(),
        clip_norm=0.0,  # global norm; 0 is off
        max_nonfinite=10,  # updates in a row before the run stops
        layers=(),  # patterns of layers in the network's order, for layer_decay
        layer_decay=1.0,  # factor of the rate from one layer to the one before; 1 is off
    )


# For `layers`: embedding, then each block; final norm and head are what is left.
VIT_LAYERS = ("class_token|pos_embed|patch_embed/.*", "blocks_([0-9]+)/.*")
