"""The examples in docstrings run, and give what they say."""

import doctest
import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from advadapters import adapters, soups, trees

MODULES = (
    "trees",
    "soups.ingredients",
    "soups.learned",
    "soups.mixtures",
    "soups.protocol",
    "soups.sanity",
    "soups.scoring",
    "soups.search",
    "soups.selection",
)
NAMES = {"adapters": adapters, "jnp": jnp, "np": np, "soups": soups, "trees": trees}


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
