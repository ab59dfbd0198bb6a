"""A density on a rectangle of the plane, bilinear between the nodes of a regular lattice.

Exact mass, exact draws.
"""

import equinox as eqx
import numpy as np

from .._types import Array

_TINY = 1e-300


class Bilinear(eqx.Module):
    """f(y) on lattice nodes `origin + step (i, j)` with values `density [n, m]`, bilinear in
    between, zero outside.

    Normalised at construction. All methods take arrays with points in the last axis and an `xp`
    module (numpy or jax.numpy).
    """

    origin: Array
    step: Array
    density: Array

    @classmethod
    def through(cls, origin: np.ndarray, step: float, log_values: np.ndarray) -> "Bilinear":
        """Normalise exp(log_values) over the rectangle."""
        raw = cls(
            np.asarray(origin, np.float64),
            np.asarray(step, np.float64),
            np.exp(log_values - np.max(log_values)),
        )
        return cls(raw.origin, raw.step, raw.density / np.sum(raw._masses(np)))

    def log_prob(self, y: Array, xp=np) -> Array:
        """`[..., 2]` to `[...]`: -inf outside the rectangle."""
        cell, place = self.locate(y, xp)
        inside = xp.all((place >= 0.0) & (place <= 1.0), axis=-1)
        return xp.where(
            inside,
            xp.log(xp.maximum(interpolate(self.density, cell, xp.clip(place, 0.0, 1.0)), _TINY)),
            -np.inf,
        )

    def inverse_cdf(self, u: Array, xp=np) -> Array:
        """Points `[..., 2]` from uniforms `[..., 3]`.

        The first picks a cell, the others the place in it, in closed form.
        """
        total = xp.cumsum(self._masses(xp).reshape(-1))
        index = xp.clip(
            xp.searchsorted(total, u[..., 0] * total[-1], side="right"), 0, len(total) - 1
        )
        row, column = index // (self.density.shape[1] - 1), index % (self.density.shape[1] - 1)
        low, high = self.density[row, column], self.density[row + 1, column]
        low_next, high_next = self.density[row, column + 1], self.density[row + 1, column + 1]
        first = _linear_quantile(low + low_next, high + high_next, u[..., 1], xp)
        second = _linear_quantile(
            (1 - first) * low + first * high,
            (1 - first) * low_next + first * high_next,
            u[..., 2],
            xp,
        )
        corner = xp.stack([row, column], axis=-1).astype(self.density.dtype)
        return self.origin + self.step * (corner + xp.stack([first, second], axis=-1))

    def locate(self, y: Array, xp=np) -> tuple[Array, Array]:
        """The cell `[..., 2]` of each point, the nearest one outside, and the place in it, in [0,
        1] inside.
        """
        return locate(y, self.origin, self.step, self.density.shape, xp)

    def _masses(self, xp) -> Array:
        """Mass of each cell `[n - 1, m - 1]`: its area times the mean of its corners."""
        f = self.density
        return 0.25 * self.step**2 * (f[1:, 1:] + f[:-1, 1:] + f[1:, :-1] + f[:-1, :-1])


def locate(y: Array, origin: Array, step: Array, shape: tuple[int, ...], xp) -> tuple[Array, Array]:
    """Cell and place of points `[..., 2]` on the lattice of `shape` nodes."""
    at = (y - origin) / step
    corner = xp.clip(xp.floor(at), 0.0, np.array([shape[0] - 2.0, shape[1] - 2.0]))
    return corner.astype(int), at - corner


def interpolate(values: Array, cell: Array, place: Array) -> Array:
    """Bilinear interpolation of `values [n, m, ...]` at cells and places `[..., 2]`."""
    trailing = (...,) + (None,) * (values.ndim - 2)
    i, j, s, t = cell[..., 0], cell[..., 1], place[..., 0][trailing], place[..., 1][trailing]
    left = (1 - t) * values[i, j] + t * values[i, j + 1]
    right = (1 - t) * values[i + 1, j] + t * values[i + 1, j + 1]
    return (1 - s) * left + s * right


def _linear_quantile(start: Array, end: Array, u: Array, xp) -> Array:
    """Inverse distribution function on [0, 1] of the density that runs linearly from `start` to
    `end`.
    """
    root = xp.sqrt(start**2 + (end**2 - start**2) * u)
    return xp.clip(u * (start + end) / xp.maximum(start + root, _TINY), 0.0, 1.0)


__all__ = ["Bilinear", "interpolate", "locate"]
