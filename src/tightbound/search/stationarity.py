"""Has a stochastic search arrived? Statistics of its iterates over windows that grow.

A window of T steps follows one of T/2 steps, so judging the last window alone discards the first
half of the run; nothing is stored but a few sums, whatever the number of steps.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from .._types import Array, Scalar

BATCHES = 16
"""Batches per window: the standard error of its average has 15 degrees of freedom."""

# R-hat that two halves of a settled window may have: of a group of values as a whole, and of each
# value alone, where the largest of many is far from 1 by chance.
_OF_GROUP, _OF_VALUE = 1.1, 1.4
_LEAST_ERRORS = 3.0  # standard errors that an average may be off, however few averages there are


class Window(eqx.Module):
    """Running sums over `filled` of `length` steps.

    Attributes:
        length: steps of the window, a multiple of 2 BATCHES.
        filled: steps so far.
        origin: what is monitored, y, where the window opened. Sums are of y - origin: sums of
            squares of y itself would cancel.
        total: sum over the window.
        squares: sum of squares.
        first_half: sum over the first half.
        batch: sum over the present batch.
        batch_squares: sum of the squares of the means of the batches that are full.
        parameters: sum of the parameters.
        gradient: sum of the gradients.
        gradient_squares: sum of their squares.
    """

    length: Int[jax.Array, ""]
    filled: Int[jax.Array, ""]
    origin: Float[jax.Array, "groups m"]
    total: Float[jax.Array, "groups m"]
    squares: Float[jax.Array, "groups m"]
    first_half: Float[jax.Array, "groups m"]
    batch: Float[jax.Array, "groups m"]
    batch_squares: Float[jax.Array, "groups m"]
    parameters: Float[jax.Array, "p"]
    gradient: Float[jax.Array, "p"]
    gradient_squares: Float[jax.Array, "p"]

    @staticmethod
    def opened(
        monitored: Float[jax.Array, "groups m"],
        parameters: Float[jax.Array, "p"],
        length: Int[Array, ""] | int,
    ) -> "Window":
        """An empty window that opens here; `length` is a multiple of 2 BATCHES."""
        y, x = jnp.zeros_like(monitored), jnp.zeros_like(parameters)
        counts = jnp.asarray(length, jnp.int32), jnp.zeros((), jnp.int32)
        return Window(*counts, monitored, y, y, y, y, y, x, x, x)

    @property
    def full(self) -> Bool[jax.Array, ""]:
        """Whether all steps of the window are in it."""
        return self.filled >= self.length

    def pushed(
        self,
        monitored: Float[jax.Array, "groups m"],
        parameters: Float[jax.Array, "p"],
        gradient: Float[jax.Array, "p"],
    ) -> "Window":
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
        # Steps are correlated, and means of batches hardly: their scatter is the honest error.
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
        mean: average of what is monitored.
        error: its Monte Carlo standard error, by batch means.
        variance: of what is monitored, around its mean.
        apart: mean of the second half minus mean of the first.
        parameters: average of the parameters.
        gradient: average gradient.
        gradient_error: its standard error.
    """

    mean: Float[jax.Array, "groups m"]
    error: Float[jax.Array, "groups m"]
    variance: Float[jax.Array, "groups m"]
    apart: Float[jax.Array, "groups m"]
    parameters: Float[jax.Array, "p"]
    gradient: Float[jax.Array, "p"]
    gradient_error: Float[jax.Array, "p"]

    def mixed(self, units: Float[jax.Array, "groups m"], floor: Scalar) -> Bool[jax.Array, ""]:
        """Whether the two halves of the window look like one distribution: split R-hat.

        R-hat^2 = 1 + between / within with between = apart^2 / 2. For each group as a whole it must
        be below 1.1; for each value alone below 1.4, as the largest of many is far from 1 by chance
        (1.1 for each of 5,000 would take windows ten times as long as the accuracy does). Moves
        below `floor` units do not count: a search without noise comes to rest, and then both are
        zero.
        """
        between = (self.apart / units) ** 2 / 2
        within = jnp.maximum(self.variance / units**2 - between / 2, 0.0)
        each = between <= (_OF_VALUE**2 - 1) * within + floor**2
        group = between.mean(1) <= (_OF_GROUP**2 - 1) * within.mean(1) + floor**2
        return jnp.all(each) & jnp.all(group)

    def balanced(self, tol: Scalar) -> Bool[jax.Array, ""]:
        """Whether every average gradient is zero to within `tol` and its own error.

        R-hat cannot tell rest from a crawl: an adaptive step that has become too small looks
        stationary. The gradient can.
        """
        return jnp.all(
            jnp.abs(self.gradient) <= tol + largest_of(self.gradient.size) * self.gradient_error
        )

    def coarseness(self, units: Float[jax.Array, "groups m"]) -> Float[jax.Array, ""]:
        """About the largest error among the averages, in units: what a tolerance is compared with.

        Three standard errors or more, their root mean square over each group: one alone has but 15
        degrees of freedom.
        """
        error = self.error / units
        most = max(_LEAST_ERRORS, largest_of(error.size))
        return jnp.maximum(most * jnp.sqrt(jnp.max((error**2).mean(1))), jnp.max(error))

    def agrees(
        self,
        mean: Float[jax.Array, "groups m"],
        error: Float[jax.Array, "groups m"],
        tol: Float[jax.Array, "groups m"],
    ) -> Bool[jax.Array, ""]:
        """Whether the average equals another one to within `tol` and the errors of both.

        Arguments:
            mean: the other average.
            error: its standard error.
            tol: in the values' own units.
        """
        noise = largest_of(self.mean.size) * jnp.sqrt(self.error**2 + error**2)
        return jnp.all(jnp.abs(self.mean - mean) <= tol + noise)


def largest_of(count: int) -> float:
    """1 + sqrt(2 log count): about the largest of `count` standard normals, and one for safety."""
    return 1.0 + math.sqrt(2.0 * math.log(count))


__all__ = ["BATCHES", "Summary", "Window", "largest_of"]
