"""Implicit reparameterisation.

Derivatives through draws whose sampler has none, from the distribution function alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def implicit(
    z: jax.Array,
    cdf: Callable[[jax.Array], jax.Array],
    log_density: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """A draw z of one coordinate with the derivative dz/dlambda = -(dF(z; lambda)/dlambda) / q(z.

    Lambda).

    For a family's `_sample`: draw z in any way (rejection, bisection), then pass it through here,
    and Pathwise works. Derivatives of first order only. Not needed for gamma, beta, Dirichlet and
    Student-t draws made with `jax.random`, whose gamma sampler carries this derivative already.

    Source: Figurnov, Mohamed & Mnih 2018, eq. 4.

    Arguments:
        z: the draw, a scalar or `[d]` independent coordinates.
        cdf: F(z), elementwise, differentiable in the family's parameters over which it closes.
        log_density: log q(z), elementwise, nats.
    """
    z = jax.lax.stop_gradient(z)
    mass = cdf(z)
    return z - (mass - jax.lax.stop_gradient(mass)) * jax.lax.stop_gradient(
        jnp.exp(-log_density(z))
    )


__all__ = ["implicit"]
