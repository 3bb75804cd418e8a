"""Adapters by name: path patterns over a backbone's own parameter tree.

Any regular expression over paths is an adapter too. These are the usual ones, for the ViT
and the convolutional networks. To add one, add a row here.
"""

from collections.abc import Iterable

ADAPTERS = {
    "class_token": ("class_token",),
    "pos_embed": ("pos_embed",),
    "patch_embed": ("patch_embed/.*",),
    "stem": ("stem/.*",),
    "norms": (r"(.*/)?(\w+_)?norm\d?/.*",),
    "layer_scale": (r"blocks\w*/layer_scale[12]/gamma",),
    "head": ("head/.*",),
    "everything": (".*",),
    "nothing": (),
}


def patterns(names: Iterable[str]) -> tuple[str, ...]:
    """The path patterns of adapters, of which each is a name or a pattern itself.

    >>> adapters.patterns(["stem", "blocks_0/.*"])
    ('stem/.*', 'blocks_0/.*')
    """
    return tuple(pattern for name in names for pattern in ADAPTERS.get(name, (name,)))
