"""Square roots of a covariance: what a Gaussian draws with, whitens with, and never inverts.

Each scale stores unconstrained numbers, so that any step of an optimiser leaves a valid covariance.
The same code runs on NumPy leaves (host: nothing to compile, no precision flag to obey) and on JAX
ones (compiled code).
"""

import abc
from typing import TYPE_CHECKING, ClassVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
import numpy.typing as npt
import scipy.linalg
from jaxtyping import Float

from .._numerics import namespace
from .._types import Array, CovarianceStructure, PyTree, Scalar, Self, Validated


class AbstractScale(eqx.Module):
    """A square root of a covariance, for displacements `delta = z - mean` from the mean.

    Implementing a scale: the methods below. Those that take a vector take a batch of them on the
    host; under JAX they see one point. `structure` is the scale's name in messages and tables of
    solvers.
    """

    # Equinox refuses to make a scale whose class has no `structure`, and names the omission. Type
    # checkers take AbstractClassVar for a variable of the instance, which no variable of a class
    # may override; so they are shown a plain ClassVar.
    if TYPE_CHECKING:
        structure: ClassVar[CovarianceStructure]
    else:
        structure: eqx.AbstractClassVar[CovarianceStructure]

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Number of coordinates."""

    @property
    @abc.abstractmethod
    def noise_dim(self) -> int:
        """Number of standard normals behind one displacement."""

    @abc.abstractmethod
    def parts(self) -> tuple[Float[Array, "dim"], Float[Array, "dim m"]]:
        """(D, C) with covariance diag(D)^2 + C C'.

        The entries of D may be zero, and m may be 0.
        """

    @abc.abstractmethod
    def displace(self, noise: Float[Array, "*batch noise"]) -> Float[Array, "*batch dim"]:
        """A displacement with this covariance, from `noise_dim` standard normals."""

    @abc.abstractmethod
    def half_log_det(self) -> Scalar:
        """log |cov|^(1/2), nats."""

    @abc.abstractmethod
    def quadratic(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        """delta' cov^-1 delta."""

    def half_log_det_and_quadratic(
        self, delta: Float[Array, "*batch dim"]
    ) -> tuple[Scalar, Float[Array, "*batch"]]:
        """Both, for scales that do them at less cost together."""
        return self.half_log_det(), self.quadratic(delta)

    @abc.abstractmethod
    def precision_diagonal(self) -> Float[Array, "dim"]:
        """The diagonal of cov^-1."""

    @abc.abstractmethod
    def whiten(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """root^-1 delta, for the square root of `unwhiten`."""

    @abc.abstractmethod
    def unwhiten(self, white: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """root white, for a square root of the covariance with as many columns as rows."""

    @abc.abstractmethod
    def whiten_score(self, score: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """root' score: a gradient in z as a gradient in white coordinates."""

    @abc.abstractmethod
    def retract(self, step: PyTree) -> Self:
        """The scale that a small step leads to, the step read in units of the scale itself."""

    @abc.abstractmethod
    def stretched(self, factor: Float[Array, "dim"]) -> Self:
        """The scale of diag(factor) delta, for positive factors."""

    @property
    def sd(self) -> Float[Array, "dim"]:
        """Marginal standard deviations; builds nothing d x d unless the scale itself is."""
        diagonal, columns = self.parts()
        xp = namespace(diagonal)
        return xp.sqrt(diagonal**2 + xp.sum(columns**2, axis=1))

    @property
    def cov(self) -> Float[Array, "dim dim"]:
        """The covariance.

        Not for a low-rank scale of large dim, whose point is never to build it.
        """
        diagonal, columns = self.parts()
        return namespace(diagonal).diag(diagonal**2) + columns @ columns.T


def solve_lower(
    root: Float[Array, "dim dim"], right: Float[Array, "dim *n"], *, transposed: bool = False
) -> Float[Array, "dim *n"]:
    """root^-1 right, or root'^-1 right, for a lower triangular `root`."""
    trans = 1 if transposed else 0
    if namespace(root, right) is jnp:
        return jax.scipy.linalg.solve_triangular(root, right, lower=True, trans=trans)
    try:
        return scipy.linalg.solve_triangular(
            root, right, lower=True, trans=trans, check_finite=False
        )
    except np.linalg.LinAlgError:
        # SciPy raises where JAX returns numbers that are not finite. A search steps back from such
        # numbers, or ends with a result that says so; an exception would end the whole fit.
        return np.full_like(right, np.nan)


def as_floating(
    value: Validated[npt.ArrayLike, "nobody: see below"],
) -> Validated[Array, "nobody"]:
    """Lists and integers as float64 NumPy arrays.

    What already is a floating array, or no array at all, is left alone: JAX and Equinox make
    members of placeholders.
    """
    if eqx.is_inexact_array(value) or not isinstance(
        value, (list, tuple, int, float, np.ndarray, np.generic, jax.Array)
    ):
        # An array to type checkers: what else there may be is never computed with.
        return cast(Array, value)
    return np.asarray(value, dtype=np.float64)


class Diagonal(AbstractScale):
    """Independent coordinates (mean field): cov = diag(exp(log_sd))^2.

    Not for posteriors with strong correlations: the optimum then has sds smaller than the marginal
    ones.

    Attributes:
        log_sd: logarithms of the sds.
    """

    log_sd: Float[Array, "dim"] = eqx.field(converter=as_floating)
    structure: ClassVar[CovarianceStructure] = "diagonal"

    @staticmethod
    def from_root(root: Validated[npt.ArrayLike, "_finite"]) -> "Diagonal":
        """From a diagonal square root `[dim, dim]`; entries off the diagonal are ignored."""
        return Diagonal(np.log(np.abs(np.diagonal(_square(root, "Diagonal.from_root", "root")))))

    @property
    def dim(self) -> int:
        return self.log_sd.shape[0]

    @property
    def noise_dim(self) -> int:
        return self.dim

    @property
    def root(self) -> Float[Array, "dim dim"]:
        """The square root that `unwhiten` applies."""
        xp = namespace(self.log_sd)
        return xp.diag(xp.exp(self.log_sd))

    def parts(self) -> tuple[Float[Array, "dim"], Float[Array, "dim m"]]:
        xp = namespace(self.log_sd)
        return xp.exp(self.log_sd), xp.zeros((self.dim, 0), self.log_sd.dtype)

    def displace(self, noise: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.unwhiten(noise)

    def half_log_det(self) -> Scalar:
        return self.log_sd.sum()

    def quadratic(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        return (self.whiten(delta) ** 2).sum(-1)

    def precision_diagonal(self) -> Float[Array, "dim"]:
        return namespace(self.log_sd).exp(-2 * self.log_sd)

    def whiten(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return delta * namespace(self.log_sd).exp(-self.log_sd)

    def unwhiten(self, white: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return white * namespace(self.log_sd).exp(self.log_sd)

    def whiten_score(self, score: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.unwhiten(score)

    def retract(self, step: "Diagonal") -> "Diagonal":
        return Diagonal(self.log_sd + step.log_sd)

    def stretched(self, factor: Float[Array, "dim"]) -> "Diagonal":
        return Diagonal(self.log_sd + namespace(factor).log(factor))


class Full(AbstractScale):
    """Any covariance: cov = L L' with L lower triangular.

    Not for dim above about 2,000: storage and a density cost dim^2. Use LowRank there.

    Attributes:
        raw: below the diagonal it is L, on the diagonal log L, above it is ignored.
    """

    raw: Float[Array, "dim dim"] = eqx.field(converter=as_floating)
    structure: ClassVar[CovarianceStructure] = "full"

    @staticmethod
    def from_root(root: Validated[npt.ArrayLike, "_finite"]) -> "Full":
        """From any square root R `[dim, m]`, m >= dim, R R' = cov: R' = Q T gives L = T'.

        No product R R' is formed, so a condition number of 1e8 costs 4 digits and not 8.

        Raises:
            ValueError: when `root` is not finite or has rank below dim.
        """
        root = _finite(root, "Full.from_root", "root")
        if root.ndim != 2 or root.shape[1] < root.shape[0] or root.shape[0] == 0:
            raise ValueError(
                f"Full.from_root: `root` must be [d, m] with m >= d >= 1, got shape {root.shape}."
            )
        upper = np.asarray(np.linalg.qr(root.T, mode="r"))
        return Full._from_lower(upper.T * np.sign(np.diagonal(upper)), "Full.from_root", "root")

    @staticmethod
    def from_covariance(cov: Validated[npt.ArrayLike, "_square"]) -> "Full":
        """From a covariance `[dim, dim]`, symmetric and positive definite.

        Prefer `from_root`, which keeps twice the digits.

        Raises:
            ValueError: when `cov` is not finite, not symmetric or not positive definite.
        """
        cov = _square(cov, "Full.from_covariance", "cov")
        # As correlations: variances in different units are no reason to lose digits.
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
    def _from_lower(lower: Float[np.ndarray, "dim dim"], where: str, name: str) -> "Full":
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
    def root(self) -> Float[Array, "dim dim"]:
        """L, lower triangular with a positive diagonal."""
        xp = namespace(self.raw)
        return xp.tril(self.raw, -1) + xp.diag(xp.exp(xp.diagonal(self.raw)))

    def parts(self) -> tuple[Float[Array, "dim"], Float[Array, "dim m"]]:
        return namespace(self.raw).zeros(self.dim, self.raw.dtype), self.root

    def displace(self, noise: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.unwhiten(noise)

    def half_log_det(self) -> Scalar:
        return namespace(self.raw).diagonal(self.raw).sum()

    def quadratic(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        return (self.whiten(delta) ** 2).sum(-1)

    def precision_diagonal(self) -> Float[Array, "dim"]:
        xp = namespace(self.raw)
        return (solve_lower(self.root, xp.eye(self.dim, dtype=self.raw.dtype)) ** 2).sum(0)

    def whiten(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return solve_lower(self.root, delta.T).T

    def unwhiten(self, white: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return white @ self.root.T

    def whiten_score(self, score: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return score @ self.root

    def retract(self, step: "Full") -> "Full":
        """L <- L T with T = `step` read like `raw`.

        Invariant under every affine change of the target's coordinates. Source: the local
        parameterisation of Lin, Nielsen, Khan & Schmidt 2021 (Tractable structured natural-gradient
        descent), here with a triangular group.
        """
        xp = namespace(self.raw, step.raw)
        below = xp.tril(self.root @ Full(step.raw).root, -1)
        return Full(below + xp.diag(xp.diagonal(self.raw) + xp.diagonal(step.raw)))

    def stretched(self, factor: Float[Array, "dim"]) -> "Full":
        xp = namespace(self.raw, factor)
        below = xp.tril(self.raw, -1) * factor[:, None]
        return Full(below + xp.diag(xp.diagonal(self.raw) + xp.log(factor)))


def _finite(
    value: Validated[npt.ArrayLike, "here"], where: str, name: str
) -> Float[np.ndarray, "..."]:
    value = np.asarray(value, dtype=np.float64)
    if not np.all(np.isfinite(value)):
        raise ValueError(f"{where}: `{name}` has NaN or infinite entries.")
    return value


def _square(
    value: Validated[npt.ArrayLike, "here"], where: str, name: str
) -> Float[np.ndarray, "dim dim"]:
    value = _finite(value, where, name)
    if value.ndim != 2 or value.shape[0] != value.shape[1] or value.shape[0] == 0:
        raise ValueError(
            f"{where}: `{name}` must be a square matrix [d, d], got shape {value.shape}."
        )
    return value


__all__ = ["AbstractScale", "Diagonal", "Full", "as_floating", "solve_lower"]
