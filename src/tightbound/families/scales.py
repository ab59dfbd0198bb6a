"""Square roots of a covariance: what a Gaussian draws with, whitens with, and never inverts.

Each scale stores unconstrained numbers, so that any step of an optimiser leaves a valid covariance.
The same code runs on NumPy leaves (host: nothing to compile, no precision flag to obey) and on JAX
ones (compiled code).
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
import scipy.linalg
from jaxtyping import Float

from .._types import Array, CovarianceStructure


class AbstractScale(eqx.Module):
    """A square root of a covariance, for displacements `delta = z - mean` from the mean.

    Implementing a scale: the methods below. Those that take a vector also take a batch `[..., n]`
    on the host; under JAX they see one point. `structure` is the scale's name in messages and
    tables of solvers.
    """

    structure: eqx.AbstractClassVar[CovarianceStructure]

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """d, the number of coordinates."""

    @property
    @abc.abstractmethod
    def noise_dim(self) -> int:
        """Number of standard normals behind one displacement."""

    @abc.abstractmethod
    def parts(self) -> tuple[Array, Array]:
        """(D `[d]`, C `[d, m]`) with covariance diag(D)^2 + C C'.

        The entries of D may be zero, and m may be 0.
        """

    @abc.abstractmethod
    def displace(self, noise: Array) -> Array:
        """A displacement `[..., d]` with this covariance, from standard normals `[..., noise_dim]`."""

    @abc.abstractmethod
    def half_log_det(self) -> Any:
        """log |cov|^(1/2), nats."""

    @abc.abstractmethod
    def quadratic(self, delta: Array) -> Any:
        """delta' cov^-1 delta for `[..., d]`."""

    @abc.abstractmethod
    def precision_diagonal(self) -> Array:
        """The diagonal of cov^-1, `[d]`."""

    @abc.abstractmethod
    def whiten(self, delta: Array) -> Array:
        """root^-1 delta: `[..., d]` -> `[..., d]`, for the square root of `unwhiten`."""

    @abc.abstractmethod
    def unwhiten(self, white: Array) -> Array:
        """root white.

        `[..., d]` -> `[..., d]`, a square d x d root of the covariance times a vector.
        """

    @abc.abstractmethod
    def whiten_score(self, score: Array) -> Array:
        """root' score: a gradient in z as a gradient in white coordinates, `[..., d]`."""

    @abc.abstractmethod
    def retract(self, step: Any) -> Any:
        """The scale that a small step leads to, the step read in units of the scale itself."""

    @abc.abstractmethod
    def stretched(self, factor: Array) -> Any:
        """The scale of diag(factor) delta: `factor [d]`, positive."""

    @property
    def sd(self) -> Array:
        """Marginal standard deviations, `[d]`; builds nothing d x d unless the scale itself is."""
        diagonal, columns = self.parts()
        xp = namespace(diagonal)
        return xp.sqrt(diagonal**2 + xp.sum(columns**2, axis=1))

    @property
    def cov(self) -> Array:
        """The covariance `[d, d]`.

        Not for a low-rank scale of large d, whose point is never to build it.
        """
        diagonal, columns = self.parts()
        return namespace(diagonal).diag(diagonal**2) + columns @ columns.T


def namespace(*arrays: Any) -> Any:
    """numpy when all arrays are NumPy's, else jax.numpy."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def solve_lower(root: Array, right: Array, *, transposed: bool = False) -> Array:
    """root^-1 right, or root'^-1 right, for lower triangular `root`; `right` is `[d]` or `[d, n]`."""
    linalg = scipy.linalg if namespace(root, right) is np else jax.scipy.linalg
    return linalg.solve_triangular(root, right, lower=True, trans=1 if transposed else 0)


def as_floating(value: Any) -> Any:
    """Lists and integers as float64 NumPy arrays.

    What already is a floating array, or no array at all, is left alone.
    """
    if eqx.is_inexact_array(value) or not isinstance(
        value, (list, tuple, int, float, np.ndarray, np.generic, jax.Array)
    ):
        return value
    return np.asarray(value, dtype=np.float64)


