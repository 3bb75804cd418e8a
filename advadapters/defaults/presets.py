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
    preset.model = model
    preset.model.mean = preset.model.std = (0.5,)
    preset.data.update(source="digits", image_size=8, channels=1, flip=False)
    preset.optimizer.update(base_lr=4e-3, clip_norm=1.0)
    preset.evaluation.batch_size = 120
    return preset
