"""A density on a rectangle of the plane, bilinear between the nodes of a regular lattice.

Its mass is known exactly, and so are its draws.
"""

from types import ModuleType

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from .._types import Array, Scalar

_TINY = 1e-300  # of a density, in the place of zero: far below any that matters, above underflow


class Bilinear(eqx.Module):
    """f(y) at the nodes origin + step (i, j) of a lattice, bilinear in between, zero outside.

    Normalised at construction. All methods take an `xp` module (numpy or jax.numpy).

    Attributes:
        origin: the first node.
        step: of the lattice, the same in both directions.
        density: f at the nodes.
    """

    origin: Float[Array, "2"]
    step: Float[Array, ""]
    density: Float[Array, "rows columns"]

    @classmethod
    def through(
        cls,
        origin: Float[np.ndarray, "2"],
        step: Scalar,
        log_values: Float[np.ndarray, "rows columns"],
    ) -> "Bilinear":
        """Normalise exp(log_values) over the rectangle."""
        raw = cls(
            np.asarray(origin, np.float64),
            np.asarray(step, np.float64),
            np.exp(log_values - np.max(log_values)),
        )
        return cls(raw.origin, raw.step, raw.density / np.sum(raw._masses(np)))

    def log_prob(self, y: Float[Array, "*batch 2"], xp: ModuleType = np) -> Float[Array, "*batch"]:
        """Log density, -inf outside the rectangle."""
        cell, place = self.locate(y, xp)
        inside = xp.all((place >= 0.0) & (place <= 1.0), axis=-1)
        return xp.where(
            inside,
            xp.log(xp.maximum(interpolate(self.density, cell, xp.clip(place, 0.0, 1.0)), _TINY)),
            -np.inf,
        )

    def inverse_cdf(
        self, u: Float[Array, "*batch 3"], xp: ModuleType = np
    ) -> Float[Array, "*batch 2"]:
        """A draw from three uniforms: the first picks a cell, the others the place in it.

        In closed form: a marginal that is linear along the first side, then a conditional that is
        linear along the second.
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

    def locate(
        self, y: Float[Array, "*batch 2"], xp: ModuleType = np
    ) -> tuple[Int[Array, "*batch 2"], Float[Array, "*batch 2"]]:
        """The cell of each point, the nearest one for points outside, and the place in it.

        The place is in [0, 1] for points inside the rectangle.
        """
        return locate(y, self.origin, self.step, self.density.shape, xp)

    def _masses(self, xp: ModuleType) -> Float[Array, "cell_rows cell_columns"]:
        """Mass of each cell: its area times the mean of its corners."""
        f = self.density
        return 0.25 * self.step**2 * (f[1:, 1:] + f[:-1, 1:] + f[1:, :-1] + f[:-1, :-1])


def locate(
    y: Float[Array, "*batch 2"],
    origin: Float[Array, "2"],
    step: Float[Array, ""],
    shape: tuple[int, ...],
    xp: ModuleType,
) -> tuple[Int[Array, "*batch 2"], Float[Array, "*batch 2"]]:
    """Cell and place of points on the lattice of `shape` nodes (further axes do not matter)."""
    at = (y - origin) / step
    corner = xp.clip(xp.floor(at), 0.0, np.array([shape[0] - 2.0, shape[1] - 2.0]))
    return corner.astype(int), at - corner


def interpolate(
    values: Float[Array, "rows columns *value"],
    cell: Int[Array, "*batch 2"],
    place: Float[Array, "*batch 2"],
) -> Float[Array, "..."]:
    """Bilinear interpolation at the places in the cells, `[*batch, *value]`."""
    trailing = (...,) + (None,) * (values.ndim - 2)
    i, j, s, t = cell[..., 0], cell[..., 1], place[..., 0][trailing], place[..., 1][trailing]
    left = (1 - t) * values[i, j] + t * values[i, j + 1]
    right = (1 - t) * values[i + 1, j] + t * values[i + 1, j + 1]
    return (1 - s) * left + s * right


def _linear_quantile(
    start: Float[Array, "*batch"],
    end: Float[Array, "*batch"],
    u: Float[Array, "*batch"],
    xp: ModuleType,
) -> Float[Array, "*batch"]:
    """Inverse distribution function on [0, 1] of a density that is linear from `start` to `end`."""
    # The root of a quadratic equation in the form that does not cancel where the slope is small.
    root = xp.sqrt(start**2 + (end**2 - start**2) * u)
    return xp.clip(u * (start + end) / xp.maximum(start + root, _TINY), 0.0, 1.0)


__all__ = ["Bilinear", "interpolate", "locate"]
