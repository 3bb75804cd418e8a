"""Whole configs that the experiments on small data start from."""

from typing import Any

from ml_collections import ConfigDict

from advadapters.defaults.sections import Values, config


def digits(model: Values) -> ConfigDict:
    """`config` for a short run of 337 steps on scikit-learn's digits.

    Args:
      model: config.model, as `defaults.model` makes it.
    """
    preset: Any = config()
    preset.epochs = 30.0
    preset.ema_decay = 0.99
    preset.checkpoint_every = 200
    preset.model = model | dict(mean=(0.5,), std=(0.5,))
    preset.data.update(source="digits", image_size=8, channels=1, flip=False)
    preset.optimizer.update(base_lr=4e-3, clip_norm=1.0)
    preset.evaluation.batch_size = 120
    return preset


def fashion(model: Values, train_images: int, test_images: int = 0) -> ConfigDict:
    """`config` for the experiments of configs/evidence on Fashion-MNIST.

    A tenth of the training images is held out. The size of an image, `data.image_size`, is
    28 pixels; experiments with networks that are slow on a CPU set 14.

    Args:
      model: config.model, as `defaults.model` makes it.
      train_images: the number of training images, a fixed draw of those not held out.
      test_images: the number of test images, a fixed draw; 0 takes all.
    """
    preset: Any = config()
    preset.ema_decay = 0.99
    preset.log_every = 100
    preset.checkpoint_every = 300
    preset.model = model | dict(mean=(0.2860,), std=(0.3530,))  # of the training images
    preset.data.update(
        source="idx:/usr/share/datasets/fashion-mnist",  # Debian's dataset-fashion-mnist
        image_size=28,
        channels=1,
        validation=0.1,
        train_images=train_images,
        test_images=test_images,
    )
    preset.optimizer.update(base_lr=4e-3, warmup_epochs=1.0, clip_norm=1.0)
    preset.evaluation.batch_size = 500
    return preset
