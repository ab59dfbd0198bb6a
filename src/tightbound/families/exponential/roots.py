"""Newton's method on the line, for conversions from mean to natural parameters that have no closed
form.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def falling_root(
    function: Callable[[jax.Array], jax.Array], start: jax.Array, steps: int = 40
) -> jax.Array:
    """The u with function(u) = 0, for a smooth decreasing function on the line.

    Steps of at most 2, a fixed number of them.

    The caller puts a positive unknown on the log scale. Forty steps reach from any start within
    e^(+-80) of the root, and the last of them are quadratic: about 1e-15 relative.
    """
    slope = jax.grad(function)

    def step(_, u):
        rate = slope(u)
        move = function(u) / jnp.where(rate < 0, -rate, 1e-300)
        return u + jnp.clip(jnp.where(jnp.isfinite(move), move, 0.0), -2.0, 2.0)

    return jax.lax.fori_loop(0, steps, step, start)


__all__ = ["falling_root"]
