"""Signed decompositions of a density's derivative.

D/dtheta E f = c (E_plus f - E_minus f), coordinate by coordinate.
"""

import abc
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp

from .._types import Array
from ..families.exponential.discrete import Bernoulli, Poisson
from ..families.exponential.gamma import Exponential
from ..families.exponential.normal import Normal
from ..families.exponential.product import Product
from ..families.gaussian import Gaussian
from ..families.scales import Diagonal


class AbstractWeakDerivative(eqx.Module):
    """The derivative in one parameter theta_j of each of q's independent coordinates j.

    `normals`: how many standard normals per coordinate make one pair of draws; what is drawn in
    another way uses the key.
    """

    normals: ClassVar[int] = 0

    @abc.abstractmethod
    def parameter(self, q: Any) -> Array:
        """theta, `[dim]`, differentiable in q's leaves."""

    @abc.abstractmethod
    def constant(self, q: Any) -> Array:
        """c, `[dim]`."""

    @abc.abstractmethod
    def pair(
        self, q: Any, normals: jax.Array, key: jax.Array, coupled: bool
    ) -> tuple[jax.Array, jax.Array]:
        """One draw of each coordinate from the positive and from the negative part, `[dim]` each.

        `normals` is `[dim, normals]`, standard normal.
        """


@functools.singledispatch
def weak_derivatives(q: Any) -> tuple[AbstractWeakDerivative, ...]:
    """One member per vector of parameters of q; empty for a family that has none registered here.

    A family adds its own with `weak_derivatives.register`; together they must cover all of its
    parameters.
    """
    return ()


class GaussianMean(AbstractWeakDerivative):
    """c = 1 / (sd sqrt(2 pi)).

    Mean + sd R against mean - sd R, R ~ Rayleigh(1), which is Weibull(2, sqrt 2).

    Source: Mohamed et al. 2020, table 1. Coupled: one R for both.
    """

    normals: ClassVar[int] = 2

    def parameter(self, q: Any) -> Array:
        return jnp.ravel(q.mean)

    def constant(self, q: Any) -> Array:
        return 1.0 / (_sd(q) * math.sqrt(2 * math.pi))

    def pair(
        self, q: Any, normals: jax.Array, key: jax.Array, coupled: bool
    ) -> tuple[jax.Array, jax.Array]:
        # the inverse of its distribution function at a uniform
        rayleigh = jnp.sqrt(-2.0 * jsp.log_ndtr(normals))
        mean, sd = jnp.ravel(q.mean), _sd(q)
        return mean + sd * rayleigh[:, 0], mean - sd * rayleigh[:, 0 if coupled else 1]


class GaussianSd(AbstractWeakDerivative):
    """c = 1 / sd.

    A double-sided Maxwell draw M against a Gaussian one, both of location mean and scale sd.

    Source: Mohamed et al. 2020, table 1. Coupled: M times a uniform number is Gaussian (Heidergott
    et al. 2008).
    """

    normals: ClassVar[int] = 5

    def parameter(self, q: Any) -> Array:
        return _sd(q)

    def constant(self, q: Any) -> Array:
        return 1.0 / _sd(q)

    def pair(
        self, q: Any, normals: jax.Array, key: jax.Array, coupled: bool
    ) -> tuple[jax.Array, jax.Array]:
        sign = jnp.where(normals[:, 3] < 0, -1.0, 1.0)
        maxwell = sign * jnp.sqrt(jnp.sum(normals[:, :3] ** 2, axis=1))
        gaussian = maxwell * jsp.ndtr(normals[:, 4]) if coupled else normals[:, 4]
        mean, sd = jnp.ravel(q.mean), _sd(q)
        return mean + sd * maxwell, mean + sd * gaussian


class PoissonRate(AbstractWeakDerivative):
    """c = 1; z + 1 against z, both of Poisson(rate). Coupled: one z for both.

    Source: Mohamed et al. 2020, table 1.
    """

    def parameter(self, q: Any) -> Array:
        return jnp.ravel(q.rate)

    def constant(self, q: Any) -> Array:
        return jnp.ones(q.dim, q.dtype)

    def pair(
        self, q: Any, normals: jax.Array, key: jax.Array, coupled: bool
    ) -> tuple[jax.Array, jax.Array]:
        first, second = jr.split(key)
        z = q._sample(first)
        return z + 1.0, z if coupled else q._sample(second)


