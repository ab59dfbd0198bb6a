"""The low-rank-plus-diagonal scale.

A few directions of correlation in very many coordinates, at linear cost.
"""

from typing import Any, ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._types import Array, CovarianceStructure
from .scales import AbstractScale, as_floating, namespace, solve_lower


class LowRank(AbstractScale):
    """cov = U U' + D^2 with U `[d, r]` and D = diag(exp(log_diagonal)).

    Nothing d x d is ever built.

    Every operation costs O(d r^2) at most, through W = D^-1 U and the r x r matrix I + W'W
    (Woodbury). Draws are D noise[:d] + U noise[d:]. Not for d up to a few hundred, where Full costs
    little and misses nothing.

    Attributes:
        factor: U, `[d, r]`.
        log_diagonal: log D, `[d]`.
    """

    factor: Float[Array, "d r"] = eqx.field(converter=as_floating)
    log_diagonal: Float[Array, " d"] = eqx.field(converter=as_floating)
    structure: ClassVar[CovarianceStructure] = "low_rank"

    def __check_init__(self):
        shapes = np.shape(self.factor), np.shape(self.log_diagonal)
        if len(shapes[0]) != 2 or shapes[0][:1] != shapes[1]:
            raise ValueError(
                f"LowRank: `factor` must be [d, r] and `log_diagonal` [d], got shapes {shapes[0]}"
                f" and {shapes[1]}."
            )

    @staticmethod
    def small(dim: int, rank: int, dtype: Any = np.float64) -> "LowRank":
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

    def parts(self) -> tuple[Array, Array]:
        return namespace(self.log_diagonal).exp(self.log_diagonal), self.factor

    def displace(self, noise: Array) -> Array:
        diagonal, factor = self.parts()
        return diagonal * noise[..., : self.dim] + noise[..., self.dim :] @ factor.T

    def half_log_det(self) -> Any:
        _, capacitance = self._scaled()
        xp = namespace(capacitance)
        return self.log_diagonal.sum() + xp.log(xp.diagonal(capacitance)).sum()

    def quadratic(self, delta: Array) -> Any:
        """|v - W a|^2 + |a|^2 with v = D^-1 delta and a the ridge regression of v on W.

        A sum of squares: the textbook form |v|^2 - |..|^2 cancels when U dominates D.
        """
        w, capacitance = self._scaled()
        v = self._over_diagonal(delta)
        a = solve_lower(capacitance, solve_lower(capacitance, (v @ w).T), transposed=True).T
        return ((v - a @ w.T) ** 2).sum(-1) + (a**2).sum(-1)

    def precision_diagonal(self) -> Array:
        w, capacitance = self._scaled()
        leverage = (solve_lower(capacitance, w.T) ** 2).sum(0)
        return (1.0 - leverage) * namespace(w).exp(-2 * self.log_diagonal)

    def whiten(self, delta: Array) -> Array:
        return self._through(self._over_diagonal(delta), _inverse_root_minus_one)

    def unwhiten(self, white: Array) -> Array:
        return self.parts()[0] * self._through(white, _root_minus_one)

    def whiten_score(self, score: Array) -> Array:
        return self._through(self.parts()[0] * score, _root_minus_one)

    def retract(self, step: "LowRank") -> "LowRank":
        """Each column of U moves by root times its step, as a mean would; log D by its step."""
        return LowRank(
            self.factor + self.unwhiten_columns(step.factor), self.log_diagonal + step.log_diagonal
        )

    def unwhiten_columns(self, columns: Array) -> Array:
        """root times each column of `[d, m]`."""
        w, vectors, values = self._spectrum()
        basis = w @ vectors
        moved = columns + (basis * _root_minus_one(values)[None, :]) @ (basis.T @ columns)
        return self.parts()[0][:, None] * moved

    def stretched(self, factor: Array) -> "LowRank":
        return LowRank(
            self.factor * factor[:, None], self.log_diagonal + namespace(factor).log(factor)
        )

    def _over_diagonal(self, delta: Array) -> Array:
        return delta * namespace(self.log_diagonal).exp(-self.log_diagonal)

    def _scaled_factor(self) -> Array:
        """W = D^-1 U, `[d, r]`."""
        return self.factor * namespace(self.log_diagonal).exp(-self.log_diagonal)[:, None]

    def _scaled(self) -> tuple[Array, Array]:
        """W = D^-1 U `[d, r]` and the Cholesky factor of I + W'W `[r, r]`."""
        w = self._scaled_factor()
        xp = namespace(w)
        return w, xp.linalg.cholesky(xp.eye(self.rank, dtype=w.dtype) + w.T @ w)

    def _spectrum(self) -> tuple[Array, Array, Array]:
        """W, and the eigenvectors and eigenvalues of W'W."""
        w = self._scaled_factor()
        xp = namespace(w)
        values, vectors = xp.linalg.eigh(w.T @ w)
        return w, vectors, xp.maximum(values, 0.0)

    def _through(self, v: Array, minus_one: Any) -> Array:
        """(I + W W')^p v, where `minus_one(s)` is ((1 + s)^p - 1) / s: the symmetric root (p = 1/2)
        or its inverse.

        Its derivative in U does not exist where W'W has equal eigenvalues, so densities use the
        Cholesky factor instead; whitening is only ever differentiated in v.
        """
        w, vectors, values = self._spectrum()
        basis = w @ vectors
        return v + ((v @ basis) * minus_one(values)) @ basis.T


def _root_minus_one(s: Array) -> Array:
    """(sqrt(1 + s) - 1) / s, without cancellation at small s."""
    return 1.0 / (namespace(s).sqrt(1.0 + s) + 1.0)


def _inverse_root_minus_one(s: Array) -> Array:
    """(1 / sqrt(1 + s) - 1) / s, without cancellation at small s."""
    root = namespace(s).sqrt(1.0 + s)
    return -1.0 / (root * (root + 1.0))


__all__ = ["LowRank"]
