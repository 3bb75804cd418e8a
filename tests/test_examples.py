"""The examples in docstrings run, and give what they say."""

import doctest
import importlib
import pathlib
import re
import types

import jax.numpy as jnp
import numpy as np
import pytest

from advadapters import adapters, models, soups, trees
from advadapters.adapters import lora  # noqa: F401, as adapters.lora
from advadapters.training import loop, oat

MODULES = (
    "adapters",
    "adapters.lora",
    "trees",
    "models.preact_resnet",
    "models.resnet",
    "models.wide_resnet",
    "training.loop",
    "training.oat",
    "soups.ingredients",
    "soups.learned",
    "soups.mixtures",
    "soups.protocol",
    "soups.sanity",
    "soups.scoring",
    "soups.search",
    "soups.selection",
)
NAMES = {
    "adapters": adapters,
    "jnp": jnp,
    "np": np,
    "loop": loop,
    "models": models,
    "oat": oat,
    "soups": soups,
    "trees": trees,
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    module = importlib.import_module(f"advadapters.{name}")
    failed, tried = doctest.testmod(module, globs=dict(NAMES))
    assert tried and not failed


def test_every_function_that_soups_offers_has_an_example():
    for name in soups.__all__:
        assert (
            isinstance(getattr(soups, name), type) or ">>> " in getattr(soups, name).__doc__
        ), name


def test_the_listings_of_the_page_on_soups_run(capsys):
    """In their order, on a linear network of four ingredients."""
    page = (pathlib.Path(__file__).parents[1] / "docs" / "soups.md").read_text()
    draw = np.random.default_rng(0)
    kernels = draw.normal(size=(4, 6, 2)).astype(np.float32)
    images = draw.normal(size=(64, 6)).astype(np.float32)
    labels = np.argmax(images @ kernels.mean(axis=0), axis=1)
    names = {
        "network": types.SimpleNamespace(evaluate=lambda p, x: x @ p["params"]["kernel"]),
        "variables": {
            "shared": {},
            "adapters": {"kernel": kernels},
            "stats": {"shared": {}, "adapters": {}},
        },
        **{"images": images, "labels": labels},
        **{"attacked": images, "attacked_labels": labels},
    }
    for listing in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(listing, "soups.md", "exec"), names)
    assert names["learned"].weights.sum() == pytest.approx(1)
    assert len(capsys.readouterr().out.splitlines()) >= 3
