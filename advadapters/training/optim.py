"""The optimizer: AdamW with warm-up, cosine decay, clipping and a guard against NaN."""

import optax

from advadapters import trees


def schedule(*, peak, steps, warmup_steps):
    """Linear from 0 to `peak`, then half a cosine to 0 at `steps`."""
    return optax.schedules.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps, decay_steps=steps
    )


NEVER = 2**31 - 1


def adamw(*, learning_rate, b1, b2, weight_decay, decayed, clip_norm):
    """A gradient transformation over {"shared", "adapters"}.

    learning_rate: step -> rate. decayed: path patterns, within a branch, of the
    leaves that weight decay acts on. clip_norm: global, 0 for none. An update that
    is not finite is skipped, parameters and moments untouched; `nonfinite` counts
    such updates in a row, and the loop stops when there are too many.
    """
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    update = optax.adamw(
        learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask(decayed)
    )
    # Past its limit optax lets bad updates through; ours is out of reach.
    return optax.apply_if_finite(optax.chain(clip, update), NEVER)


def mask(patterns):
    """variables -> the same tree of bools: whether a pattern matches the path."""

    def masked(variables):
        return {
            branch: trees.unflatten(
                {
                    path: any(trees.matches(p, path) for p in patterns)
                    for path in trees.flatten(tree)
                }
            )
            for branch, tree in variables.items()
        }

    return masked


def nonfinite(optimizer):
    """How many updates in a row were skipped because they were not finite."""
    return optimizer.notfinite_count
