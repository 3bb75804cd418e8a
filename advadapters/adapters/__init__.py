"""Adapters by name: path patterns over a backbone's own parameter tree.

Any regular expression over paths is an adapter too; these are the usual ones, for
the ViT. To add one: a row here.
"""

ADAPTERS = {
    "class_token": ("class_token",),
    "pos_embed": ("pos_embed",),
    "patch_embed": ("patch_embed/.*",),
    "norms": (r"(.*/)?norm\d?/.*",),
    "head": ("head/.*",),
    "everything": (".*",),
}


def patterns(names):
    """Adapter names or patterns, in any mixture -> path patterns."""
    return tuple(p for name in names for p in ADAPTERS.get(name, (name,)))
