"""Newton's method on the line, for parameters that have no closed form."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ..._types import Array


def falling_root(
    function: Callable[[jax.Array], Array], start: Float[Array, ""], steps: int = 40
) -> Float[jax.Array, ""]:
    """The u with function(u) = 0, for a smooth decreasing function: a fixed number of steps.

    No step is longer than 2. The caller puts a positive unknown on the log scale. Forty steps reach
    from any start within e^(+-80) of the root, and the last of them are quadratic: about 1e-15
    relative.
    """
    slope = jax.grad(function)

    def step(_: int | jax.Array, u: Float[jax.Array, ""]) -> Float[jax.Array, ""]:
        rate = slope(u)
        # Where the slope has been lost by rounding the step is as long as steps may be.
        move = function(u) / jnp.where(rate < 0, -rate, 1e-300)
        return u + jnp.clip(jnp.where(jnp.isfinite(move), move, 0.0), -2.0, 2.0)

    return jax.lax.fori_loop(0, steps, step, start)


__all__ = ["falling_root"]
