"""Signed decompositions of a density's derivative: d/dtheta E f = c (E_plus f - E_minus f), coordinate by coordinate."""

import abc
import functools
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.special as jsp

from .._types import Array
from ..families.gaussian import Gaussian
from ..families.scales import Diagonal


class AbstractWeakDerivative(eqx.Module):
    """The derivative in one parameter theta_j of each of q's independent coordinates j.

    `normals`: how many standard normals per coordinate make one pair of draws; what is drawn in another way uses the key.
    """

    normals: ClassVar[int] = 0

    @abc.abstractmethod
    def parameter(self, q: Any) -> Array:
        """theta, `[dim]`, differentiable in q's leaves."""

    @abc.abstractmethod
    def constant(self, q: Any) -> Array:
        """c, `[dim]`."""

    @abc.abstractmethod
    def pair(self, q: Any, normals: jax.Array, key: jax.Array, coupled: bool) -> tuple[jax.Array, jax.Array]:
        """One draw of each coordinate from the positive and from the negative part, `[dim]` each.

        `normals` is `[dim, normals]`, standard normal.
        """


@functools.singledispatch
def weak_derivatives(q: Any) -> tuple[AbstractWeakDerivative, ...]:
    """One member per vector of parameters of q; empty for a family that has none registered here.

    A family adds its own with `weak_derivatives.register`; together they must cover all of its parameters.
    """
    return ()


class GaussianMean(AbstractWeakDerivative):
    """c = 1 / (sd sqrt(2 pi)); mean + sd R against mean - sd R, R ~ Rayleigh(1), which is Weibull(2, sqrt 2).

    Source: Mohamed et al. 2020, table 1. Coupled: one R for both.
    """

    normals: ClassVar[int] = 2

    def parameter(self, q: Any) -> Array:
        return q.mean

    def constant(self, q: Any) -> Array:
        return 1.0 / (q.sd * math.sqrt(2 * math.pi))

    def pair(self, q: Any, normals: jax.Array, key: jax.Array, coupled: bool) -> tuple[jax.Array, jax.Array]:
        rayleigh = jnp.sqrt(-2.0 * jsp.log_ndtr(normals))  # the inverse of its distribution function at a uniform
        return q.mean + q.sd * rayleigh[:, 0], q.mean - q.sd * rayleigh[:, 0 if coupled else 1]


class GaussianSd(AbstractWeakDerivative):
    """c = 1 / sd; a double-sided Maxwell draw M against a Gaussian one, both of location mean and scale sd.

    Source: Mohamed et al. 2020, table 1. Coupled: M times a uniform number is Gaussian (Heidergott et al. 2008).
    """

    normals: ClassVar[int] = 5

    def parameter(self, q: Any) -> Array:
        return q.sd

    def constant(self, q: Any) -> Array:
        return 1.0 / q.sd

    def pair(self, q: Any, normals: jax.Array, key: jax.Array, coupled: bool) -> tuple[jax.Array, jax.Array]:
        sign = jnp.where(normals[:, 3] < 0, -1.0, 1.0)
        maxwell = sign * jnp.sqrt(jnp.sum(normals[:, :3] ** 2, axis=1))
        gaussian = maxwell * jsp.ndtr(normals[:, 4]) if coupled else normals[:, 4]
        return q.mean + q.sd * maxwell, q.mean + q.sd * gaussian


@weak_derivatives.register
def _(q: Gaussian) -> tuple[AbstractWeakDerivative, ...]:
    return (GaussianMean(), GaussianSd()) if isinstance(q.scale, Diagonal) else ()


__all__ = ["AbstractWeakDerivative", "GaussianMean", "GaussianSd", "weak_derivatives"]
