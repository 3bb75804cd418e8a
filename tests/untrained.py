"""Runs that nothing trained, where what is tested is not training."""

import importlib.machinery
import pathlib

import jax

from advadapters import builders, meshes
from advadapters.configs import override
from advadapters.runs import opening

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def write(workdir, file, variant="", flags=(), seed=0):
    """A finished run of a config changed by flags, with the network that it starts from."""
    path = str(CONFIGS / file)
    config = importlib.machinery.SourceFileLoader("config", path).load_module()
    config = override(config.get_config(variant).to_dict(), flags) | {"seed": seed}
    run = builders.build(config, meshes.make())
    first = jax.jit(lambda: builders.initial_state(run).variables)
    return opening.write_run(config, workdir, lambda _: first())
