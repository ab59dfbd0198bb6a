"""Wishart and normal-Wishart distributions: precision matrices, and means with them."""

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.linalg as jsl
import jax.scipy.special as jsp
import numpy as np

from ..._types import Array
from .base import AbstractExponentialFamily, check_positive, check_same, plated, symmetric
from .normal import check_definite, congruent, solve
from .roots import falling_root

_LOG_2PI = math.log(2 * math.pi)


class LogDetAndValue(NamedTuple):
    """E log|z| and E z `[d, d]` (of a Wishart), or the natural parameters that go with them."""

    log_det: Any
    value: Any


class NormalWishartStatistics(NamedTuple):
    """E log|P|, E P `[d, d]`, E P mu `[d]`, E mu' P mu, or the natural parameters that go with
    them.
    """

    log_det: Any
    precision: Any
    precision_mean: Any
    quadratic: Any


class Wishart(AbstractExponentialFamily):
    """The Wishart distribution: precision matrices P with mean df scale.

    Not for sparse ones, and df must exceed d - 1.

        q(P) = |P|^((df - d - 1)/2) exp(-tr(scale^-1 P)/2) |scale^-1|^(df/2) / (2^(df d/2)
        Gamma_d(df/2)) t = (log|P|, P),  eta = (df/2, -scale^-1/2),  h = |P|^(-(d + 1)/2) A = log
        Gamma_d(df/2) - df/2 log|scale^-1/2|

    The density is with respect to the lower triangle. Draws by Bartlett's decomposition, smooth in
    the parameters.

    Attributes:
        df: degrees of freedom, above d - 1, `[*plate]`.
        inverse_scale: scale^-1, symmetric and positive definite, `[*plate, d, d]`: what a posterior
            adds to.
    """

    df: Array
    inverse_scale: Array
    ranks: ClassVar[dict[str, int]] = {"df": 0, "inverse_scale": 2}
    statistic_ranks: ClassVar[tuple[int, ...]] = (0, 2)
    statistics_type: ClassVar[Any] = LogDetAndValue
    support: ClassVar[Any] = "positive_definite"

    def __init__(self, df: Any, inverse_scale: Any):
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
    def _log_partition(cls, eta: LogDetAndValue) -> jax.Array:
        return wishart_log_partition(eta.log_det, -eta.value)

    @classmethod
    def _cleaned(cls, eta: LogDetAndValue) -> LogDetAndValue:
        return LogDetAndValue(eta.log_det, symmetric(eta.value))

    def _statistics(self, value: jax.Array) -> LogDetAndValue:
        return LogDetAndValue(log_det(value), value)

    def _log_base(self, value: jax.Array) -> jax.Array:
        return -0.5 * (value.shape[-1] + 1) * log_det(value)

    @classmethod
    def _expected_log_base(cls, mean: LogDetAndValue) -> jax.Array:
        return -0.5 * (mean.value.shape[-1] + 1) * mean.log_det

    def _inside(self, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        ok = is_definite(value)
        return jnp.where(ok, value, jnp.eye(value.shape[-1], dtype=value.dtype)), ok

    def _valid(self) -> jax.Array:
        return is_definite(self.inverse_scale) & (self.df > self.inverse_scale.shape[-1] - 1)

    def _draw(self, key: jax.Array) -> Any:
        return draw_wishart(key, self.df, self.inverse_scale)

    def retract(self, step: Any) -> "Wishart":
        """df - (d - 1) is multiplied by exp(step); the matrix moves by a congruence."""
        moved = self.each(lambda q, by: congruent(q.inverse_scale, by), step.inverse_scale)
        return Wishart(_moved_df(self.df, step.df, moved.shape[-1]), moved)


class NormalWishart(AbstractExponentialFamily):
    """A mean and a precision matrix together: P ~ Wishart(df, inverse_scale^-1), mu | P ~ N(mean,
    (kappa P)^-1).

        t = (log|P|, P, P mu, mu' P mu) eta = (df/2, -(inverse_scale + kappa mean mean')/2, kappa
        mean, -kappa/2),  h = (2 pi)^(-d/2) |P|^(-d/2) A = log Gamma_d(df/2) - df/2
        log|inverse_scale/2| - d/2 log kappa

    The conjugate factor of a Gaussian's mean and precision (Bishop 2006, eq. B.84). d = 1 is the
    normal-gamma.

    Attributes:
        mean: `[*plate, d]`.
        kappa: positive, `[*plate]`: how many observations the mean is worth.
        df: above d - 1, `[*plate]`.
        inverse_scale: symmetric and positive definite, `[*plate, d, d]`.
    """

    mean: Array
    kappa: Array
    df: Array
    inverse_scale: Array
    ranks: ClassVar[dict[str, int]] = {"mean": 1, "kappa": 0, "df": 0, "inverse_scale": 2}
    statistic_ranks: ClassVar[tuple[int, ...]] = (0, 2, 1, 0)
    statistics_type: ClassVar[Any] = NormalWishartStatistics
    support: ClassVar[Any] = {"mean": "real", "precision": "positive_definite"}

    def __init__(self, mean: Any, kappa: Any, df: Any, inverse_scale: Any):
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
            mean, kappa, 2.0 * eta.log_det, -2.0 * eta.precision - kappa * jnp.outer(mean, mean)
        )

    @classmethod
    def _of_mean(cls, mean: NormalWishartStatistics) -> "NormalWishart":
        centre, dim = solve(mean.precision, mean.precision_mean), mean.precision.shape[-1]
        kappa = dim / (mean.quadratic - centre @ mean.precision_mean)
        df = df_of(mean.log_det, mean.precision)
        return cls(centre, kappa, df, df * symmetric(jnp.linalg.inv(mean.precision)))

    @classmethod
    def _log_partition(cls, eta: NormalWishartStatistics) -> jax.Array:
        kappa, dim = -2.0 * eta.quadratic, eta.precision_mean.shape[-1]
        half = -eta.precision - 0.5 * jnp.outer(eta.precision_mean, eta.precision_mean) / kappa
        return wishart_log_partition(eta.log_det, half) - 0.5 * dim * jnp.log(kappa)

    @classmethod
    def _cleaned(cls, eta: NormalWishartStatistics) -> NormalWishartStatistics:
        return eta._replace(precision=symmetric(eta.precision))

    def _statistics(self, value: dict[str, jax.Array]) -> NormalWishartStatistics:
        mu, precision = value["mean"], value["precision"]
        product = precision @ mu
        return NormalWishartStatistics(log_det(precision), precision, product, mu @ product)

    def _log_base(self, value: dict[str, jax.Array]) -> jax.Array:
        return -0.5 * value["mean"].shape[-1] * (_LOG_2PI + log_det(value["precision"]))

    @classmethod
    def _expected_log_base(cls, mean: NormalWishartStatistics) -> jax.Array:
        return -0.5 * mean.precision_mean.shape[-1] * (_LOG_2PI + mean.log_det)

    def _inside(self, value: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
        ok, precision = is_definite(value["precision"]), value["precision"]
        return {
            **value,
            "precision": jnp.where(
                ok, precision, jnp.eye(precision.shape[-1], dtype=precision.dtype)
            ),
        }, ok

    def _valid(self) -> jax.Array:
        enough = (self.df > self.inverse_scale.shape[-1] - 1) & (self.kappa > 0)
        return is_definite(self.inverse_scale) & enough & jnp.all(jnp.isfinite(self.mean))

    def _draw(self, key: jax.Array) -> Any:
        first, second = jr.split(key)
        precision = draw_wishart(first, self.df, self.inverse_scale)
        root = jnp.linalg.cholesky(precision)
        noise = jr.normal(second, self.mean.shape, self.mean.dtype) / jnp.sqrt(self.kappa)
        return {
            "mean": self.mean + jsl.solve_triangular(root, noise, lower=True, trans=1),
            "precision": precision,
        }

    def retract(self, step: Any) -> "NormalWishart":
        """mean + step; kappa and df - (d - 1) are multiplied by exp(step).

        The matrix moves by a congruence.
        """
        moved = self.each(lambda q, by: congruent(q.inverse_scale, by), step.inverse_scale)
        df = _moved_df(self.df, step.df, moved.shape[-1])
        return NormalWishart(self.mean + step.mean, self.kappa * jnp.exp(step.kappa), df, moved)


def wishart_log_partition(half_df: jax.Array, half: jax.Array) -> jax.Array:
    """log Gamma_d(half_df) - half_df log|half|, `half [d, d]`."""
    return jsp.multigammaln(half_df, half.shape[-1]) - half_df * log_det(symmetric(half))


def log_det(matrix: jax.Array) -> jax.Array:
    """log|matrix| of a symmetric positive definite matrix; NaN for any other."""
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(matrix))))


