"""A fixed-basis exponential family: several modes, and still convex in what the network returns."""

import functools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import numpy as np
from jaxtyping import Float

from ..._types import Array
from ...families.head import AbstractHead

_NODES = 1001  # of the grid that the density is normalised on: some seventy a spline
_BASE_SD = 1.5  # of the base measure on the line, in prior sds
_DEGREE = 2  # of the splines: the lowest with a continuous slope, which searches need


class Spline(AbstractHead):
    """Independent coordinates with quadratic splines: log q = sum_k eta_k B_k(u) + log h - A.

    An exponential family with B-splines as its statistics, so convex in eta *and* able to show
    several modes; A is an integral on a grid. On the line the base measure h is N(0, 1.5^2), and
    beyond `reach` the spline keeps its last value, so that tails are Gaussian; on the circle h is
    flat and the basis periodic. For one or two coordinates, or for marginals: coordinates are
    independent given x, so correlations are lost.

    Source: the fixed-basis family of the follow-up of McNamara, Loper & Regier 2024 on latent basis
    expansions (14 splines of degree 2, normalised on 1,000 points).

    Attributes:
        dim: number of coordinates.
        basis: number of splines for each.
        periodic: whether the coordinates are angles.
        reach: half the width of the splines' interval, in prior sds (pi for angles).
    """

    # A field in the place of a property: equinox allows it, pyright has no way to say so.
    dim: int = eqx.field(static=True, default=1)  # pyright: ignore[reportIncompatibleMethodOverride]
    basis: int = eqx.field(static=True, default=14)
    periodic: bool = eqx.field(static=True, default=False)
    reach: float = eqx.field(static=True, default=4.0)
    convex: ClassVar[bool] = True

    def __check_init__(self):
        if self.dim < 1 or self.basis < 4 or self.reach <= 0:
            raise ValueError(
                "Spline head: `dim` must be at least 1, `basis` at least 4 and `reach` positive,"
                f" got {self.dim}, {self.basis}, {self.reach}."
            )

    @property
    def size(self) -> int:
        return self.dim * self.basis

    @property
    def circular(self) -> tuple[bool, ...]:
        return (self.periodic,) * self.dim

    def log_prob(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        return jnp.sum(jax.vmap(self._log_prob_of_one)(self._rows(eta), u))

    def sample(self, eta: Float[Array, "size"], key: jax.Array) -> Float[Array, "dim"]:
        return jax.vmap(self._draw_one)(self._rows(eta), jr.split(key, self.dim))

    def statistics(self, u: Float[Array, ""]) -> Float[Array, "basis"]:
        """B_k(u) of one number; they sum to one."""
        return quadratic_splines(u, -self._end, self._end, self.basis, self.periodic)

    def log_partition(self, eta: Float[Array, "basis"]) -> Float[Array, ""]:
        """A of one coordinate: the trapezoid rule on 1001 nodes, and the two tails."""
        return jsp.logsumexp(jnp.concatenate([*self._log_masses(eta)]))

    @property
    def _end(self) -> float:
        return float(np.pi) if self.periodic else self.reach

    def _rows(self, eta: Float[Array, "size"]) -> Float[Array, "dim basis"]:
        return eta.reshape((self.dim, self.basis))

    def _log_base(self, u: Float[Array, "*nodes"]) -> Float[Array, "*nodes"]:
        return (
            jnp.zeros_like(u)
            if self.periodic
            else -0.5 * (u / _BASE_SD) ** 2 - np.log(_BASE_SD * np.sqrt(2 * np.pi))
        )

    def _log_prob_of_one(self, eta: Float[Array, "basis"], u: Float[Array, ""]) -> Float[Array, ""]:
        return self.statistics(u) @ eta + self._log_base(u) - self.log_partition(eta)

    def _log_masses(
        self, eta: Float[Array, "basis"]
    ) -> tuple[Float[Array, "nodes"], Float[Array, "2"]]:
        """Logarithms of the unnormalised mass at each node, and of the two tails."""
        nodes, weights, values = _grid(self.basis, self._end, self.periodic)
        nodes = jnp.asarray(nodes, eta.dtype)
        at_nodes = (
            jnp.asarray(values, eta.dtype) @ eta
            + self._log_base(nodes)
            + jnp.asarray(np.log(weights), eta.dtype)
        )
        if self.periodic:
            return at_nodes, jnp.full((2,), -jnp.inf, eta.dtype)
        tail = jsp.log_ndtr(jnp.asarray(-self.reach / _BASE_SD, eta.dtype))
        return at_nodes, 0.5 * jnp.stack([eta[0] + eta[1], eta[-2] + eta[-1]]) + tail

    def _draw_one(self, eta: Float[Array, "basis"], key: jax.Array) -> Float[Array, ""]:
        """A node by its mass, spread over its cells; or a tail.

        The spread is a triangle, which makes the density of the draws piecewise linear.
        """
        choose, spread, outside = jr.split(key, 3)
        inside, tails = self._log_masses(eta)
        i = jr.categorical(choose, jnp.concatenate([inside, tails]))
        step = 2 * self._end / (_NODES - 1)
        a, b = jr.uniform(spread, (2,), eta.dtype)
        node = -self._end + step * jnp.minimum(i, _NODES - 1).astype(eta.dtype)
        u = node + step * (a + b - 1)
        # At the ends half of the triangle lies outside: it is folded back.
        u = jnp.where(
            u < -self._end, -2 * self._end - u, jnp.where(u > self._end, 2 * self._end - u, u)
        )
        # A tail is that of the base measure: the spline is constant beyond its ends.
        level = jr.uniform(outside, (), eta.dtype, 1e-12, 1.0) * jsp.ndtr(
            jnp.asarray(-self._end / _BASE_SD, eta.dtype)
        )
        tail = -_BASE_SD * jsp.ndtri(level)
        return jnp.where(i < _NODES, u, jnp.where(i == _NODES, -tail, tail))


def quadratic_splines(
    u: Float[Array, ""], low: float, high: float, basis: int, periodic: bool
) -> Float[Array, "basis"]:
    """The B-splines of degree 2 on equal knots, at one number.

    Beyond the ends they keep their values there. They sum to one everywhere: on the line the first
    and the last are centred half a cell outside the interval.
    """
    cells = basis if periodic else basis - _DEGREE
    t = (u - low) / (high - low) * cells
    t = jnp.mod(t, cells) if periodic else jnp.clip(t, 0.0, cells)
    centres = jnp.arange(-1, basis - 1, dtype=u.dtype) + 0.5  # of spline k, in cells
    distance = t - centres
    if periodic:
        distance = jnp.mod(distance + 0.5 * cells, cells) - 0.5 * cells
    distance = jnp.abs(distance)
    outer = 0.5 * jnp.maximum(1.5 - distance, 0.0) ** 2
    return jnp.where(distance < 0.5, 0.75 - distance**2, outer)


@functools.lru_cache(maxsize=32)
def _grid(
    basis: int, end: float, periodic: bool
) -> tuple[
    Float[np.ndarray, "nodes"], Float[np.ndarray, "nodes"], Float[np.ndarray, "nodes basis"]
]:
    """Nodes, trapezoid weights, and the splines at the nodes: constants of the program."""
    nodes = np.linspace(-end, end, _NODES)
    weights = np.full(_NODES, nodes[1] - nodes[0])
    weights[[0, -1]] *= 0.5
    # The first call may come from a program that is being traced; what is cached must be numbers.
    with jax.ensure_compile_time_eval():
        values = jax.vmap(lambda u: quadratic_splines(u, -end, end, basis, periodic))(
            jnp.asarray(nodes)
        )
    return nodes, weights, np.asarray(values)


__all__ = ["Spline", "quadratic_splines"]
