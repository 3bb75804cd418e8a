"""The keys that a config leaves out, with the values that they have by default."""

import contextlib
from collections.abc import Mapping
from typing import Any

from advadapters import plugins, schema
from advadapters.defaults import sections
from advadapters.defaults.sections import Values
from advadapters.errors import UsageError


def complete(config: Values) -> Values:
    """A config, nested dicts, with the keys that it leaves out as they are by default.

    So a run keeps what it was trained with, though it was left to defaults, and a run from
    before a key was introduced can be read. Values that should be sections and are not stay
    as they are: the builders refuse them.
    """
    from advadapters.attacks import ATTACKS
    from advadapters.training.optim import OPTIMIZERS

    config = {"plugins": ()} | config
    if isinstance(config["plugins"], tuple):
        plugins.load(config["plugins"])
    defaults, model = sections.config().to_dict(), config.get("model")
    if isinstance(model, dict) and {"name", "size"} <= model.keys():
        with contextlib.suppress(UsageError):  # the builders know what to say of the name
            defaults["model"] = sections.model(model["name"], model["size"])
    for key in ("model", "data", "evaluation", "start"):
        if isinstance(config.get(key), dict):
            config[key] = defaults[key] | config[key]
    config["optimizer"] = _filled(OPTIMIZERS, config.get("optimizer"))
    if isinstance(config.get("attacks"), dict):
        config["attacks"] = {
            name: _filled(ATTACKS, attack, eps_warmup=0.0)
            for name, attack in config["attacks"].items()
        }
    suites = (config.get("evaluation") or {}).get("suites")
    if isinstance(suites, dict):
        suites = {name: _filled(ATTACKS, suite) for name, suite in suites.items()}
        config["evaluation"] = config["evaluation"] | {"suites": suites}
    return config


def _filled(table: Mapping[str, Any], section: Any, **more: Any) -> Any:
    """A section with the defaults of the row in the table that its key `name` names.

    more: defaults of keys that are no settings of the row. What is no such section is
    returned as it is.
    """
    if not isinstance(section, dict) or section.get("name") not in table:
        return section
    return schema.defaults_of(table[section["name"]]) | more | section
