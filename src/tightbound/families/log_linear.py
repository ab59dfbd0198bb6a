"""A density on the line whose logarithm is piecewise linear.

Exact normalisation, exact draws, exponential tails.
"""

import equinox as eqx
import numpy as np

from .._types import Array


class LogLinear(eqx.Module):
    """log f(t) linear between `nodes [K]` (ascending) with values `log_density [K]`, normalised at
    construction.

    Beyond the ends the log density goes on with the slope of the last cell, made to fall by at
    least 1e-3 per sd-like unit, so the support is the whole line. All methods take arrays of any
    shape and an `xp` module (numpy or jax.numpy).
    """

    nodes: Array
    log_density: Array

    @classmethod
    def through(cls, nodes: np.ndarray, log_values: np.ndarray) -> "LogLinear":
        """Normalise exp(log_values) over the line."""
        raw = cls(
            np.asarray(nodes, np.float64), np.asarray(log_values, np.float64) - np.max(log_values)
        )
        return cls(raw.nodes, raw.log_density - np.log(raw._cumulative(np)[-1]))

    def log_prob(self, t: Array, xp=np) -> Array:
        cell = self._cell(t, xp)
        slopes = self._slopes(xp)
        left = xp.clip(cell - 1, 0, len(self.nodes) - 1)
        return self.log_density[left] + slopes[cell] * (t - self.nodes[left])

    def inverse_cdf(self, u: Array, xp=np) -> Array:
        """The t with P(T <= t) = u, for u in (0, 1); closed form in each cell."""
        mass = self._cumulative(xp)
        slopes, count = self._slopes(xp), len(self.nodes)
        cell = xp.clip(xp.searchsorted(mass, u, side="right"), 0, count)
        left = xp.clip(cell - 1, 0, count - 1)
        slope = slopes[cell]
        density = xp.exp(self.log_density[left])
        # mass from the left node on (negative in the left tail): density * (exp(slope s) - 1) /
        # slope = u - mass
        start = xp.where(cell == 0, mass[0], mass[xp.clip(cell - 1, 0, count - 1)])
        ratio = (u - start) / density
        small = xp.abs(slope * ratio) < 1e-10
        safe = xp.where(small, 1.0, slope)
        step = xp.where(small, ratio, xp.log1p(xp.maximum(safe * ratio, -1.0 + 1e-16)) / safe)
        return self.nodes[left] + step

    def _cell(self, t: Array, xp) -> Array:
        """0 left of the first node, k between nodes k-1 and k, K right of the last."""
        return xp.searchsorted(self.nodes, t, side="right")

    def _slopes(self, xp) -> Array:
        """Slopes of the K + 1 cells, tails included."""
        inner = (self.log_density[1:] - self.log_density[:-1]) / (self.nodes[1:] - self.nodes[:-1])
        least = 1e-3 / (self.nodes[-1] - self.nodes[0])
        return xp.concatenate([xp.maximum(inner[:1], least), inner, xp.minimum(inner[-1:], -least)])

    def _cumulative(self, xp) -> Array:
        """Mass left of each node `[K]`, then of the whole line: `[K + 1]`."""
        slopes, f = self._slopes(xp), xp.exp(self.log_density)
        width = self.nodes[1:] - self.nodes[:-1]
        rise = slopes[1:-1] * width
        safe = xp.where(xp.abs(rise) < 1e-8, 1.0, rise)
        cells = (
            f[:-1] * width * xp.where(xp.abs(rise) < 1e-8, 1.0 + 0.5 * rise, xp.expm1(safe) / safe)
        )
        parts = xp.concatenate([f[:1] / slopes[:1], cells, -f[-1:] / slopes[-1:]])
        return xp.cumsum(parts)


__all__ = ["LogLinear"]
