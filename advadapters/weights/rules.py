"""Names of other programs and ours: one table for each family, for reading and writing.

    Rule("blocks_{i}/attn/qkv/kernel", ("blocks.{i}.attn.qkv.weight",), "linear")

says which leaf here is which array there, and `layouts` how one is made of the other. What
has several spellings is brought to the table's before (`Family.spellings`), so a table has
one name for everything, which is the one that is written.
"""

import difflib
import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from advadapters.errors import UsageError
from advadapters.weights import layouts
from advadapters.weights.layouts import Geometry, Leaf, Stored

# What wrappers put before names, however many of them.
WRAPPERS = r"(?:(?:module|model|attacker|backbone|base_model|_orig_mod)\.)*"


class Rule(NamedTuple):
    """One leaf: its path here, its names there, the layout there.

    {i} is a number, {b-1} that number less one. when: (setting of the model, value) that
    the rule belongs to, as the same leaf has several names there. branch: of variables.
    """

    ours: str
    theirs: tuple[str, ...]
    layout: str
    when: tuple[str, Any] | None = None
    branch: str = "params"


class Family(NamedTuple):
    """How one program names and lays out the weights of one kind of model.

    model: its row of MODELS. rules: the table. prefix: pattern of what may stand before
    names. spellings: (pattern, replacement) of parts of names, one after the other.
    ignored: pattern of names that are no part of the network that is used. usual: settings
    of config.model that this program's networks have, unless their files say otherwise.
    """

    name: str
    model: str
    rules: tuple[Rule, ...]
    prefix: str = WRAPPERS
    spellings: tuple[tuple[str, str], ...] = ()
    ignored: str = r"(?!)"
    usual: dict[str, Any] = {}


class Named(NamedTuple):
    """What a family makes of the arrays of a file.

    leaves: {branch: {path: leaf}}. settings: of the model, as the names show them. ignored:
    the names without a leaf.
    """

    leaves: dict[str, dict[str, Leaf]]
    settings: dict[str, Any]
    ignored: list[str]


# Parts of names of what no model here has, and what that is.
FOREIGN = (
    (r"rope|rotary|freqs_cis|inv_freq", "rotary positions (RoPE)"),
    (r"mlp\.(w12|w1|w2|w3|fc1_[gx]|weights_in)\b|swiglu", "SwiGLU"),
    (r"attn_pool|MAPHead|attention_pool|attnpool|head\.probe", "a head of attention"),
    (r"relative_position|rel_pos", "relative positions"),
    (r"\b[qk]_norm\b|query_norm|attn\.norm|mlp\.norm", "more norms inside blocks"),
    (r"\b(attns|ffns)\.\d|mlp_proj|in_proj", "parallel blocks"),
    (
        r"patch_embed\.(backbone|conv|stem|norm|proj\.\d)|conv_stem|root_block|block_units",
        "a stem of convolutions",
    ),
)

_PLACE = re.compile(r"\{(\w)(-1)?\}")


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """The pattern of all names that a template makes."""
    parts, end = [], 0
    for place in _PLACE.finditer(template):
        parts.append(re.escape(template[end : place.start()]))
        parts.append(f"(?P<{place[1]}>0|[1-9][0-9]{{0,3}})")
        end = place.end()
    return re.compile("".join([*parts, re.escape(template[end:])]))


def _numbers(template: str, name: str) -> dict[str, int] | None:
    """The numbers of a name that a template makes, None of any other name."""
    match = _pattern(template).fullmatch(name)
    if match is None:
        return None
    less = {place[1]: bool(place[2]) for place in _PLACE.finditer(template)}
    return {key: int(text) + less[key] for key, text in match.groupdict().items()}


def _filled(template: str, numbers: Mapping[str, int]) -> str:
    """The name that a template makes of numbers."""
    return _PLACE.sub(lambda place: str(numbers[place[1]] - bool(place[2])), template)


def _bare(family: Family, name: str) -> str:
    """A name without what wrappers put before it."""
    return re.sub(f"^{family.prefix}", "", name)


def spelled(family: Family, name: str) -> str:
    """A name as the family's table has it, if it is one of the family's."""
    name = _bare(family, name)
    for pattern, replacement in family.spellings:
        name = re.sub(pattern, replacement, name)
    return name


class _Place(NamedTuple):
    """Where an array goes: the rule, which of its names it has, and the numbers in it."""

    rule: Rule
    part: int
    numbers: dict[str, int]

    @property
    def path(self) -> tuple[str, str]:
        """(branch, path) of the leaf."""
        return self.rule.branch, _filled(self.rule.ours, self.numbers)


def _find(family: Family, name: str) -> _Place | None:
    """Where the array with a name goes, spelled as in the table; None for nowhere."""
    for rule in family.rules:
        for part, template in enumerate(rule.theirs):
            numbers = _numbers(template, name)
            if numbers is not None:
                return _Place(rule, part, numbers)
    return None


