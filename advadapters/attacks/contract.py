"""What attacks share."""

import jax
import jax.numpy as jnp

from advadapters import trees


def ascent(objective):
    """(points, ...) -> (rows [B], more) as (points, ...) -> (rows, more, slopes of rows).

    Slopes are finite, and no row is NaN: a loss without a value ranks below all others.
    """

    def total(points, *args):
        rows, more = objective(points, *args)
        return jnp.sum(rows), (rows, more)

    def look(points, *args):
        (_, (rows, more)), slopes = gradient(points, *args)
        return jnp.where(jnp.isnan(rows), -jnp.inf, rows), more, trees.finite(slopes)

    gradient = jax.value_and_grad(total, has_aux=True)
    return look


def rows_where(choose, new, old):
    """Row by row `new` where `choose` [B], else `old`."""
    return jnp.where(choose.reshape(-1, *[1] * (new.ndim - 1)), new, old)
