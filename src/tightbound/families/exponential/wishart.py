"""Wishart and normal-Wishart distributions: precision matrices, and means with them."""

import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.linalg as jsl
import jax.scipy.special as jsp
import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float

from ..._types import Array, Scalar, Validated
from .base import AbstractExponentialFamily, StatisticsType, Support
from .normal import check_definite, congruent, outer_square, solve
from .parameters import check_positive, check_same, plated
from .roots import falling_root
from .trees import symmetric

_LOG_2PI = math.log(2 * math.pi)


class LogDetAndValue(NamedTuple):
    """E log|z| and E z (of a Wishart), or the natural parameters that go with them."""

    log_det: Float[Array, "*plate"]
    value: Float[Array, "*plate d d"]


class NormalWishartStatistics(NamedTuple):
    """E log|P|, E P, E P mu and E mu' P mu, or the natural parameters that go with them."""

    log_det: Float[Array, "*plate"]
    precision: Float[Array, "*plate d d"]
    precision_mean: Float[Array, "*plate d"]
    quadratic: Float[Array, "*plate"]


class Wishart(AbstractExponentialFamily):
    """The Wishart distribution: precision matrices P with mean df scale.

    Not for sparse ones, and df must exceed d - 1.

        q(P) = |P|^((df - d - 1)/2) exp(-tr(scale^-1 P)/2) |scale^-1|^(df/2)
               / (2^(df d/2) Gamma_d(df/2))
        t = (log|P|, P),  eta = (df/2, -scale^-1/2),  h = |P|^(-(d + 1)/2)
        A = log Gamma_d(df/2) - df/2 log|scale^-1/2|

    The density is with respect to the lower triangle. Draws by Bartlett's decomposition, smooth in
    the parameters.

    Attributes:
        df: degrees of freedom, above d - 1.
        inverse_scale: scale^-1, symmetric and positive definite: what a posterior adds to.
    """

    df: Float[Array, "*plate"]
    inverse_scale: Float[Array, "*plate d d"]
    ranks: ClassVar[dict[str, int]] = {"df": 0, "inverse_scale": 2}
    statistic_ranks: ClassVar[tuple[int, ...]] = (0, 2)
    statistics_type: ClassVar[StatisticsType] = LogDetAndValue
    support: ClassVar[Support] = "positive_definite"

    def __init__(
        self,
        df: Validated[npt.ArrayLike, "plated"],
        inverse_scale: Validated[npt.ArrayLike, "plated"],
    ):
        self.df, self.inverse_scale = plated(
            "Wishart", df=(df, 0), inverse_scale=(inverse_scale, 2)
        )
        check_wishart("Wishart", self.df, self.inverse_scale)

    @property
    def _event(self) -> tuple[int, ...]:
        return self.inverse_scale.shape

    def _natural(self) -> LogDetAndValue:
        return LogDetAndValue(0.5 * self.df, -0.5 * self.inverse_scale)

    @classmethod
    def _of_natural(cls, eta: LogDetAndValue) -> "Wishart":
        return cls(2.0 * eta.log_det, -2.0 * eta.value)

    @classmethod
    def _of_mean(cls, mean: LogDetAndValue) -> "Wishart":
        df = df_of(mean.log_det, mean.value)
        return cls(df, df * symmetric(jnp.linalg.inv(mean.value)))

    @classmethod
    def _log_partition(cls, eta: LogDetAndValue) -> Float[Array, ""]:
        return wishart_log_partition(eta.log_det, -eta.value)

    @classmethod
    def _cleaned(cls, eta: LogDetAndValue) -> LogDetAndValue:
        return LogDetAndValue(eta.log_det, symmetric(eta.value))

    def _statistics(self, value: Float[Array, "d d"]) -> LogDetAndValue:
        return LogDetAndValue(log_det(value), value)

    def _log_base(self, value: Float[Array, "d d"]) -> Scalar:
        return -0.5 * (value.shape[-1] + 1) * log_det(value)

    @classmethod
    def _expected_log_base(cls, mean: LogDetAndValue) -> Float[Array, ""]:
        return -0.5 * (mean.value.shape[-1] + 1) * mean.log_det

    def _inside(self, value: Float[Array, "d d"]) -> tuple[Float[Array, "d d"], Bool[Array, ""]]:
        ok = is_definite(value)
        return jnp.where(ok, value, jnp.eye(value.shape[-1], dtype=value.dtype)), ok

    def _valid(self) -> Bool[Array, ""]:
        return is_definite(self.inverse_scale) & (self.df > self.inverse_scale.shape[-1] - 1)

    def _draw(self, key: jax.Array) -> Float[Array, "d d"]:
        return draw_wishart(key, self.df, self.inverse_scale)

    def retract(self, step: "Wishart") -> "Wishart":
        """df - (d - 1) is multiplied by exp(step); the matrix moves by a congruence."""
        moved = self.each(lambda q, by: congruent(q.inverse_scale, by), step.inverse_scale)
        return Wishart(_moved_df(self.df, step.df, moved.shape[-1]), moved)