def choose(families: tuple[Family, ...], names: list[str]) -> Family:
    """The family whose table has the most of the names.

    Of several with the same, it is the one that has the most of them as they are spelled.
    Raises UsageError where none has any, and says what the network has that no model has.
    """
    few = names[:2_000]
    hits = [sum(bool(_find(f, spelled(f, name))) for name in few) for f in families]
    if most := max(hits):
        best = [f for f, count in zip(families, hits, strict=True) if count == most]
        return max(best, key=lambda f: sum(bool(_find(f, _bare(f, n))) for n in few))
    examples = ", ".join(repr(name) for name in names[:3]) or "nothing"
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    raise UsageError(
        f"no family of weights has such names: {examples}{more}; there are: "
        + ", ".join(family.name for family in families)
    )


def read(family: Family, arrays: Mapping[str, Stored]) -> Named:
    """The leaves that a family makes of {name: array}.

    An array may be there under several names, if all are equal. Raises UsageError for names
    that are neither in the table nor ignored, and for arrays that `layouts.read` refuses.
    """
    slots: dict[tuple[str, str], dict[int, tuple[str, Stored]]] = {}
    rules: dict[tuple[str, str], Rule] = {}
    settings, ignored, unknown = dict[str, Any](), [], []
    for full, array in arrays.items():
        name = spelled(family, full)
        place = _find(family, name)
        if place is None:
            (ignored if re.fullmatch(family.ignored, name) else unknown).append(full)
            continue
        slot = slots.setdefault(place.path, {})
        if place.part in slot:
            _need_equal(full, array, *slot[place.part])
        slot[place.part], rules[place.path] = (full, array), place.rule
        if place.rule.when:
            settings |= dict([place.rule.when])
    if unknown:
        raise UsageError(_refusal(family, unknown))
    leaves: dict[str, dict[str, Leaf]] = {"params": {}, "batch_stats": {}}
    for (branch, path), slot in slots.items():
        leaves[branch][path] = _leaf(rules[branch, path], path, slot)
    return Named(leaves, settings, ignored)


def _leaf(rule: Rule, path: str, slot: Mapping[int, tuple[str, Stored]]) -> Leaf:
    """The leaf at a path of its arrays with their names, by their parts of the rule."""
    names = [name for name, _ in slot.values()]
    if len(slot) < len(rule.theirs):
        lacking = [t for part, t in enumerate(rule.theirs) if part not in slot]
        raise UsageError(
            f"{path} is made of {len(rule.theirs)} arrays; beside {', '.join(names)} there "
            f"is no {' and no '.join(lacking)}"
        )
    parts = [slot[part] for part in range(len(rule.theirs))]
    leaf = layouts.read(rule.layout, [a for _, a in parts], [n for n, _ in parts])
    if path.endswith("/var") and (leaf < 0).any():
        raise UsageError(f"{names[0]} has variances below 0")
    return leaf


def _need_equal(full: str, array: Stored, other: str, same: Stored) -> None:
    """Raises UsageError unless two arrays of one leaf are equal."""
    if not np.array_equal(array, same):
        raise UsageError(f"{full} and {other} are the same leaf and differ")


def _refusal(family: Family, unknown: list[str]) -> str:
    """One line about names that are not in a family's table."""
    for pattern, what in FOREIGN:
        for name in unknown:
            if re.search(pattern, name):
                return f"{name}: the network has {what}, which no model here has"
    known = [name for rule in family.rules for name in rule.theirs]
    more = f" and {len(unknown) - 1:,} more" if unknown[1:] else ""
    short = spelled(family, unknown[0])[:200]
    near = difflib.get_close_matches(short, known, n=2, cutoff=0.0)
    return (
        f"{unknown[0][:200]}{more}: {family.name} has no such name; near ones are "
        + ", ".join(near)
    )


def write(
    family: Family,
    leaves: Mapping[str, Mapping[str, Leaf]],
    geometry: Geometry,
    settings: Mapping[str, Any],
) -> dict[str, Leaf]:
    """{name: array} of {branch: {path: leaf}}, of which `read` makes the same leaves.

    settings: of config.model, for names that depend on them. Raises UsageError for a leaf
    that the family has no name for.
    """
    arrays: dict[str, Leaf] = {}
    for branch, flat in leaves.items():
        for path, leaf in flat.items():
            rule, numbers = _rule_of(family, branch, path, settings)
            names = [_filled(template, numbers) for template in rule.theirs]
            parts = layouts.write(rule.layout, leaf, geometry)
            arrays |= dict(zip(names, parts, strict=True))
    return arrays


def _rule_of(
    family: Family, branch: str, path: str, settings: Mapping[str, Any]
) -> tuple[Rule, dict[str, int]]:
    """(the rule of a leaf, its numbers). Raises UsageError if there is none."""
    for rule in family.rules:
        fits = rule.when is None or settings.get(rule.when[0]) == rule.when[1]
        if fits and rule.branch == branch:
            numbers = _numbers(rule.ours, path)
            if numbers is not None:
                return rule, numbers
    raise UsageError(f"{path} has no name in {family.name}")
