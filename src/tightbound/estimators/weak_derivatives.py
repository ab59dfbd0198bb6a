"""Signed decompositions of a density's derivative.

d E[f] / d theta = c (E_plus f - E_minus f), coordinate by coordinate.
"""

import abc
import functools
import math
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
from jaxtyping import Float

from .._types import Array
from ..families.base import AbstractFamily
from ..families.exponential.discrete import Bernoulli, Poisson
from ..families.exponential.gamma import Exponential
from ..families.exponential.normal import Normal
from ..families.exponential.product import Product
from ..families.gaussian import Gaussian

FactorT = TypeVar("FactorT", bound=AbstractFamily, contravariant=True)


class AbstractWeakDerivative(eqx.Module, Generic[FactorT]):
    """The derivative in one parameter theta_j of each of q's independent coordinates j.

    Implementing one: `parameter`, `constant` and `pair`, each for all coordinates of one q.
    `normals`: how many standard normals per coordinate make one pair of draws; what is drawn in
    another way uses the key.
    """

    normals: ClassVar[int] = 0

    @abc.abstractmethod
    def parameter(self, q: FactorT) -> Float[Array, "dim"]:
        """theta, differentiable in q's leaves."""

    @abc.abstractmethod
    def constant(self, q: FactorT) -> Float[Array, "dim"]:
        """c."""

    @abc.abstractmethod
    def pair(
        self, q: FactorT, normals: Float[Array, "dim normals"], key: jax.Array, coupled: bool
    ) -> tuple[Float[Array, "dim"], Float[Array, "dim"]]:
        """One draw of each coordinate from the positive and from the negative part.

        `normals` are standard normal.
        """


@functools.singledispatch
def weak_derivatives(q: AbstractFamily) -> tuple[AbstractWeakDerivative, ...]:
    """One member per vector of parameters of q; empty for a family that has none registered here.

    A family adds its own with `weak_derivatives.register`; together they must cover all of its
    parameters.
    """
    return ()


class GaussianMean(AbstractWeakDerivative[Gaussian | Normal]):
    """c = 1 / (sd sqrt(2 pi)); mean + sd R against mean - sd R, R ~ Rayleigh(1).

    Rayleigh(1) is Weibull(2, sqrt 2).

    Source: Mohamed et al. 2020, table 1. Coupled: one R for both.
    """

    normals: ClassVar[int] = 2

    def parameter(self, q: Gaussian | Normal) -> Float[Array, "dim"]:
        return jnp.ravel(q.mean)

    def constant(self, q: Gaussian | Normal) -> Float[Array, "dim"]:
        return 1.0 / (_sd(q) * math.sqrt(2 * math.pi))

    def pair(
        self,
        q: Gaussian | Normal,
        normals: Float[Array, "dim normals"],
        key: jax.Array,
        coupled: bool,
    ) -> tuple[Float[Array, "dim"], Float[Array, "dim"]]:
        # P(R > r) = exp(-r^2 / 2), inverted at the uniform number Phi(normal). The logarithm of Phi
        # keeps its digits where Phi itself rounds to 0.
        rayleigh = jnp.sqrt(-2.0 * jsp.log_ndtr(normals))
        mean, sd = jnp.ravel(q.mean), _sd(q)
        return mean + sd * rayleigh[:, 0], mean - sd * rayleigh[:, 0 if coupled else 1]


class GaussianSd(AbstractWeakDerivative[Gaussian | Normal]):
    """c = 1 / sd; a double-sided Maxwell draw M against a Gaussian one, at the mean, in sds.

    Source: Mohamed et al. 2020, table 1. Coupled: M times a uniform number is Gaussian (Heidergott
    et al. 2008).
    """

    normals: ClassVar[int] = 5

    def parameter(self, q: Gaussian | Normal) -> Float[Array, "dim"]:
        return _sd(q)

    def constant(self, q: Gaussian | Normal) -> Float[Array, "dim"]:
        return 1.0 / _sd(q)

    def pair(
        self,
        q: Gaussian | Normal,
        normals: Float[Array, "dim normals"],
        key: jax.Array,
        coupled: bool,
    ) -> tuple[Float[Array, "dim"], Float[Array, "dim"]]:
        # The length of three normals is Maxwell; the fourth gives its sign, the fifth is either a
        # Gaussian draw of its own or the uniform number that couples the two sides.
        sign = jnp.where(normals[:, 3] < 0, -1.0, 1.0)
        maxwell = sign * jnp.sqrt(jnp.sum(normals[:, :3] ** 2, axis=1))
        gaussian = maxwell * jsp.ndtr(normals[:, 4]) if coupled else normals[:, 4]
        mean, sd = jnp.ravel(q.mean), _sd(q)
        return mean + sd * maxwell, mean + sd * gaussian