class ExponentialRate(AbstractWeakDerivative):
    """c = 1 / rate; Exponential(rate) against Gamma(2, rate).

    Coupled: the second is the first plus another like it.

    Source: Mohamed et al. 2020, table 1.
    """

    def parameter(self, q: Any) -> Array:
        return jnp.ravel(q.rate)

    def constant(self, q: Any) -> Array:
        return 1.0 / jnp.ravel(q.rate)

    def pair(
        self, q: Any, normals: jax.Array, key: jax.Array, coupled: bool
    ) -> tuple[jax.Array, jax.Array]:
        z, more, other = (q._sample(k) for k in jr.split(key, 3))
        return z, more + (z if coupled else other)


class BernoulliProbability(AbstractWeakDerivative):
    """c = 1; one against zero, without any noise of its own: d/dp E f = f(1) - f(0)."""

    def parameter(self, q: Any) -> Array:
        return jax.nn.sigmoid(jnp.ravel(q.logits))

    def constant(self, q: Any) -> Array:
        return jnp.ones(q.dim, q.dtype)

    def pair(
        self, q: Any, normals: jax.Array, key: jax.Array, coupled: bool
    ) -> tuple[jax.Array, jax.Array]:
        return jnp.ones(q.dim, q.dtype), jnp.zeros(q.dim, q.dtype)


class FactorParameters(AbstractWeakDerivative):
    """The parameter of rank `place` of every factor of a Product, one after the other.

    C = 0 for factors that have none.
    """

    place: int = eqx.field(static=True)

    def parameter(self, q: Any) -> Array:
        return self._joined(q, lambda d, f: d.parameter(f), lambda f: jnp.zeros(f.dim, f.dtype))

    def constant(self, q: Any) -> Array:
        return self._joined(q, lambda d, f: d.constant(f), lambda f: jnp.zeros(f.dim, f.dtype))

    def pair(
        self, q: Any, normals: jax.Array, key: jax.Array, coupled: bool
    ) -> tuple[jax.Array, jax.Array]:
        keys = dict(zip(q.factors, jr.split(key, len(q.factors)), strict=True))
        by_factor = {id(f): keys[name] for name, f in q.factors.items()}

        def drawn(derivative: AbstractWeakDerivative, f: Any) -> jax.Array:
            first, second = jr.split(by_factor[id(f)])
            own = jr.normal(first, (f.dim, derivative.normals), f.dtype)
            return jnp.stack(derivative.pair(f, own, second, coupled), axis=1)

        both = self._joined(
            q, drawn, lambda f: jnp.stack([f._sample(by_factor[id(f)])] * 2, axis=1)
        )
        return both[:, 0], both[:, 1]

    def _joined(
        self, q: Any, of: Callable[[Any, Any], jax.Array], otherwise: Callable[[Any], jax.Array]
    ) -> jax.Array:
        parts = []
        for factor in q.factors.values():
            own = weak_derivatives(factor)
            parts.append(
                of(own[self.place], factor) if self.place < len(own) else otherwise(factor)
            )
        return jnp.concatenate(parts)


def _sd(q: Any) -> Array:
    """Standard deviations `[dim]` of a diagonal Gaussian or of a plate of normals."""
    return q.sd if isinstance(q, Gaussian) else 1.0 / jnp.sqrt(jnp.ravel(q.precision))


@weak_derivatives.register
def _(q: Gaussian) -> tuple[AbstractWeakDerivative, ...]:
    return (GaussianMean(), GaussianSd()) if isinstance(q.scale, Diagonal) else ()


@weak_derivatives.register
def _(q: Normal) -> tuple[AbstractWeakDerivative, ...]:
    return GaussianMean(), GaussianSd()


@weak_derivatives.register
def _(q: Poisson) -> tuple[AbstractWeakDerivative, ...]:
    return (PoissonRate(),)


@weak_derivatives.register
def _(q: Exponential) -> tuple[AbstractWeakDerivative, ...]:
    return (ExponentialRate(),)


@weak_derivatives.register
def _(q: Bernoulli) -> tuple[AbstractWeakDerivative, ...]:
    return (BernoulliProbability(),)


@weak_derivatives.register
def _(q: Product) -> tuple[AbstractWeakDerivative, ...]:
    counts = [len(weak_derivatives(factor)) for factor in q.factors.values()]
    return tuple(FactorParameters(place) for place in range(max(counts))) if min(counts) else ()


__all__ = [
    "AbstractWeakDerivative", "BernoulliProbability", "ExponentialRate", "FactorParameters", "GaussianMean", "GaussianSd",
    "PoissonRate", "weak_derivatives",
]  # fmt: skip
