"""Implicit reparameterisation: derivatives of draws from the distribution function alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from .._types import Array


def implicit(
    z: Float[Array, "*shape"],
    cdf: Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]],
    log_density: Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]],
) -> Float[Array, "*shape"]:
    """The draw z with the derivative dz/dlambda = -(dF(z; lambda)/dlambda) / q(z; lambda).

    For a family's `_sample`: draw z in any way (rejection, bisection), then pass it through here,
    and Pathwise works. Derivatives of first order only. Not needed for gamma, beta, Dirichlet and
    Student-t draws made with `jax.random`, whose gamma sampler carries this derivative already.

    Source: Figurnov, Mohamed & Mnih 2018, eq. 4.

    Arguments:
        z: the draw, a scalar or independent coordinates.
        cdf: F(z), elementwise, differentiable in the family's parameters over which it closes.
        log_density: log q(z), elementwise, nats.
    """
    z = jax.lax.stop_gradient(z)
    mass = cdf(z)
    # Zero in value, and in derivative what the formula says.
    return z - (mass - jax.lax.stop_gradient(mass)) * jax.lax.stop_gradient(
        jnp.exp(-log_density(z))
    )


__all__ = ["implicit"]