class Diagonal(AbstractScale):
    """Independent coordinates (mean field): cov = diag(exp(log_sd))^2.

    Not for posteriors with strong correlations: the optimum then has sds smaller than the marginal
    ones.

    Attributes:
        log_sd: `[d]`.
    """

    log_sd: Float[Array, " d"] = eqx.field(converter=as_floating)
    structure: ClassVar[CovarianceStructure] = "diagonal"

    @staticmethod
    def from_root(root: Any) -> "Diagonal":
        """From a diagonal square root `[d, d]` of the covariance.

        Entries off the diagonal are ignored.
        """
        return Diagonal(np.log(np.abs(np.diagonal(_square(root, "Diagonal.from_root", "root")))))

    @property
    def dim(self) -> int:
        return self.log_sd.shape[0]

    @property
    def noise_dim(self) -> int:
        return self.dim

    @property
    def root(self) -> Array:
        """The square root `[d, d]` that `unwhiten` applies."""
        xp = namespace(self.log_sd)
        return xp.diag(xp.exp(self.log_sd))

    def parts(self) -> tuple[Array, Array]:
        xp = namespace(self.log_sd)
        return xp.exp(self.log_sd), xp.zeros((self.dim, 0), self.log_sd.dtype)

    def displace(self, noise: Array) -> Array:
        return self.unwhiten(noise)

    def half_log_det(self) -> Any:
        return self.log_sd.sum()

    def quadratic(self, delta: Array) -> Any:
        return (self.whiten(delta) ** 2).sum(-1)

    def precision_diagonal(self) -> Array:
        return namespace(self.log_sd).exp(-2 * self.log_sd)

    def whiten(self, delta: Array) -> Array:
        return delta * namespace(self.log_sd).exp(-self.log_sd)

    def unwhiten(self, white: Array) -> Array:
        return white * namespace(self.log_sd).exp(self.log_sd)

    def whiten_score(self, score: Array) -> Array:
        return self.unwhiten(score)

    def retract(self, step: "Diagonal") -> "Diagonal":
        return Diagonal(self.log_sd + step.log_sd)

    def stretched(self, factor: Array) -> "Diagonal":
        return Diagonal(self.log_sd + namespace(factor).log(factor))


