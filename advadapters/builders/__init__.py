"""Config -> objects: the only reader of configs; everything below takes arguments."""

from advadapters.builders.run import (
    Evaluation,
    Run,
    Start,
    abstract_batch,
    abstract_images,
    abstract_state,
    abstract_variables,
    build,
    eval_batches,
    initial_state,
    train_batches,
    train_step,
)

__all__ = [
    "Evaluation",
    "Run",
    "Start",
    "abstract_batch",
    "abstract_images",
    "abstract_state",
    "abstract_variables",
    "build",
    "eval_batches",
    "initial_state",
    "train_batches",
    "train_step",
]
