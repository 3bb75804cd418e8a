"""Config -> objects: the only reader of configs; everything below takes arguments."""

from advadapters.builders.run import (
    Run,
    Start,
    abstract_batch,
    abstract_images,
    abstract_state,
    build,
    eval_batches,
    initial_state,
    train_batches,
    train_step,
)
from advadapters.builders.use import (
    Evaluation,
    Networks,
    abstract_variables,
    build_network,
    initial_variables,
)

__all__ = [
    "Evaluation",
    "Networks",
    "Run",
    "Start",
    "abstract_batch",
    "abstract_images",
    "abstract_state",
    "abstract_variables",
    "build",
    "build_network",
    "eval_batches",
    "initial_state",
    "initial_variables",
    "train_batches",
    "train_step",
]
