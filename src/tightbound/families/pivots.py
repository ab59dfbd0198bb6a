"""Which coordinates of a low-rank covariance determine a factor: see `woodbury.py`."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from .._numerics import namespace
from .._types import Array

# Power of 1 / eps of the largest squared ratio |U_i|^2 / D_i^2 that needs no swap. An identity
# beside it keeps eps^0.6 = 4e-10 of its digits in float64 and 7e-5 in float32. Ratios up to 1,300
# (24 in float32), which are those of most posteriors, leave the algebra as simple as it can be.
_SQUARED_RATIO = 0.4
# Of a row, in eps: what a few eliminations leave of it by rounding alone is smaller.
_ROUNDING = 100.0


def is_far(factor: Float[Array, "dim rank"], diagonal: Float[Array, "dim"]) -> Bool[Array, ""]:
    """Whether some coordinate has so little noise of its own that it must swap."""
    xp = namespace(factor, diagonal)
    return xp.any(xp.sum(factor**2, axis=1) > _limit(factor) * diagonal**2)


def pivots(
    factor: Float[Array, "dim rank"], diagonal: Float[Array, "dim"]
) -> tuple[Int[Array, "rank"], Bool[Array, "rank"]]:
    """Of each factor the coordinate that determines it, and whether one does.

    Gaussian elimination of D^-1 U with complete pivoting, while an entry is above the limit.
    """
    xp, (dim, rank) = namespace(factor, diagonal), factor.shape
    # D^-1 U, bounded so that squares do not overflow where D is zero.
    least = float(np.finfo(factor.dtype).tiny) ** 0.25
    size = xp.max(xp.abs(factor), axis=1)
    rows = factor / xp.maximum(diagonal, xp.maximum(least * size, least**2))[:, None]
    rounding = _ROUNDING * float(np.finfo(factor.dtype).eps) * xp.max(xp.abs(rows), axis=1)
    floor = xp.maximum(rounding, _limit(factor) ** 0.5)[:, None]
    if xp is np:
        pins, taken = np.zeros(rank, int), np.zeros(rank, bool)
        for _ in range(min(dim, rank)):
            pin, column, more = _largest(rows, floor)
            if not more:
                break
            rows = _eliminated(rows, pin, column)
            pins[column], taken[column] = pin, True
        return pins, taken

    def wanted(state: tuple[jax.Array, jax.Array, jax.Array]) -> Bool[Array, ""]:
        return _largest(state[0], floor)[2]

    def choose(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows, pins, taken = state
        pin, column, _ = _largest(rows, floor)
        rest = jnp.asarray(_eliminated(rows, pin, column))
        return rest, pins.at[column].set(pin), taken.at[column].set(True)

    # It ends after `rank` rounds at the latest: each leaves a column of zeros.
    start = (jnp.asarray(rows), jnp.zeros(rank, int), jnp.zeros(rank, bool))
    return jax.lax.while_loop(wanted, choose, start)[1:]


def constant(array: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The array, as a constant to derivatives."""
    return jax.lax.stop_gradient(array) if isinstance(array, jax.Array) else array


def _limit(factor: Float[Array, "dim rank"]) -> float:
    """The largest squared ratio |U_i|^2 / D_i^2 that needs no swap."""
    return float(np.finfo(factor.dtype).eps) ** -_SQUARED_RATIO


def _largest(
    rows: Float[Array, "dim rank"], floor: Float[Array, "dim 1"]
) -> tuple[Int[Array, ""], Int[Array, ""], Bool[Array, ""]]:
    """Row and column of the largest entry above its floor, and whether there is one."""
    xp = namespace(rows)
    sizes = xp.abs(rows)
    sizes = xp.where(sizes > floor, sizes, 0.0)
    largest = xp.max(sizes)
    # The first within a factor of two: of entries that are equal but for rounding, host and device
    # would else take different ones, and the square root of S depends on which.
    row, column = xp.divmod(xp.argmax(sizes >= 0.5 * largest), rows.shape[1])
    return row, column, largest > 0.0


def _eliminated(
    rows: Float[Array, "dim rank"], pin: Int[Array, ""], column: Int[Array, ""]
) -> Float[Array, "dim rank"]:
    """The rows less the multiples of row `pin` that make `column` zero; row and column are zero."""
    xp = namespace(rows)
    multiples = rows[:, column] / rows[pin, column]
    rest = rows - multiples[:, None] * rows[pin][None, :]
    done = (xp.arange(rows.shape[0])[:, None] == pin) | (
        xp.arange(rows.shape[1])[None, :] == column
    )
    return xp.where(done, 0.0, rest)


__all__ = ["constant", "is_far", "pivots"]