class PoissonRate(AbstractWeakDerivative[Poisson]):
    """c = 1; z + 1 against z, both of Poisson(rate). Coupled: one z for both.

    Source: Mohamed et al. 2020, table 1.
    """

    def parameter(self, q: Poisson) -> Float[Array, "dim"]:
        return jnp.ravel(q.rate)

    def constant(self, q: Poisson) -> Float[Array, "dim"]:
        return jnp.ones(q.dim, q.dtype)

    def pair(
        self, q: Poisson, normals: Float[Array, "dim normals"], key: jax.Array, coupled: bool
    ) -> tuple[Float[Array, "dim"], Float[Array, "dim"]]:
        first, second = jr.split(key)
        z = q._sample(first)
        return z + 1.0, z if coupled else q._sample(second)


class ExponentialRate(AbstractWeakDerivative[Exponential]):
    """c = 1 / rate; Exponential(rate) against Gamma(2, rate).

    Coupled: the second is the first plus another like it.

    Source: Mohamed et al. 2020, table 1.
    """

    def parameter(self, q: Exponential) -> Float[Array, "dim"]:
        return jnp.ravel(q.rate)

    def constant(self, q: Exponential) -> Float[Array, "dim"]:
        return 1.0 / jnp.ravel(q.rate)

    def pair(
        self, q: Exponential, normals: Float[Array, "dim normals"], key: jax.Array, coupled: bool
    ) -> tuple[Float[Array, "dim"], Float[Array, "dim"]]:
        z, more, other = (q._sample(k) for k in jr.split(key, 3))
        return z, more + (z if coupled else other)


class BernoulliProbability(AbstractWeakDerivative[Bernoulli]):
    """c = 1; one against zero, without any noise of its own: d/dp E f = f(1) - f(0)."""

    def parameter(self, q: Bernoulli) -> Float[Array, "dim"]:
        return jax.nn.sigmoid(jnp.ravel(q.logits))

    def constant(self, q: Bernoulli) -> Float[Array, "dim"]:
        return jnp.ones(q.dim, q.dtype)

    def pair(
        self, q: Bernoulli, normals: Float[Array, "dim normals"], key: jax.Array, coupled: bool
    ) -> tuple[Float[Array, "dim"], Float[Array, "dim"]]:
        return jnp.ones(q.dim, q.dtype), jnp.zeros(q.dim, q.dtype)


class FactorParameters(AbstractWeakDerivative[Product]):
    """The parameter of rank `place` of every factor of a Product, one after the other.

    c = 0 for factors that have none.
    """

    place: int = eqx.field(static=True)

    def parameter(self, q: Product) -> Float[Array, "dim"]:
        return self._joined(q, lambda d, f: d.parameter(f), lambda f: jnp.zeros(f.dim, f.dtype))

    def constant(self, q: Product) -> Float[Array, "dim"]:
        return self._joined(q, lambda d, f: d.constant(f), lambda f: jnp.zeros(f.dim, f.dtype))

    def pair(
        self, q: Product, normals: Float[Array, "dim normals"], key: jax.Array, coupled: bool
    ) -> tuple[Float[Array, "dim"], Float[Array, "dim"]]:
        # By identity: a factor that holds arrays cannot be the key of a dictionary.
        keys = dict(zip(q.factors, jr.split(key, len(q.factors)), strict=True))
        by_factor = {id(f): keys[name] for name, f in q.factors.items()}

        def drawn(
            derivative: AbstractWeakDerivative, f: AbstractFamily
        ) -> Float[Array, "factor 2"]:
            first, second = jr.split(by_factor[id(f)])
            own = jr.normal(first, (f.dim, derivative.normals), f.dtype)
            return jnp.stack(derivative.pair(f, own, second, coupled), axis=1)

        both = self._joined(
            q, drawn, lambda f: jnp.stack([f._sample(by_factor[id(f)])] * 2, axis=1)
        )
        return both[:, 0], both[:, 1]

    def _joined(
        self,
        q: Product,
        of: Callable[[AbstractWeakDerivative, AbstractFamily], Array],
        otherwise: Callable[[AbstractFamily], Array],
    ) -> Float[Array, "dim *pair"]:
        """`of` a factor's derivative of this rank, `otherwise` where it has none, side by side."""
        parts = []
        for factor in q.factors.values():
            own = weak_derivatives(factor)
            parts.append(
                of(own[self.place], factor) if self.place < len(own) else otherwise(factor)
            )
        return jnp.concatenate(parts)


@functools.singledispatch
def _sd(q: Gaussian | Normal) -> Float[Array, "dim"]:
    """Standard deviations of the coordinates."""
    # Not reached: derivatives that ask for sds are those of the families registered below.
    raise NotImplementedError(f"{type(q).__name__} has no sds here.")


@_sd.register
def _(q: Gaussian) -> Float[Array, "dim"]:
    return q.sd


@_sd.register
def _(q: Normal) -> Float[Array, "dim"]:
    return 1.0 / jnp.sqrt(jnp.ravel(q.precision))


@weak_derivatives.register
def _(q: Gaussian) -> tuple[AbstractWeakDerivative, ...]:
    return (GaussianMean(), GaussianSd()) if q.covariance_structure == "diagonal" else ()


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
    "AbstractWeakDerivative",
    "BernoulliProbability",
    "ExponentialRate",
    "FactorParameters",
    "GaussianMean",
    "GaussianSd",
    "PoissonRate",
    "weak_derivatives",
]