class NormalWishart(AbstractExponentialFamily):
    """A mean and a precision matrix together, the conjugate factor of a Gaussian's two parameters.

        P ~ Wishart(df, inverse_scale^-1),  mu | P ~ N(mean, (kappa P)^-1)
        t = (log|P|, P, P mu, mu' P mu)
        eta = (df/2, -(inverse_scale + kappa mean mean')/2, kappa mean, -kappa/2)
        h = (2 pi)^(-d/2) |P|^(-d/2)
        A = log Gamma_d(df/2) - df/2 log|inverse_scale/2| - d/2 log kappa

    d = 1 is the normal-gamma. Source: Bishop 2006, eq. B.84.

    Attributes:
        mean: of mu.
        kappa: positive: how many observations the mean is worth.
        df: above d - 1.
        inverse_scale: symmetric and positive definite.
    """

    mean: Float[Array, "*plate d"]
    kappa: Float[Array, "*plate"]
    df: Float[Array, "*plate"]
    inverse_scale: Float[Array, "*plate d d"]
    ranks: ClassVar[dict[str, int]] = {"mean": 1, "kappa": 0, "df": 0, "inverse_scale": 2}
    statistic_ranks: ClassVar[tuple[int, ...]] = (0, 2, 1, 0)
    statistics_type: ClassVar[StatisticsType] = NormalWishartStatistics
    support: ClassVar[Support] = {"mean": "real", "precision": "positive_definite"}

    def __init__(
        self,
        mean: Validated[npt.ArrayLike, "plated"],
        kappa: Validated[npt.ArrayLike, "plated"],
        df: Validated[npt.ArrayLike, "plated"],
        inverse_scale: Validated[npt.ArrayLike, "plated"],
    ):
        self.mean, self.kappa, self.df, self.inverse_scale = plated(
            "NormalWishart",
            mean=(mean, 1),
            kappa=(kappa, 0),
            df=(df, 0),
            inverse_scale=(inverse_scale, 2),
        )
        check_wishart("NormalWishart", self.df, self.inverse_scale)
        check_positive("NormalWishart", kappa=self.kappa)
        if hasattr(self.inverse_scale, "shape"):
            check_same(
                "NormalWishart",
                mean=self.mean.shape[-1],
                inverse_scale=self.inverse_scale.shape[-1],
            )

    @property
    def _event(self) -> dict[str, tuple[int, ...]]:
        return {"mean": self.mean.shape, "precision": self.inverse_scale.shape}

    def _natural(self) -> NormalWishartStatistics:
        spread = self.inverse_scale + self.kappa * jnp.outer(
            jnp.asarray(self.mean), jnp.asarray(self.mean)
        )
        return NormalWishartStatistics(
            0.5 * self.df, -0.5 * spread, self.kappa * self.mean, -0.5 * self.kappa
        )

    @classmethod
    def _of_natural(cls, eta: NormalWishartStatistics) -> "NormalWishart":
        kappa = -2.0 * eta.quadratic
        mean = eta.precision_mean / kappa
        return cls(
            mean, kappa, 2.0 * eta.log_det, -2.0 * eta.precision - kappa * outer_square(mean)
        )

    @classmethod
    def _of_mean(cls, mean: NormalWishartStatistics) -> "NormalWishart":
        centre, dim = solve(mean.precision, mean.precision_mean), mean.precision.shape[-1]
        kappa = dim / (mean.quadratic - centre @ mean.precision_mean)
        df = df_of(mean.log_det, mean.precision)
        return cls(centre, kappa, df, df * symmetric(jnp.linalg.inv(mean.precision)))

    @classmethod
    def _log_partition(cls, eta: NormalWishartStatistics) -> Float[Array, ""]:
        kappa, dim = -2.0 * eta.quadratic, eta.precision_mean.shape[-1]
        half = -eta.precision - 0.5 * outer_square(eta.precision_mean) / kappa
        return wishart_log_partition(eta.log_det, half) - 0.5 * dim * jnp.log(kappa)

    @classmethod
    def _cleaned(cls, eta: NormalWishartStatistics) -> NormalWishartStatistics:
        return eta._replace(precision=symmetric(eta.precision))

    def _statistics(self, value: dict[str, Array]) -> NormalWishartStatistics:
        mu, precision = value["mean"], value["precision"]
        product = precision @ mu
        return NormalWishartStatistics(log_det(precision), precision, product, mu @ product)

    def _log_base(self, value: dict[str, Array]) -> Scalar:
        return -0.5 * value["mean"].shape[-1] * (_LOG_2PI + log_det(value["precision"]))

    @classmethod
    def _expected_log_base(cls, mean: NormalWishartStatistics) -> Float[Array, ""]:
        return -0.5 * mean.precision_mean.shape[-1] * (_LOG_2PI + mean.log_det)

    def _inside(self, value: dict[str, Array]) -> tuple[dict[str, Array], Bool[Array, ""]]:
        ok, precision = is_definite(value["precision"]), value["precision"]
        return {
            **value,
            "precision": jnp.where(
                ok, precision, jnp.eye(precision.shape[-1], dtype=precision.dtype)
            ),
        }, ok

    def _valid(self) -> Bool[Array, ""]:
        enough = (self.df > self.inverse_scale.shape[-1] - 1) & (self.kappa > 0)
        return is_definite(self.inverse_scale) & enough & jnp.all(jnp.isfinite(self.mean))

    def _draw(self, key: jax.Array) -> dict[str, Array]:
        first, second = jr.split(key)
        precision = draw_wishart(first, self.df, self.inverse_scale)
        root = jnp.linalg.cholesky(precision)
        noise = jr.normal(second, self.mean.shape, self.mean.dtype) / jnp.sqrt(self.kappa)
        return {
            "mean": self.mean + jsl.solve_triangular(root, noise, lower=True, trans=1),
            "precision": precision,
        }

    def retract(self, step: "NormalWishart") -> "NormalWishart":
        """mean + step; kappa and df - (d - 1) times exp(step); a congruence of the matrix."""
        moved = self.each(lambda q, by: congruent(q.inverse_scale, by), step.inverse_scale)
        df = _moved_df(self.df, step.df, moved.shape[-1])
        return NormalWishart(self.mean + step.mean, self.kappa * jnp.exp(step.kappa), df, moved)