class Full(AbstractScale):
    """Any covariance: cov = L L' with L lower triangular.

    Not for dim above about 2,000: storage is d^2 and a density costs d^2. Use LowRank there.

    Attributes:
        raw: `[d, d]`; below the diagonal it is L, on the diagonal log L, above it is ignored.
    """

    raw: Float[Array, "d d"] = eqx.field(converter=as_floating)
    structure: ClassVar[CovarianceStructure] = "full"

    @staticmethod
    def from_root(root: Any) -> "Full":
        """From any square root R `[d, m]`, m >= d, R R' = cov: R' = Q T gives L = T'.

        No product R R' is formed, so a condition number of 1e8 costs 4 digits and not 8.

        Raises:
            ValueError: when `root` is not finite or has rank below d.
        """
        root = _finite(root, "Full.from_root", "root")
        if root.ndim != 2 or root.shape[1] < root.shape[0] or root.shape[0] == 0:
            raise ValueError(
                f"Full.from_root: `root` must be [d, m] with m >= d >= 1, got shape {root.shape}."
            )
        upper = np.asarray(np.linalg.qr(root.T, mode="r"))
        return Full._from_lower(upper.T * np.sign(np.diagonal(upper)), "Full.from_root", "root")

    @staticmethod
    def from_covariance(cov: Any) -> "Full":
        """From a covariance `[d, d]`, symmetric and positive definite.

        Prefer `from_root`, which keeps twice the digits.

        Raises:
            ValueError: when `cov` is not finite, not symmetric or not positive definite.
        """
        cov = _square(cov, "Full.from_covariance", "cov")
        sd = np.sqrt(np.abs(np.diagonal(cov)))
        scaled = cov / np.where(sd > 0, sd, 1.0)[:, None] / np.where(sd > 0, sd, 1.0)
        if not np.allclose(scaled, scaled.T, rtol=0, atol=1e-6):
            raise ValueError("Full.from_covariance: `cov` is not symmetric.")
        try:
            lower = np.linalg.cholesky(scaled)
        except np.linalg.LinAlgError:
            smallest = np.linalg.eigvalsh(scaled)[0]
            raise ValueError(
                "Full.from_covariance: `cov` is not positive definite (smallest eigenvalue of the"
                f" correlation matrix {smallest:.2g}). Pass a square root to Full.from_root instead"
                " if you have one."
            ) from None
        return Full._from_lower(sd[:, None] * lower, "Full.from_covariance", "cov")

    @staticmethod
    def _from_lower(lower: np.ndarray, where: str, name: str) -> "Full":
        diagonal = np.diagonal(lower)
        if not np.all(diagonal > 0):
            raise ValueError(
                f"{where}: `{name}` is singular: coordinate {int(np.argmin(diagonal))} has no"
                " variance of its own."
            )
        return Full(np.tril(lower, -1) + np.diag(np.log(diagonal)))

    @property
    def dim(self) -> int:
        return self.raw.shape[0]

    @property
    def noise_dim(self) -> int:
        return self.dim

    @property
    def root(self) -> Array:
        """L, `[d, d]`, lower triangular with a positive diagonal."""
        xp = namespace(self.raw)
        return xp.tril(self.raw, -1) + xp.diag(xp.exp(xp.diagonal(self.raw)))

    def parts(self) -> tuple[Array, Array]:
        return namespace(self.raw).zeros(self.dim, self.raw.dtype), self.root

    def displace(self, noise: Array) -> Array:
        return self.unwhiten(noise)

    def half_log_det(self) -> Any:
        return namespace(self.raw).diagonal(self.raw).sum()

    def quadratic(self, delta: Array) -> Any:
        return (self.whiten(delta) ** 2).sum(-1)

    def precision_diagonal(self) -> Array:
        xp = namespace(self.raw)
        return (solve_lower(self.root, xp.eye(self.dim, dtype=self.raw.dtype)) ** 2).sum(0)

    def whiten(self, delta: Array) -> Array:
        return solve_lower(self.root, delta.T).T

    def unwhiten(self, white: Array) -> Array:
        return white @ self.root.T

    def whiten_score(self, score: Array) -> Array:
        return score @ self.root

    def retract(self, step: "Full") -> "Full":
        """L <- L T with T = `step` read like `raw`: invariant under every affine change of the
        target's coordinates.

        Source: local parameterisation of Lin, Nielsen, Khan & Schmidt 2021 (Tractable structured
            natural-gradient
        descent), here with a triangular group.
        """
        xp = namespace(self.raw, step.raw)
        below = xp.tril(self.root @ Full(step.raw).root, -1)
        return Full(below + xp.diag(xp.diagonal(self.raw) + xp.diagonal(step.raw)))

    def stretched(self, factor: Array) -> "Full":
        xp = namespace(self.raw, factor)
        below = xp.tril(self.raw, -1) * factor[:, None]
        return Full(below + xp.diag(xp.diagonal(self.raw) + xp.log(factor)))


def _finite(value: Any, where: str, name: str) -> np.ndarray:
    value = np.asarray(value, dtype=np.float64)
    if not np.all(np.isfinite(value)):
        raise ValueError(f"{where}: `{name}` has NaN or infinite entries.")
    return value


def _square(value: Any, where: str, name: str) -> np.ndarray:
    value = _finite(value, where, name)
    if value.ndim != 2 or value.shape[0] != value.shape[1] or value.shape[0] == 0:
        raise ValueError(
            f"{where}: `{name}` must be a square matrix [d, d], got shape {value.shape}."
        )
    return value


__all__ = ["AbstractScale", "Diagonal", "Full", "as_floating", "namespace", "solve_lower"]
