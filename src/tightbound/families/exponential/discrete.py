"""Bernoulli, categorical and Poisson distributions: whole numbers."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import numpy.typing as npt
from jaxtyping import Bool, Float, Real

from ..._types import Array, Scalar, Validated
from .base import AbstractExponentialFamily, StatisticsType, Support
from .gamma import Value
from .parameters import check_positive, plated

JUMP = (
    "a draw is a whole number, which jumps where the parameters move smoothly, so its derivative is"
    " zero or infinite"
)
# Counts summed over for E log z!: up to twice the largest mean, twelve sds above it.
_SUMMED = 320
# The mean above which the entropy's expansion is exact to 1e-11.
_LARGE = 160.0


class Probs(NamedTuple):
    """E one_hot(z), which are the probabilities, or the natural parameters (logits) to them."""

    probs: Float[Array, "*plate k"]


class Bernoulli(AbstractExponentialFamily):
    """The Bernoulli distribution, with p = sigmoid(logits): zero or one.

    Pathwise gradients do not exist; use Score or Enumerate.

        q(z) = p^z (1 - p)^(1 - z),   t = z,  eta = log p / (1 - p),  h = 1,  A = log(1 + exp eta)

    Attributes:
        logits: log p / (1 - p).
    """

    logits: Float[Array, "*plate"]
    reparameterised: ClassVar[bool] = False
    smooth_draws_no: ClassVar[str] = JUMP
    ranks: ClassVar[dict[str, int]] = {"logits": 0}
    statistic_ranks: ClassVar[tuple[int, ...]] = (0,)
    statistics_type: ClassVar[StatisticsType] = Value
    support: ClassVar[Support] = None

    def __init__(self, logits: Validated[npt.ArrayLike, "plated"]):
        (self.logits,) = plated("Bernoulli", logits=(logits, 0))

    @property
    def probs(self) -> Float[Array, "*plate"]:
        """P(z = 1)."""
        return self.mean_parameters.value

    @property
    def _event(self) -> tuple[int, ...]:
        return ()

    def _natural(self) -> Value:
        return Value(self.logits)

    @classmethod
    def _of_natural(cls, eta: Value) -> "Bernoulli":
        return cls(eta.value)

    @classmethod
    def _of_mean(cls, mean: Value) -> "Bernoulli":
        return cls(jnp.log(mean.value) - jnp.log1p(-mean.value))

    @classmethod
    def _log_partition(cls, eta: Value) -> Float[Array, ""]:
        return jax.nn.softplus(eta.value)

    def _statistics(self, value: Real[Array, ""]) -> Value:
        return Value(value)

    def _inside(self, value: Real[Array, ""]) -> tuple[Real[Array, ""], Bool[Array, ""]]:
        ok = (value == 0) | (value == 1)
        return jnp.where(ok, value, 0.0), ok

    def _draw(self, key: jax.Array) -> Float[Array, ""]:
        return jr.bernoulli(key, jax.nn.sigmoid(self.logits)).astype(jnp.result_type(self.logits))


class Categorical(AbstractExponentialFamily):
    """The categorical distribution, p = softmax(logits), on 0, ..., K - 1.

    Pathwise gradients do not exist; use Score, Enumerate or Relaxed.

        q(z) = p_z,   t = one_hot(z),  eta = logits (up to a constant),  h = 1
        A = log sum_k exp eta_k

    Attributes:
        logits: log probabilities up to a constant.
    """

    logits: Float[Array, "*plate k"]
    reparameterised: ClassVar[bool] = False
    smooth_draws_no: ClassVar[str] = JUMP
    ranks: ClassVar[dict[str, int]] = {"logits": 1}
    statistic_ranks: ClassVar[tuple[int, ...]] = (1,)
    statistics_type: ClassVar[StatisticsType] = Probs
    support: ClassVar[Support] = None

    def __init__(self, logits: Validated[npt.ArrayLike, "plated"]):
        (self.logits,) = plated("Categorical", logits=(logits, 1))

    @property
    def probs(self) -> Float[Array, "*plate k"]:
        """P(z = 0), ..., P(z = K - 1)."""
        return self.mean_parameters.probs

    @property
    def _event(self) -> tuple[int, ...]:
        return ()

    def _natural(self) -> Probs:
        return Probs(self.logits)

    @classmethod
    def _of_natural(cls, eta: Probs) -> "Categorical":
        return cls(eta.probs)

    @classmethod
    def _of_mean(cls, mean: Probs) -> "Categorical":
        return cls(jnp.log(mean.probs))

    @classmethod
    def _log_partition(cls, eta: Probs) -> Float[Array, ""]:
        return jsp.logsumexp(eta.probs)

    def _statistics(self, value: Real[Array, ""]) -> Probs:
        return Probs(
            jax.nn.one_hot(value.astype(int), self.logits.shape[-1], dtype=self.logits.dtype)
        )

    def _inside(self, value: Real[Array, ""]) -> tuple[Real[Array, ""], Bool[Array, ""]]:
        ok = (value >= 0) & (value < self.logits.shape[-1]) & (value == jnp.round(value))
        return jnp.where(ok, value, 0.0), ok

    def _draw(self, key: jax.Array) -> Float[Array, ""]:
        return jr.categorical(key, self.logits).astype(jnp.result_type(self.logits))


class Poisson(AbstractExponentialFamily):
    """The Poisson distribution: counts.

    Pathwise gradients do not exist; use Score or MeasureValued.

        q(z) = rate^z exp(-rate) / z!,   t = z,  eta = log rate,  h = 1 / z!,  A = exp eta

    E log h is no function of E z alone that a conjugate model could hold affinely, so a Poisson
    factor is for gradients, and for coordinate ascent only where log p has the same -log z! (it
    cancels).

    Attributes:
        rate: positive.
    """

    rate: Float[Array, "*plate"]
    reparameterised: ClassVar[bool] = False
    smooth_draws_no: ClassVar[str] = JUMP
    ranks: ClassVar[dict[str, int]] = {"rate": 0}
    statistic_ranks: ClassVar[tuple[int, ...]] = (0,)
    statistics_type: ClassVar[StatisticsType] = Value
    positive: ClassVar[tuple[str, ...]] = ("rate",)
    support: ClassVar[Support] = None

    def __init__(self, rate: Validated[npt.ArrayLike, "plated"]):
        (self.rate,) = plated("Poisson", rate=(rate, 0))
        check_positive("Poisson", rate=self.rate)

    @property
    def _event(self) -> tuple[int, ...]:
        return ()

    def _natural(self) -> Value:
        return Value(jnp.log(self.rate))

    @classmethod
    def _of_natural(cls, eta: Value) -> "Poisson":
        return cls(jnp.exp(eta.value))

    @classmethod
    def _of_mean(cls, mean: Value) -> "Poisson":
        return cls(mean.value)

    @classmethod
    def _log_partition(cls, eta: Value) -> Float[Array, ""]:
        return jnp.exp(eta.value)

    def _statistics(self, value: Real[Array, ""]) -> Value:
        return Value(value)

    def _log_base(self, value: Real[Array, ""]) -> Scalar:
        return -jsp.gammaln(value + 1.0)

    @classmethod
    def _expected_log_base(cls, mean: Value) -> Float[Array, ""]:
        """-E log z!: summed, or above a mean of 160 from an expansion (Evans et al. 1988)."""
        rate, counts = mean.value, jnp.arange(float(_SUMMED))
        few = jnp.minimum(rate, _LARGE)
        log_factorials = jsp.gammaln(counts + 1.0)
        summed = jnp.sum(jnp.exp(counts * jnp.log(few) - few - log_factorials) * log_factorials)
        many = jnp.maximum(rate, _LARGE)
        series = (
            -1.0 / (12 * many)
            - 1.0 / (24 * many**2)
            - 19.0 / (360 * many**3)
            - 9.0 / (80 * many**4)
        )
        entropy = 0.5 * jnp.log(2.0 * jnp.pi * jnp.e * many) + series
        return -jnp.where(rate <= _LARGE, summed, entropy - many + many * jnp.log(many))

    def _inside(self, value: Real[Array, ""]) -> tuple[Real[Array, ""], Bool[Array, ""]]:
        ok = (value >= 0) & (value == jnp.round(value))
        return jnp.where(ok, value, 0.0), ok

    def _draw(self, key: jax.Array) -> Float[Array, ""]:
        return jr.poisson(key, self.rate).astype(jnp.result_type(self.rate))


__all__ = ["Bernoulli", "Categorical", "Poisson", "Probs"]
