"""A density on the line whose logarithm is piecewise linear, with exponential tails.

Its normalising constant is known exactly, and so are its draws.
"""

from types import ModuleType

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from .._types import Array

# Of the range of the nodes, per nat: how slowly a tail may fall. A density that still rises at an
# end has a tail all the same, one that is a thousand ranges long.
_LEAST_FALL = 1e-3
# |slope x width| below which a cell counts as flat, where expm1(rise) / rise is 0 / 0: its next
# term, rise^2 / 6, is below rounding.
_FLAT = 1e-8


class LogLinear(eqx.Module):
    """log f(t) linear between nodes; normalised at construction.

    Beyond the ends the log density goes on with the slope of the last cell, made to fall by at
    least 1e-3 nats over the range of the nodes, so that the support is the whole line. All methods
    take arrays of any shape and an `xp` module (numpy or jax.numpy).

    Attributes:
        nodes: ascending.
        log_density: log f at the nodes.
    """

    nodes: Float[Array, "nodes"]
    log_density: Float[Array, "nodes"]

    @classmethod
    def through(
        cls, nodes: Float[np.ndarray, "nodes"], log_values: Float[np.ndarray, "nodes"]
    ) -> "LogLinear":
        """Normalise exp(log_values) over the line."""
        raw = cls(
            np.asarray(nodes, np.float64), np.asarray(log_values, np.float64) - np.max(log_values)
        )
        return cls(raw.nodes, raw.log_density - np.log(raw._cumulative(np)[-1]))

    def log_prob(self, t: Float[Array, "*batch"], xp: ModuleType = np) -> Float[Array, "*batch"]:
        """log f(t), nats."""
        cell = self._cell(t, xp)
        slopes = self._slopes(xp)
        left = xp.clip(cell - 1, 0, len(self.nodes) - 1)
        return self.log_density[left] + slopes[cell] * (t - self.nodes[left])

    def inverse_cdf(self, u: Float[Array, "*batch"], xp: ModuleType = np) -> Float[Array, "*batch"]:
        """The t with P(T <= t) = u, for u in (0, 1); closed form in each cell."""
        mass = self._cumulative(xp)
        slopes, count = self._slopes(xp), len(self.nodes)
        cell = xp.clip(xp.searchsorted(mass, u, side="right"), 0, count)
        left = xp.clip(cell - 1, 0, count - 1)
        slope = slopes[cell]
        density = xp.exp(self.log_density[left])
        # Mass from the left node on (negative in the left tail):
        # density * (exp(slope * step) - 1) / slope = u - start.
        start = xp.where(cell == 0, mass[0], mass[xp.clip(cell - 1, 0, count - 1)])
        ratio = (u - start) / density
        small = xp.abs(slope * ratio) < 1e-10
        safe = xp.where(small, 1.0, slope)
        step = xp.where(small, ratio, xp.log1p(xp.maximum(safe * ratio, -1.0 + 1e-16)) / safe)
        return self.nodes[left] + step

    def _cell(self, t: Float[Array, "*batch"], xp: ModuleType) -> Int[Array, "*batch"]:
        """0 left of the first node, k between nodes k-1 and k, K right of the last."""
        return xp.searchsorted(self.nodes, t, side="right")

    def _slopes(self, xp: ModuleType) -> Float[Array, "cells"]:
        """Slopes of the cells, tails included."""
        inner = (self.log_density[1:] - self.log_density[:-1]) / (self.nodes[1:] - self.nodes[:-1])
        least = _LEAST_FALL / (self.nodes[-1] - self.nodes[0])
        return xp.concatenate([xp.maximum(inner[:1], least), inner, xp.minimum(inner[-1:], -least)])

    def _cumulative(self, xp: ModuleType) -> Float[Array, "cells"]:
        """Mass left of each node, then of the whole line."""
        slopes, f = self._slopes(xp), xp.exp(self.log_density)
        width = self.nodes[1:] - self.nodes[:-1]
        rise = slopes[1:-1] * width
        flat = xp.abs(rise) < _FLAT
        safe = xp.where(flat, 1.0, rise)
        cells = f[:-1] * width * xp.where(flat, 1.0 + 0.5 * rise, xp.expm1(safe) / safe)
        parts = xp.concatenate([f[:1] / slopes[:1], cells, -f[-1:] / slopes[-1:]])
        return xp.cumsum(parts)


__all__ = ["LogLinear"]