def wishart_log_partition(half_df: Float[Array, ""], half: Float[Array, "d d"]) -> Float[Array, ""]:
    """log Gamma_d(half_df) - half_df log|half|."""
    return jsp.multigammaln(half_df, half.shape[-1]) - half_df * log_det(symmetric(half))


def log_det(matrix: Float[Array, "d d"]) -> Float[jax.Array, ""]:
    """log|matrix| of a symmetric positive definite matrix; NaN for any other."""
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(matrix))))


def is_definite(matrix: Float[Array, "d d"]) -> Bool[jax.Array, ""]:
    """Whether a matrix is symmetric, to rounding, and positive definite."""
    skew = jnp.abs(matrix - matrix.T) <= 1e-6 * jnp.max(jnp.abs(matrix))
    return jnp.all(jnp.isfinite(jnp.linalg.cholesky(symmetric(matrix)))) & jnp.all(skew)


def draw_wishart(
    key: jax.Array, df: Float[Array, ""], inverse_scale: Float[Array, "d d"]
) -> Float[jax.Array, "d d"]:
    """B A A' B' with B B' = inverse_scale^-1 and Bartlett's A.

    A has chi(df - i) on the diagonal and normals below it.
    """
    dim, dtype = inverse_scale.shape[-1], inverse_scale.dtype
    first, second = jr.split(key)
    chi2 = 2.0 * jr.gamma(first, 0.5 * (df - jnp.arange(dim, dtype=dtype)), dtype=dtype)
    lower = jnp.tril(jr.normal(second, (dim, dim), dtype), -1) + jnp.diag(jnp.sqrt(chi2))
    factor = jsl.solve_triangular(jnp.linalg.cholesky(inverse_scale), lower, lower=True, trans=1)
    return factor @ factor.T


def df_of(mean_log_det: Float[Array, ""], mean: Float[Array, "d d"]) -> Float[jax.Array, ""]:
    """The degrees of freedom behind E log|P| and E P.

    They solve d log(df/2) - sum_i digamma((df - i)/2) = log|E P| - E log|P|.
    """
    dim = mean.shape[-1]
    gap, index = log_det(mean) - mean_log_det, jnp.arange(dim, dtype=mean.dtype)

    def excess(u: Float[jax.Array, ""]) -> Float[jax.Array, ""]:
        df = dim - 1 + jnp.exp(u)
        return dim * jnp.log(0.5 * df) - jnp.sum(jsp.digamma(0.5 * (df - index))) - gap

    # For large df the left side is d (d + 1) / (2 df): the start
    return dim - 1 + jnp.exp(falling_root(excess, jnp.log(0.5 * dim * (dim + 1) / gap)))


def check_wishart(
    name: str,
    df: Validated[Array, "placeholders pass"],
    inverse_scale: Validated[Array, "placeholders pass"],
) -> None:
    """Raise a ValueError for wrong shapes, an indefinite matrix or too few degrees of freedom."""
    if not hasattr(inverse_scale, "shape"):
        return
    check_same(name, rows=inverse_scale.shape[-2], columns=inverse_scale.shape[-1])
    check_definite(name, inverse_scale=inverse_scale)
    least = inverse_scale.shape[-1] - 1
    if isinstance(df, (np.ndarray, np.generic)) and not np.all((df > least) & np.isfinite(df)):
        raise ValueError(f"{name}: `df` must exceed d - 1 = {least}, got {np.min(df)}.")


def _moved_df(
    df: Float[Array, "*plate"], by: Float[Array, "*plate"], dim: int
) -> Float[Array, "*plate"]:
    """df - (dim - 1) times exp(by), so that df stays above dim - 1."""
    return dim - 1 + (df - (dim - 1)) * jnp.exp(by)


__all__ = ["LogDetAndValue", "NormalWishart", "NormalWishartStatistics", "Wishart"]
