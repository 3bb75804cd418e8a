"""Adapters by name: path patterns over a backbone's own parameter tree.

Any regular expression over paths is an adapter too; these are the usual ones, for
the ViT and the convolutional networks. To add one: a row here.
"""

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


def patterns(names):
    """Adapter names or patterns, in any mixture -> path patterns."""
    return tuple(p for name in names for p in ADAPTERS.get(name, (name,)))
