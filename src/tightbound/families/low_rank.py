"""The low-rank-plus-diagonal scale: a few directions of correlation in very many coordinates."""

from collections.abc import Callable
from typing import ClassVar, TypeVar

import equinox as eqx
import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from .._numerics import namespace
from .._types import Array, CovarianceStructure, Scalar
from .scales import AbstractScale, as_floating
from .woodbury import AbstractForm, in_form

T = TypeVar("T")


class LowRank(AbstractScale):
    """cov = U U' + D^2 with U `[dim, r]` and D = diag(exp(log_diagonal)), never built as a matrix.

    Every operation costs O(dim r^2) at most and keeps its digits whatever the sizes of U and D: see
    `woodbury.py`. Draws are D noise[:dim] + U noise[dim:]. Not for dim up to a few hundred, where
    Full costs little and misses nothing.

    Attributes:
        factor: U.
        log_diagonal: log D.
    """

    factor: Float[Array, "dim r"] = eqx.field(converter=as_floating)
    log_diagonal: Float[Array, "dim"] = eqx.field(converter=as_floating)
    structure: ClassVar[CovarianceStructure] = "low_rank"

    def __check_init__(self) -> None:
        shapes = np.shape(self.factor), np.shape(self.log_diagonal)
        if len(shapes[0]) != 2 or shapes[0][:1] != shapes[1]:
            raise ValueError(
                f"LowRank: `factor` must be [d, r] and `log_diagonal` [d], got shapes {shapes[0]}"
                f" and {shapes[1]}."
            )

    @staticmethod
    def small(dim: int, rank: int, dtype: npt.DTypeLike = np.float64) -> "LowRank":
        """Unit marginal variances, of which 1 % at most comes from the factor.

        U = 0 would be a saddle point, where every gradient in U vanishes; orthogonal cosines are
        neither zero nor random.
        """
        grid = np.pi * (np.arange(dim) + 0.5) / dim
        factor = 0.1 / np.sqrt(rank) * np.cos(grid[:, None] * np.arange(rank))
        return LowRank(
            factor.astype(dtype), (0.5 * np.log1p(-np.sum(factor**2, axis=1))).astype(dtype)
        )

    @property
    def dim(self) -> int:
        return self.factor.shape[0]

    @property
    def rank(self) -> int:
        """r, the number of columns of the factor."""
        return self.factor.shape[1]

    @property
    def noise_dim(self) -> int:
        return self.dim + self.rank

    def parts(self) -> tuple[Float[Array, "dim"], Float[Array, "dim r"]]:
        return namespace(self.log_diagonal).exp(self.log_diagonal), self.factor

    def displace(self, noise: Float[Array, "*batch noise"]) -> Float[Array, "*batch dim"]:
        diagonal, factor = self.parts()
        return diagonal * noise[..., : self.dim] + noise[..., self.dim :] @ factor.T

    def half_log_det(self) -> Scalar:
        return self._in_form(lambda form: form.half_log_det())

    def half_log_det_and_quadratic(
        self, delta: Float[Array, "*batch dim"]
    ) -> tuple[Scalar, Float[Array, "*batch"]]:
        # Of one form: the choice between the forms takes a second to compile.
        return self._in_form(lambda form: (form.half_log_det(), form.quadratic(delta)))

    def quadratic(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        return self._in_form(lambda form: form.quadratic(delta))

    def precision_diagonal(self) -> Float[Array, "dim"]:
        return self._in_form(lambda form: form.precision_diagonal())

    def whiten(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self._in_form(lambda form: form.whiten(delta))

    def unwhiten(self, white: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self._in_form(lambda form: form.unwhiten(white))

    def whiten_score(self, score: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self._in_form(lambda form: form.whiten_score(score))

    def unwhiten_columns(self, columns: Float[Array, "dim m"]) -> Float[Array, "dim m"]:
        """root times each column of `[d, m]`."""
        return self._in_form(lambda form: form.unwhiten_columns(columns))

    def retract(self, step: "LowRank") -> "LowRank":
        """Each column of U moves by root times its step, as a mean would; log D by its step."""
        return LowRank(
            self.factor + self.unwhiten_columns(step.factor), self.log_diagonal + step.log_diagonal
        )

    def stretched(self, factor: Float[Array, "dim"]) -> "LowRank":
        return LowRank(
            self.factor * factor[:, None], self.log_diagonal + namespace(factor).log(factor)
        )

    def _in_form(self, use: Callable[[AbstractForm], T]) -> T:
        return in_form(self.factor, self.log_diagonal, use)


__all__ = ["LowRank"]
