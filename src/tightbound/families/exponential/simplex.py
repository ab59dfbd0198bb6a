"""Beta and Dirichlet distributions: probabilities."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import numpy.typing as npt
from jaxtyping import Bool, Float

from ..._types import Array, Scalar, Validated
from .base import AbstractExponentialFamily, StatisticsType, Support
from .gamma import smallest_log
from .parameters import check_positive, plated


class LogAndComplement(NamedTuple):
    """E log z and E log(1 - z) (of a beta), or the natural parameters that go with them."""

    log: Float[Array, "*plate"]
    log_complement: Float[Array, "*plate"]


class Logs(NamedTuple):
    """E log z (of a Dirichlet), or the natural parameters that go with it."""

    log: Float[Array, "*plate k"]


class Beta(AbstractExponentialFamily):
    """The beta distribution: a probability. Not for one that may be exactly 0 or 1.

        q(z) = z^(a - 1) (1 - z)^(b - 1) / B(a, b)
        t = (log z, log(1 - z)),  eta = (a, b),  h = 1 / (z (1 - z)),  A = log B(a, b)

    Draws are ratios of gamma draws, smooth in a and b.

    Attributes:
        a: positive.
        b: positive.
    """

    a: Float[Array, "*plate"]
    b: Float[Array, "*plate"]
    ranks: ClassVar[dict[str, int]] = {"a": 0, "b": 0}
    statistic_ranks: ClassVar[tuple[int, ...]] = (0, 0)
    statistics_type: ClassVar[StatisticsType] = LogAndComplement
    positive: ClassVar[tuple[str, ...]] = ("a", "b")
    support: ClassVar[Support] = "unit_interval"

    def __init__(
        self, a: Validated[npt.ArrayLike, "plated"], b: Validated[npt.ArrayLike, "plated"]
    ):
        self.a, self.b = plated("Beta", a=(a, 0), b=(b, 0))
        check_positive("Beta", a=self.a, b=self.b)

    @property
    def _event(self) -> tuple[int, ...]:
        return ()

    def _natural(self) -> LogAndComplement:
        return LogAndComplement(self.a, self.b)

    @classmethod
    def _of_natural(cls, eta: LogAndComplement) -> "Beta":
        return cls(eta.log, eta.log_complement)

    @classmethod
    def _of_mean(cls, mean: LogAndComplement) -> "Beta":
        concentration = concentration_of(jnp.stack([mean.log, mean.log_complement]))
        return cls(concentration[0], concentration[1])

    @classmethod
    def _log_partition(cls, eta: LogAndComplement) -> Float[Array, ""]:
        a, b = eta
        return jsp.gammaln(a) + jsp.gammaln(b) - jsp.gammaln(a + b)

    def _statistics(self, value: Float[Array, ""]) -> LogAndComplement:
        return LogAndComplement(jnp.log(value), jnp.log1p(-value))

    def _log_base(self, value: Float[Array, ""]) -> Scalar:
        return -jnp.log(value) - jnp.log1p(-value)

    @classmethod
    def _expected_log_base(cls, mean: LogAndComplement) -> Float[Array, ""]:
        return -mean.log - mean.log_complement

    def _inside(self, value: Float[Array, ""]) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        ok = (value > 0) & (value < 1)
        return jnp.where(ok, value, 0.5), ok

    def _draw(self, key: jax.Array) -> Float[Array, ""]:
        first, second = jr.split(key)
        dtype = jnp.result_type(self.a)
        log_odds = jr.loggamma(first, self.a, dtype=dtype) - jr.loggamma(
            second, self.b, dtype=dtype
        )
        # Neither 0 nor 1 exactly: both would have an infinite statistic
        return jnp.clip(
            jax.nn.sigmoid(log_odds), jnp.finfo(dtype).tiny, 1.0 - jnp.finfo(dtype).epsneg
        )


class Dirichlet(AbstractExponentialFamily):
    """The Dirichlet distribution: K probabilities that sum to one.

    Not for correlated ones (a logistic normal is).

        q(z) = prod_k z_k^(a_k - 1) / B(a)   with respect to the first K - 1 entries
        t = log z,  eta = a,  h = prod_k 1 / z_k,  A = sum_k log Gamma(a_k) - log Gamma(sum_k a_k)

    Mean to natural: Newton's method (Minka 2000, "Estimating a Dirichlet distribution", eqs.
    15-18). Draws are gamma draws over their sum, smooth in the concentration.

    Attributes:
        concentration: positive.
    """

    concentration: Float[Array, "*plate k"]
    ranks: ClassVar[dict[str, int]] = {"concentration": 1}
    statistic_ranks: ClassVar[tuple[int, ...]] = (1,)
    statistics_type: ClassVar[StatisticsType] = Logs
    positive: ClassVar[tuple[str, ...]] = ("concentration",)
    support: ClassVar[Support] = "simplex"

    def __init__(self, concentration: Validated[npt.ArrayLike, "plated"]):
        (self.concentration,) = plated("Dirichlet", concentration=(concentration, 1))
        check_positive("Dirichlet", concentration=self.concentration)

    @property
    def _event(self) -> tuple[int, ...]:
        return self.concentration.shape

    def _natural(self) -> Logs:
        return Logs(self.concentration)

    @classmethod
    def _of_natural(cls, eta: Logs) -> "Dirichlet":
        return cls(eta.log)

    @classmethod
    def _of_mean(cls, mean: Logs) -> "Dirichlet":
        return cls(concentration_of(mean.log))

    @classmethod
    def _log_partition(cls, eta: Logs) -> Float[Array, ""]:
        return jnp.sum(jsp.gammaln(eta.log)) - jsp.gammaln(jnp.sum(eta.log))

    def _statistics(self, value: Float[Array, "k"]) -> Logs:
        return Logs(jnp.log(value))

    def _log_base(self, value: Float[Array, "k"]) -> Scalar:
        return -jnp.sum(jnp.log(value))

    @classmethod
    def _expected_log_base(cls, mean: Logs) -> Float[Array, ""]:
        return -jnp.sum(mean.log)

    def _inside(self, value: Float[Array, "k"]) -> tuple[Float[Array, "k"], Bool[Array, ""]]:
        ok = jnp.all(value > 0) & (jnp.abs(jnp.sum(value) - 1.0) < 1e-6)
        return jnp.where(ok, value, 1.0 / value.shape[0]), ok

    def _draw(self, key: jax.Array) -> Float[Array, "k"]:
        logs = jr.loggamma(key, self.concentration, dtype=jnp.result_type(self.concentration))
        # Never exactly zero, which would have an infinite statistic.
        return jnp.exp(jnp.maximum(jax.nn.log_softmax(logs), smallest_log(logs.dtype)))


def concentration_of(mean_log: Float[Array, "k"], steps: int = 60) -> Float[jax.Array, "k"]:
    """The concentration with digamma(a_k) - digamma(sum a) = mean_log_k.

    By Newton's method, kept positive, from twenty rounds of Minka's fixed-point iteration, which
    never leaves the domain but converges slowly.
    """

    def fixed_point(_: int | jax.Array, a: Float[jax.Array, "k"]) -> Float[jax.Array, "k"]:
        return jnp.exp(_inverse_digamma(jsp.digamma(jnp.sum(a)) + mean_log))

    def newton(_: int | jax.Array, a: Float[jax.Array, "k"]) -> Float[jax.Array, "k"]:
        # The Hessian is a diagonal matrix plus a constant, which is inverted at linear cost.
        gradient = jsp.digamma(jnp.sum(a)) - jsp.digamma(a) + mean_log
        diagonal, common = -jsp.polygamma(1, a), jsp.polygamma(1, jnp.sum(a))
        shared = jnp.sum(gradient / diagonal) / (1.0 / common + jnp.sum(1.0 / diagonal))
        return jnp.maximum(a - (gradient - shared) / diagonal, 0.2 * a)

    start = jax.lax.fori_loop(0, 20, fixed_point, jnp.ones_like(mean_log))
    return jax.lax.fori_loop(0, steps, newton, start)


def _inverse_digamma(y: Float[Array, "k"]) -> Float[jax.Array, "k"]:
    """log of the a with digamma(a) = y: five Newton steps on the log scale from Minka's start.

    Source: Minka 2000, appendix C, of which 0.577 is -digamma(1).
    """
    start = jnp.where(
        y >= -2.22,
        jnp.exp(y) + 0.5,
        1.0 / (0.5772156649015329 - y - jnp.where(y >= -2.22, 10.0, 0.0)),
    )
    u = jnp.log(jnp.abs(start))
    for _ in range(5):
        a = jnp.exp(u)
        u = u - jnp.clip((jsp.digamma(a) - y) / (a * jsp.polygamma(1, a)), -2.0, 2.0)
    return u


__all__ = ["Beta", "Dirichlet", "LogAndComplement", "Logs"]
