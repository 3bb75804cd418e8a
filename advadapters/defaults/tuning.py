"""Ways to fine-tune a vision transformer: what is added, and what is trained."""

from advadapters.defaults.sections import Values, added

# {way: (kind of what is added, patterns of the layers it is added to)}
ATTENTION = (".*/q", ".*/k", ".*/v", ".*/proj")
MLP = (".*/fc1", ".*/fc2")
ADDED = {
    "lnlora": ("lnlora", ATTENTION + MLP),  # Yuan et al. 2024, all linear maps
    "lora": ("lora", ATTENTION + MLP),
    "lora_qv": ("lora", (".*/q", ".*/v")),  # as LoRA was first used (Hu et al. 2021)
    "lnlora_attention": ("lnlora", ATTENTION),
    "lnlora_mlp": ("lnlora", MLP),
    "bottleneck": ("bottleneck", (".*/proj", ".*/fc2")),
    "scale_shift": ("scale_shift", (".*/qkv", ".*/proj", ".*/fc1", ".*/fc2")),
}
# {way: patterns of the parameters that are trained}; nothing is added.
TRAINED = {"bitfit": (".*bias",), "linear_probe": ("head/.*",), "full": (".*",)}
FINE_TUNING = (*ADDED, *TRAINED)


def fine_tuning(name: str, rank: int, workdir: str) -> Values:
    """The keys of the config that a way of fine-tuning sets.

    What is added is named "lora" and trained together with the head.

    Args:
      name: a way in FINE_TUNING.
      rank: the rank of what is added.
      workdir: the folder of the run to start from.
    """
    if name in TRAINED:
        return dict(start=dict(workdir=workdir), trained=TRAINED[name])
    kind, targets = ADDED[name]
    return dict(
        model=dict(added={"lora": added(kind, targets, rank)}),
        start=dict(workdir=workdir, fresh=(".*_lora/.*",)),
        trained=(".*_lora/.*", "head/.*"),
    )
