"""Has a stochastic search arrived? Statistics of its iterates over windows that grow, in memory
that does not.

A window of T steps follows one of T/2 steps, so judging the last window alone discards the first
half of the run; nothing is stored but a few sums, whatever the number of steps.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

BATCHES = 16
"""Batches per window.

The Monte Carlo standard error of a window's average has 15 degrees of freedom.
"""


class Window(eqx.Module):
    """Running sums over `filled` of `length` steps.

    Of what is monitored, y `[groups, m]`: sums of y - origin, its value where the window opened
    (sums of squares of y itself would cancel). Of the parameters x `[P]` and the gradients g `[P]`.
    """

    length: jax.Array
    filled: jax.Array
    origin: jax.Array
    total: jax.Array
    squares: jax.Array
    first_half: jax.Array
    batch: jax.Array
    batch_squares: jax.Array
    parameters: jax.Array
    gradient: jax.Array
    gradient_squares: jax.Array

    @staticmethod
    def opened(monitored: jax.Array, parameters: jax.Array, length: Any) -> "Window":
        """An empty window that opens here; `length` is a multiple of 2 BATCHES."""
        y, x = jnp.zeros_like(monitored), jnp.zeros_like(parameters)
        counts = jnp.asarray(length, jnp.int32), jnp.zeros((), jnp.int32)
        return Window(*counts, monitored, y, y, y, y, y, x, x, x)

    @property
    def full(self) -> jax.Array:
        return self.filled >= self.length

    def pushed(self, monitored: jax.Array, parameters: jax.Array, gradient: jax.Array) -> "Window":
        """The window with one more step in it."""
        filled = self.filled + 1
        move = monitored - self.origin
        total, batch = self.total + move, self.batch + move
        per_batch = self.length // BATCHES
        closes = filled % per_batch == 0
        batch_mean = batch / per_batch.astype(batch.dtype)
        return Window(
            self.length,
            filled,
            self.origin,
            total,
            self.squares + move**2,
            jnp.where(filled == self.length // 2, total, self.first_half),
            jnp.where(closes, 0.0, batch),
            self.batch_squares + jnp.where(closes, batch_mean**2, 0.0),
            self.parameters + parameters,
            self.gradient + gradient,
            self.gradient_squares + gradient**2,
        )

    def summary(self) -> "Summary":
        """What a full window says."""
        n = self.length.astype(self.total.dtype)
        move = self.total / n
        gradient = self.gradient / n
        return Summary(
            mean=self.origin + move,
            error=jnp.sqrt(
                jnp.maximum(self.batch_squares / BATCHES - move**2, 0.0) / (BATCHES - 1)
            ),
            variance=jnp.maximum(self.squares / n - move**2, 0.0),
            apart=(self.total - 2 * self.first_half) / (n / 2),
            parameters=self.parameters / n,
            gradient=gradient,
            gradient_error=jnp.sqrt(jnp.maximum(self.gradient_squares / n - gradient**2, 0.0) / n),
        )


class Summary(eqx.Module):
    """A full window.

    Attributes:
        mean: average of what is monitored, `[groups, m]`; `error` its Monte Carlo standard error,
            by batch means.
        variance: of what is monitored, around its mean.
        apart: mean of the second half minus mean of the first.
        parameters: average of the parameters, `[P]`.
        gradient: average gradient, `[P]`; `gradient_error` its standard error.
    """

    mean: jax.Array
    error: jax.Array
    variance: jax.Array
    apart: jax.Array
    parameters: jax.Array
    gradient: jax.Array
    gradient_error: jax.Array

    def mixed(self, units: jax.Array, floor: jax.Array | float) -> jax.Array:
        """Whether the two halves of the window look like one distribution: split R-hat.

        R-hat^2 = 1 + between / within with between = apart^2 / 2. For each group as a whole it must
        be below 1.1; for each value alone below 1.4, as the largest of many is far from 1 by chance
        (1.1 for each of 5,000 would take windows ten times as long as the accuracy does). Moves
        below `floor` units do not count: a search without noise comes to rest, and then both are
        zero.
        """
        between = (self.apart / units) ** 2 / 2
        within = jnp.maximum(self.variance / units**2 - between / 2, 0.0)
        each = between <= (1.4**2 - 1) * within + floor**2
        group = between.mean(1) <= (1.1**2 - 1) * within.mean(1) + floor**2
        return jnp.all(each) & jnp.all(group)

    def balanced(self, tol: jax.Array | float) -> jax.Array:
        """Whether every average gradient is zero to within `tol` and its own error.

        R-hat cannot tell rest from a crawl: an adaptive step that has become too small looks
        stationary. The gradient can.
        """
        return jnp.all(
            jnp.abs(self.gradient) <= tol + largest_of(self.gradient.size) * self.gradient_error
        )

    def coarseness(self, units: jax.Array) -> jax.Array:
        """About the largest error among the averages, in units: what a tolerance is compared with.

        Three standard errors or more, their root mean square over each group: one alone has but 15
            degrees of freedom.
        """
        error = self.error / units
        most = max(3.0, largest_of(error.size))
        return jnp.maximum(most * jnp.sqrt(jnp.max((error**2).mean(1))), jnp.max(error))

    def agrees(self, mean: jax.Array, error: jax.Array, tol: jax.Array) -> jax.Array:
        """Whether the average equals another one to within `tol` (in the values' own units) and the
        errors of both.
        """
        noise = largest_of(self.mean.size) * jnp.sqrt(self.error**2 + error**2)
        return jnp.all(jnp.abs(self.mean - mean) <= tol + noise)


def largest_of(count: int) -> float:
    """About the largest of `count` standard normals, and one more for safety.

    1 + sqrt(2 log count).
    """
    return 1.0 + math.sqrt(2.0 * math.log(count))


__all__ = ["BATCHES", "Summary", "Window", "largest_of"]
