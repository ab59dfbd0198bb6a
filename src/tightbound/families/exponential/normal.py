"""Gaussians in natural form, as factors: `Normal` (numbers), `MultivariateNormal` (vectors)."""

import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.linalg as jsl
import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float

from ..._types import Array, Scalar, Validated
from ..gaussian import Gaussian
from ..scales import Diagonal, Full
from .base import AbstractExponentialFamily, StatisticsType, Support
from .parameters import check_positive, check_same, plated
from .trees import symmetric

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class ValueAndSquare(NamedTuple):
    """E z and E z^2, or the natural parameters that go with them."""

    value: Float[Array, "*plate"]
    square: Float[Array, "*plate"]


class ValueAndOuter(NamedTuple):
    """E z and E z z', or the natural parameters that go with them."""

    value: Float[Array, "*plate d"]
    outer: Float[Array, "*plate d d"]


class Normal(AbstractExponentialFamily):
    """N(mean, 1/precision): numbers, each on its own.

    As a whole posterior on R^d use Gaussian, which solvers move faster.

        t = (z, z^2),  eta = (precision mean, -precision/2),  h = (2 pi)^(-1/2)
        A = precision mean^2/2 - log(precision)/2

    Attributes:
        mean: of z.
        precision: positive.
    """

    mean: Float[Array, "*plate"]
    precision: Float[Array, "*plate"]
    ranks: ClassVar[dict[str, int]] = {"mean": 0, "precision": 0}
    statistic_ranks: ClassVar[tuple[int, ...]] = (0, 0)
    statistics_type: ClassVar[StatisticsType] = ValueAndSquare
    positive: ClassVar[tuple[str, ...]] = ("precision",)
    support: ClassVar[Support] = "real"

    def __init__(
        self,
        mean: Validated[npt.ArrayLike, "plated"],
        precision: Validated[npt.ArrayLike, "plated"],
    ):
        self.mean, self.precision = plated("Normal", mean=(mean, 0), precision=(precision, 0))
        check_positive("Normal", precision=self.precision)

    @staticmethod
    def from_gaussian(q: Gaussian) -> "Normal":
        """The plate `[d]` with the marginals of a Gaussian (equal to it where it is diagonal)."""
        return Normal(np.asarray(q.mean), 1.0 / np.asarray(q.sd) ** 2)

    def gaussian(self) -> Gaussian:
        """The same law as a diagonal tb.families.Gaussian on R^dim."""
        return Gaussian(np.ravel(self.mean), Diagonal(-0.5 * np.log(np.ravel(self.precision))))

    @property
    def _event(self) -> tuple[int, ...]:
        return ()

    def _natural(self) -> ValueAndSquare:
        return ValueAndSquare(self.precision * self.mean, -0.5 * self.precision)

    @classmethod
    def _of_natural(cls, eta: ValueAndSquare) -> "Normal":
        precision = -2.0 * eta.square
        return cls(eta.value / precision, precision)

    @classmethod
    def _of_mean(cls, mean: ValueAndSquare) -> "Normal":
        return cls(mean.value, 1.0 / (mean.square - mean.value**2))

    @classmethod
    def _log_partition(cls, eta: ValueAndSquare) -> Float[Array, ""]:
        precision = -2.0 * eta.square
        return 0.5 * eta.value**2 / precision - 0.5 * jnp.log(precision)

    def _statistics(self, value: Float[Array, ""]) -> ValueAndSquare:
        return ValueAndSquare(value, value**2)

    def _log_base(self, value: Float[Array, ""]) -> Scalar:
        return -_HALF_LOG_2PI

    @classmethod
    def _expected_log_base(cls, mean: ValueAndSquare) -> Float[Array, ""]:
        return jnp.full_like(mean.value, -_HALF_LOG_2PI)

    def _draw(self, key: jax.Array) -> Float[Array, ""]:
        return self.mean + jr.normal(key, dtype=jnp.result_type(self.mean)) / jnp.sqrt(
            self.precision
        )