def is_definite(matrix: Any) -> jax.Array:
    skew = jnp.abs(matrix - matrix.T) <= 1e-6 * jnp.max(jnp.abs(matrix))
    return jnp.all(jnp.isfinite(jnp.linalg.cholesky(symmetric(matrix)))) & jnp.all(skew)


def draw_wishart(key: jax.Array, df: Any, inverse_scale: Any) -> jax.Array:
    """B A A' B' with B B' = inverse_scale^-1 and A Bartlett's.

    Chi(df - i) on the diagonal, normals below it.
    """
    dim, dtype = inverse_scale.shape[-1], inverse_scale.dtype
    first, second = jr.split(key)
    chi2 = 2.0 * jr.gamma(first, 0.5 * (df - jnp.arange(dim, dtype=dtype)), dtype=dtype)
    lower = jnp.tril(jr.normal(second, (dim, dim), dtype), -1) + jnp.diag(jnp.sqrt(chi2))
    factor = jsl.solve_triangular(jnp.linalg.cholesky(inverse_scale), lower, lower=True, trans=1)
    return factor @ factor.T


def df_of(mean_log_det: jax.Array, mean: jax.Array) -> jax.Array:
    """The degrees of freedom behind E log|P| and E P.

    D log(df/2) - sum_i digamma((df - i)/2) = log|E P| - E log|P|.
    """
    dim = mean.shape[-1]
    gap, index = log_det(mean) - mean_log_det, jnp.arange(dim, dtype=mean.dtype)

    def excess(u):
        df = dim - 1 + jnp.exp(u)
        return dim * jnp.log(0.5 * df) - jnp.sum(jsp.digamma(0.5 * (df - index))) - gap

    # for large df the left side is d (d + 1) / (2 df): the start
    return dim - 1 + jnp.exp(falling_root(excess, jnp.log(0.5 * dim * (dim + 1) / gap)))


def check_wishart(name: str, df: Any, inverse_scale: Any) -> None:
    """Raise a ValueError that names what is wrong.

    Shapes, a matrix that is not definite, too few degrees of freedom.
    """
    if not hasattr(inverse_scale, "shape"):
        return
    check_same(name, rows=inverse_scale.shape[-2], columns=inverse_scale.shape[-1])
    check_definite(name, inverse_scale=inverse_scale)
    least = inverse_scale.shape[-1] - 1
    if isinstance(df, (np.ndarray, np.generic)) and not np.all((df > least) & np.isfinite(df)):
        raise ValueError(f"{name}: `df` must exceed d - 1 = {least}, got {np.min(df)}.")


def _moved_df(df: Any, by: Any, dim: int) -> Any:
    return dim - 1 + (df - (dim - 1)) * jnp.exp(by)


__all__ = ["LogDetAndValue", "NormalWishart", "NormalWishartStatistics", "Wishart"]
