"""Step sizes that fall as Robbins and Monro ask, checked when they are made."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from .._types import Array, Validated


@dataclasses.dataclass(frozen=True)
class RobbinsMonro:
    """a_t = first (1 + t / delay)^-power for t = 0, 1, ..., with 1/2 < power <= 1.

    Then sum a = inf and sum a^2 < inf. The first lets the iterates reach any place, the second lets
    their noise die out: stochastic gradient descent then converges without averaging. A schedule
    for any optax transformation:

        tb.solvers.StochasticGradient(transform=optax.sgd(tb.solvers.RobbinsMonro(0.5)))

    Not needed with the solver's default, which lowers its step and averages by itself; a constant
    step with averaging is faster in practice.

    Equal schedules are equal objects, so that fits with them share one compilation.

    Source: Robbins & Monro 1951, conditions (4); Hoffman et al. 2013, section 2.4 (the delay).

    Attributes:
        first: a_0, positive and finite.
        power: of decay, the "forgetting rate".
        delay: steps during which the size hardly falls.

    Raises:
        ValueError: naming the sum that does not behave, or the number that is not one.
    """

    first: Validated[float, "__post_init__"] = 0.5
    power: Validated[float, "__post_init__"] = 0.7
    delay: Validated[float, "__post_init__"] = 100.0

    def __post_init__(self):
        for name, value in (("first", self.first), ("delay", self.delay), ("power", self.power)):
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not math.isfinite(value)
                or value <= 0
            ):
                raise ValueError(
                    f"RobbinsMonro: `{name}` must be a positive number, got {value!r}."
                )
        if self.power > 1.0:
            raise ValueError(
                f"RobbinsMonro: with `power` {self.power} the step sizes have a finite sum, so that"
                " the search cannot reach an optimum far away; use at most 1."
            )
        if self.power <= 0.5:
            raise ValueError(
                f"RobbinsMonro: with `power` {self.power} the squares of the steps have no finite"
                " sum, so that the noise never dies out; use more than 0.5, or a constant step and"
                " its averaging."
            )

    def __call__(self, count: Shaped[Array, "*batch"] | int) -> Float[jax.Array, "*batch"]:
        """a_count."""
        count = jnp.asarray(count, jnp.result_type(float))
        return self.first * (1.0 + count / self.delay) ** -self.power

    def sum_from(self, count: int) -> float:
        """An upper bound on the sum of a_t^2 over t >= count: what noise is still to come.

        The terms fall, so that their sum is at most the first one and the integral from there.
        """
        exponent = 2.0 * self.power - 1.0
        start = 1.0 + count / self.delay
        return self.first**2 * (
            start ** (-2.0 * self.power) + self.delay * start**-exponent / exponent
        )


__all__ = ["RobbinsMonro"]