class MultivariateNormal(AbstractExponentialFamily):
    """N(mean, precision^-1): vectors with any correlation.

    As a whole posterior on R^d use Gaussian.full.

        t = (z, z z'),  eta = (P mean, -P/2),  h = (2 pi)^(-d/2),  A = mean' P mean / 2 - log|P| / 2

    Attributes:
        mean: of z.
        precision: P, symmetric and positive definite.
    """

    mean: Float[Array, "*plate d"]
    precision: Float[Array, "*plate d d"]
    ranks: ClassVar[dict[str, int]] = {"mean": 1, "precision": 2}
    statistic_ranks: ClassVar[tuple[int, ...]] = (1, 2)
    statistics_type: ClassVar[StatisticsType] = ValueAndOuter
    support: ClassVar[Support] = "real"

    def __init__(
        self,
        mean: Validated[npt.ArrayLike, "plated"],
        precision: Validated[npt.ArrayLike, "plated"],
    ):
        self.mean, self.precision = plated(
            "MultivariateNormal", mean=(mean, 1), precision=(precision, 2)
        )
        if hasattr(self.precision, "shape"):
            check_same(
                "MultivariateNormal", mean=self.mean.shape[-1], rows=self.precision.shape[-2]
            )
            check_same(
                "MultivariateNormal",
                rows=self.precision.shape[-2],
                columns=self.precision.shape[-1],
            )
        check_definite("MultivariateNormal", precision=self.precision)

    @staticmethod
    def from_gaussian(q: Gaussian) -> "MultivariateNormal":
        """A Gaussian of any scale, as one factor."""
        return MultivariateNormal(np.asarray(q.mean), np.linalg.inv(np.asarray(q.cov)))

    def gaussian(self) -> Gaussian:
        """The same law as a full tb.families.Gaussian; of a single member."""
        if self.plate:
            raise ValueError(
                f"gaussian: one member makes a Gaussian, but this is a plate {self.plate}; `take`"
                " one."
            )
        return Gaussian(
            np.asarray(self.mean), Full.from_covariance(np.linalg.inv(np.asarray(self.precision)))
        )

    @property
    def _event(self) -> tuple[int, ...]:
        return self.mean.shape

    def _natural(self) -> ValueAndOuter:
        precision = symmetric(self.precision)
        return ValueAndOuter(precision @ self.mean, -0.5 * precision)

    @classmethod
    def _of_natural(cls, eta: ValueAndOuter) -> "MultivariateNormal":
        precision = -2.0 * eta.outer
        return cls(solve(precision, eta.value), precision)

    @classmethod
    def _of_mean(cls, mean: ValueAndOuter) -> "MultivariateNormal":
        return cls(mean.value, symmetric(jnp.linalg.inv(mean.outer - outer_square(mean.value))))

    @classmethod
    def _log_partition(cls, eta: ValueAndOuter) -> Float[Array, ""]:
        root = jnp.linalg.cholesky(symmetric(-2.0 * eta.outer))
        white = jsl.solve_triangular(root, eta.value, lower=True)
        return 0.5 * jnp.sum(white**2) - jnp.sum(jnp.log(jnp.diagonal(root)))

    @classmethod
    def _cleaned(cls, eta: ValueAndOuter) -> ValueAndOuter:
        return ValueAndOuter(eta.value, symmetric(eta.outer))

    def _statistics(self, value: Float[Array, "d"]) -> ValueAndOuter:
        return ValueAndOuter(value, outer_square(value))

    def _log_base(self, value: Float[Array, "d"]) -> Scalar:
        return -_HALF_LOG_2PI * value.shape[0]

    @classmethod
    def _expected_log_base(cls, mean: ValueAndOuter) -> Float[Array, ""]:
        return jnp.full((), -_HALF_LOG_2PI * mean.value.shape[-1], mean.value.dtype)

    def _valid(self) -> Bool[Array, ""]:
        return jnp.all(jnp.isfinite(self.mean)) & jnp.all(
            jnp.isfinite(jnp.linalg.cholesky(self.precision))
        )

    def _draw(self, key: jax.Array) -> Float[Array, "d"]:
        root = jnp.linalg.cholesky(self.precision)
        noise = jr.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jsl.solve_triangular(root, noise, lower=True, trans=1)

    def retract(self, step: "MultivariateNormal") -> "MultivariateNormal":
        """mean + step, and a congruence of the precision, which keeps it positive definite."""
        moved = self.each(lambda q, by: congruent(q.precision, by), step.precision)
        return MultivariateNormal(self.mean + step.mean, moved)


def outer_square(vector: Float[Array, "d"]) -> Float[jax.Array, "d d"]:
    """The outer product of a vector with itself."""
    array = jnp.asarray(vector)
    return jnp.outer(array, array)


def congruent(matrix: Float[Array, "d d"], step: Float[Array, "d d"]) -> Float[jax.Array, "d d"]:
    """L (I + s) (I + s)' L' for matrix = L L' and s half the symmetric part of `step`.

    Whatever the step, it is not indefinite.
    """
    root = jnp.linalg.cholesky(jnp.asarray(matrix))
    factor = root + 0.5 * root @ symmetric(step)
    return factor @ factor.T


def solve(matrix: Float[Array, "d d"], right: Float[Array, "d *n"]) -> Float[jax.Array, "d *n"]:
    """matrix^-1 right, for a symmetric positive definite matrix."""
    return jsl.cho_solve((jnp.linalg.cholesky(matrix), True), right)


def check_definite(name: str, **fields: Validated[Array, "numbers that are known"]) -> None:
    """Raise a ValueError for a matrix that is not symmetric and positive definite.

    Known numbers only.
    """
    for field, value in fields.items():
        if not isinstance(value, np.ndarray):
            continue
        flipped = np.swapaxes(value, -1, -2)
        symmetrical = np.allclose(
            value, flipped, rtol=1e-8, atol=1e-10 * (1 + np.abs(value).max(initial=0.0))
        )
        if not (
            symmetrical and np.all(np.isfinite(value)) and np.all(np.linalg.eigvalsh(value) > 0)
        ):
            raise ValueError(f"{name}: `{field}` must be symmetric and positive definite.")


__all__ = [
    "MultivariateNormal",
    "Normal",
    "ValueAndOuter",
    "ValueAndSquare",
    "check_definite",
    "congruent",
    "outer_square",
    "solve",
]
