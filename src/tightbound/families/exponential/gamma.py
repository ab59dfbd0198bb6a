"""Gamma, inverse gamma and exponential distributions: positive numbers."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float

from ..._types import Array, Scalar, Validated
from .base import AbstractExponentialFamily, StatisticsType, Support
from .parameters import check_positive, plated
from .roots import falling_root


class LogAndValue(NamedTuple):
    """E log z and E z (of a gamma), or the natural parameters that go with them."""

    log: Float[Array, "*plate"]
    value: Float[Array, "*plate"]


class LogAndInverse(NamedTuple):
    """E log z and E 1/z (of an inverse gamma), or the natural parameters that go with them."""

    log: Float[Array, "*plate"]
    inverse: Float[Array, "*plate"]


class Value(NamedTuple):
    """E z, or the natural parameter that goes with it."""

    value: Float[Array, "*plate"]


class Gamma(AbstractExponentialFamily):
    """The gamma distribution: precisions and rates.

    Not for values that the posterior pushes onto zero with several modes.

        q(z) = rate^shape z^(shape - 1) exp(-rate z) / Gamma(shape)
        t = (log z, z),  eta = (shape, -rate),  h = 1/z,  A = log Gamma(shape) - shape log rate

    Mean to natural: Newton's method for log a - digamma(a) = log E z - E log z (Minka 2002,
    "Estimating a gamma distribution"). Draws are differentiated implicitly, through the
    distribution function (Figurnov et al. 2018, eq. 5).

    Attributes:
        shape: positive.
        rate: positive.
    """

    shape: Float[Array, "*plate"]
    rate: Float[Array, "*plate"]
    ranks: ClassVar[dict[str, int]] = {"shape": 0, "rate": 0}
    statistic_ranks: ClassVar[tuple[int, ...]] = (0, 0)
    statistics_type: ClassVar[StatisticsType] = LogAndValue
    positive: ClassVar[tuple[str, ...]] = ("shape", "rate")
    support: ClassVar[Support] = "positive"

    def __init__(
        self, shape: Validated[npt.ArrayLike, "plated"], rate: Validated[npt.ArrayLike, "plated"]
    ):
        self.shape, self.rate = plated("Gamma", shape=(shape, 0), rate=(rate, 0))
        check_positive("Gamma", shape=self.shape, rate=self.rate)

    @property
    def _event(self) -> tuple[int, ...]:
        return ()

    def _natural(self) -> LogAndValue:
        return LogAndValue(self.shape, -self.rate)

    @classmethod
    def _of_natural(cls, eta: LogAndValue) -> "Gamma":
        return cls(eta.log, -eta.value)

    @classmethod
    def _of_mean(cls, mean: LogAndValue) -> "Gamma":
        shape = shape_of_gap(jnp.log(mean.value) - mean.log)
        return cls(shape, shape / mean.value)

    @classmethod
    def _log_partition(cls, eta: LogAndValue) -> Float[Array, ""]:
        return jsp.gammaln(eta.log) - eta.log * jnp.log(-eta.value)

    def _statistics(self, value: Float[Array, ""]) -> LogAndValue:
        return LogAndValue(jnp.log(value), value)

    def _log_base(self, value: Float[Array, ""]) -> Scalar:
        return -jnp.log(value)

    @classmethod
    def _expected_log_base(cls, mean: LogAndValue) -> Float[Array, ""]:
        return -mean.log

    def _inside(self, value: Float[Array, ""]) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        ok = value > 0
        return jnp.where(ok, value, 1.0), ok

    def _draw(self, key: jax.Array) -> Float[Array, ""]:
        return positive_gamma(key, self.shape) / self.rate


class InverseGamma(AbstractExponentialFamily):
    """The inverse gamma distribution: variances. 1/z is Gamma(shape, rate=scale).

    Has a mean for shape above 1 only.

        q(z) = scale^shape z^(-shape - 1) exp(-scale / z) / Gamma(shape)
        t = (log z, 1/z),  eta = (-shape, -scale),  h = 1/z,  A = log Gamma(shape) - shape log scale

    Attributes:
        shape: positive.
        scale: positive.
    """

    shape: Float[Array, "*plate"]
    scale: Float[Array, "*plate"]
    ranks: ClassVar[dict[str, int]] = {"shape": 0, "scale": 0}
    statistic_ranks: ClassVar[tuple[int, ...]] = (0, 0)
    statistics_type: ClassVar[StatisticsType] = LogAndInverse
    positive: ClassVar[tuple[str, ...]] = ("shape", "scale")
    support: ClassVar[Support] = "positive"

    def __init__(
        self, shape: Validated[npt.ArrayLike, "plated"], scale: Validated[npt.ArrayLike, "plated"]
    ):
        self.shape, self.scale = plated("InverseGamma", shape=(shape, 0), scale=(scale, 0))
        check_positive("InverseGamma", shape=self.shape, scale=self.scale)

    @property
    def _event(self) -> tuple[int, ...]:
        return ()

    def _natural(self) -> LogAndInverse:
        return LogAndInverse(-self.shape, -self.scale)

    @classmethod
    def _of_natural(cls, eta: LogAndInverse) -> "InverseGamma":
        return cls(-eta.log, -eta.inverse)

    @classmethod
    def _of_mean(cls, mean: LogAndInverse) -> "InverseGamma":
        shape = shape_of_gap(jnp.log(mean.inverse) + mean.log)
        return cls(shape, shape / mean.inverse)

    @classmethod
    def _log_partition(cls, eta: LogAndInverse) -> Float[Array, ""]:
        return jsp.gammaln(-eta.log) + eta.log * jnp.log(-eta.inverse)

    def _statistics(self, value: Float[Array, ""]) -> LogAndInverse:
        return LogAndInverse(jnp.log(value), 1.0 / value)

    def _log_base(self, value: Float[Array, ""]) -> Scalar:
        return -jnp.log(value)

    @classmethod
    def _expected_log_base(cls, mean: LogAndInverse) -> Float[Array, ""]:
        return -mean.log

    def _inside(self, value: Float[Array, ""]) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        ok = value > 0
        return jnp.where(ok, value, 1.0), ok

    def _draw(self, key: jax.Array) -> Float[Array, ""]:
        return self.scale / positive_gamma(key, self.shape)


class Exponential(AbstractExponentialFamily):
    """The exponential distribution: a positive number whose density falls from zero on.

    For anything with a mode, Gamma.

        q(z) = rate exp(-rate z),   t = z,  eta = -rate,  h = 1,  A = -log rate

    Draws by the inverse distribution function, z = -log(1 - u) / rate: smooth in the rate.

    Attributes:
        rate: positive.
    """

    rate: Float[Array, "*plate"]
    ranks: ClassVar[dict[str, int]] = {"rate": 0}
    statistic_ranks: ClassVar[tuple[int, ...]] = (0,)
    statistics_type: ClassVar[StatisticsType] = Value
    positive: ClassVar[tuple[str, ...]] = ("rate",)
    support: ClassVar[Support] = "positive"

    def __init__(self, rate: Validated[npt.ArrayLike, "plated"]):
        (self.rate,) = plated("Exponential", rate=(rate, 0))
        check_positive("Exponential", rate=self.rate)

    @property
    def _event(self) -> tuple[int, ...]:
        return ()

    def _natural(self) -> Value:
        return Value(-self.rate)

    @classmethod
    def _of_natural(cls, eta: Value) -> "Exponential":
        return cls(-eta.value)

    @classmethod
    def _of_mean(cls, mean: Value) -> "Exponential":
        return cls(1.0 / mean.value)

    @classmethod
    def _log_partition(cls, eta: Value) -> Float[Array, ""]:
        return -jnp.log(-eta.value)

    def _statistics(self, value: Float[Array, ""]) -> Value:
        return Value(value)

    def _inside(self, value: Float[Array, ""]) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        ok = value >= 0
        return jnp.where(ok, value, 1.0), ok

    def _draw(self, key: jax.Array) -> Float[Array, ""]:
        return jr.exponential(key, dtype=jnp.result_type(self.rate)) / self.rate


def shape_of_gap(gap: Float[Array, ""]) -> Float[Array, ""]:
    """The a with log a - digamma(a) = gap > 0; Minka's (2002) start is within 1.5 % of it."""
    start = (3.0 - gap + jnp.sqrt((gap - 3.0) ** 2 + 24.0 * gap)) / (12.0 * gap)
    return jnp.exp(
        falling_root(lambda u: u - jsp.digamma(jnp.exp(u)) - gap, jnp.log(start), steps=8)
    )


def positive_gamma(key: jax.Array, shape: Float[Array, ""]) -> Float[jax.Array, ""]:
    """A standard gamma draw that is never rounded to zero, differentiated implicitly in the shape.

    Zero would have an infinite logarithm, which is a statistic.
    """
    dtype = jnp.result_type(shape)
    log = jr.loggamma(key, shape, dtype=dtype)
    return jnp.exp(jnp.maximum(log, smallest_log(dtype)))


def smallest_log(dtype: np.dtype) -> float:
    """The log of a number just above the smallest normal ones of the dtype."""
    return -700.0 if dtype == np.float64 else -80.0


__all__ = [
    "Exponential",
    "Gamma",
    "InverseGamma",
    "LogAndInverse",
    "LogAndValue",
    "Value",
    "smallest_log",
]
