"""The Gaussian family: one class, whatever the shape of the covariance."""

import math

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from .._numerics import namespace, scoped
from .._types import Array, CovarianceStructure, Key, PyTree, Scalar, Validated
from .base import AbstractFamily, on_one_thread, standard_normals
from .low_rank import LowRank
from .scales import AbstractScale, Diagonal, Full, as_floating

_LOG_2PI = math.log(2 * math.pi)


class Gaussian(AbstractFamily):
    """N(mean, cov), where the scale decides what the covariance can be: Diagonal, Full or LowRank.

    Make one with `Gaussian.full(dim)`, `.diagonal(dim)` or `.low_rank(dim, rank)` (all standard
    normal), or from a mean and a scale, as in `Gaussian(mean, Full.from_covariance(cov))`. Not for
    several modes, heavy tails or funnels.

    log q(z) = -d/2 log 2 pi - log |root| - |root^-1 (z - mean)|^2 / 2.

    Attributes:
        mean: the centre.
        scale: a square root of the covariance.

    Raises:
        ValueError: when mean and scale disagree in their dimension.
    """

    mean: Float[Array, "dim"] = eqx.field(converter=as_floating)
    scale: AbstractScale

    def __check_init__(self) -> None:
        if np.shape(self.mean) != (self.scale.dim,):
            raise ValueError(
                f"Gaussian: `mean` must have shape [{self.scale.dim}] as its scale has, got"
                f" {np.shape(self.mean)}."
            )

    @property
    def covariance_structure(self) -> CovarianceStructure:
        return self.scale.structure

    @staticmethod
    def diagonal(dim: Validated[int, "_positive"]) -> "Gaussian":
        """The standard normal, with independent coordinates (mean field)."""
        return Gaussian(np.zeros(_positive(dim, "dim")), Diagonal(np.zeros(dim)))

    @staticmethod
    def full(dim: Validated[int, "_positive"]) -> "Gaussian":
        """The standard normal, with room for any covariance."""
        return Gaussian(np.zeros(_positive(dim, "dim")), Full(np.zeros((dim, dim))))

    @staticmethod
    def low_rank(dim: Validated[int, "_positive"], rank: Validated[int, "_positive"]) -> "Gaussian":
        """Unit sds, nearly independent, with room for `rank` directions of correlation."""
        if _positive(rank, "rank") > _positive(dim, "dim"):
            raise ValueError(
                f"Gaussian.low_rank: `rank` must not exceed `dim`, got rank {rank} of dim {dim};"
                " use Gaussian.full."
            )
        return Gaussian(np.zeros(dim), LowRank.small(dim, rank))

    @staticmethod
    def from_root(
        mean: Float[Array, "dim"], root: Validated[npt.ArrayLike, "Full.from_root"]
    ) -> "Gaussian":
        """N(mean, root root') with a full scale, from any square root `[dim, m]`, m >= dim."""
        return Gaussian(mean, Full.from_root(root))

    @property
    def dim(self) -> int:
        return self.mean.shape[0]

    @property
    def noise_dim(self) -> int:
        return self.scale.noise_dim

    @property
    @scoped
    def sd(self) -> Float[Array, "dim"]:
        """Marginal standard deviations; never builds anything d x d."""
        return self.scale.sd

    @property
    @scoped
    @on_one_thread
    def cov(self) -> Float[Array, "dim dim"]:
        """The covariance; of a low-rank scale, too, which itself avoids so many numbers."""
        return self.scale.cov

    @property
    @scoped
    @on_one_thread
    def root(self) -> Float[Array, "dim dim"]:
        """A square root of the covariance: the one that `unwhiten` applies."""
        xp = namespace(*jax.tree.leaves(self))
        unwhiten = self.scale.unwhiten if xp is np else jax.vmap(self.scale.unwhiten)
        return unwhiten(xp.eye(self.dim, dtype=self.dtype)).T

    @scoped
    @on_one_thread
    def entropy(self) -> Scalar:
        """d/2 (1 + log 2 pi) + log |root|, nats, exact."""
        return 0.5 * self.dim * (1.0 + _LOG_2PI) + self.scale.half_log_det()

    @scoped
    def moved(
        self,
        mean: Validated[npt.ArrayLike, "xp.asarray"],
        sd: Validated[npt.ArrayLike, "xp.asarray"] = 1.0,
    ) -> "Gaussian":
        """The law of mean + sd * (z - self.mean): centred and stretched anew, of the same shape.

        Raises:
            ValueError: when `sd` is not positive.
        """
        xp = namespace(mean, sd, self.mean)
        stretch = xp.broadcast_to(xp.asarray(sd, dtype=self.dtype), (self.dim,))
        # On the host alone: a value that is being traced cannot be looked at.
        if xp is np and not np.all(stretch > 0):
            raise ValueError("Gaussian.moved: `sd` must be positive.")
        return Gaussian(xp.asarray(mean, dtype=self.dtype), self.scale.stretched(stretch))

    @scoped
    @on_one_thread
    def whiten(self, z: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """Coordinates in which q is standard normal: root^-1 (z - mean).

        Under JAX of one point, on the host also of many.
        """
        return self.scale.whiten(z - self.mean)

    @scoped
    @on_one_thread
    def unwhiten(self, white: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """The inverse of `whiten`: mean + root white."""
        return self.mean + self.scale.unwhiten(white)

    @scoped
    @on_one_thread
    def whiten_score(self, score: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """A gradient in z as a gradient in white coordinates: root' score."""
        return self.scale.whiten_score(score)

    def retract(self, step: "Gaussian") -> "Gaussian":
        """mean + root step.mean, so that 1 is one posterior sd, and the scale's own retraction."""
        return Gaussian(self.mean + self.scale.unwhiten(step.mean), self.scale.retract(step.scale))

    def monitored(self) -> tuple[Float[Array, "groups m"], Float[Array, "groups m"]]:
        """Means and marginal sds, in units of the sds."""
        xp, sd = namespace(self.mean), self.scale.sd
        return xp.stack([self.mean, sd]), xp.stack([sd, sd])

    @on_one_thread
    def draw(self, n: int, key: Key) -> tuple[Float[np.ndarray, "n dim"], Float[np.ndarray, "n"]]:
        """`n` antithetic draws and their log densities, in NumPy: nothing to compile.

        Draw i mirrors draw i + n/2.
        """
        q = self.on_host()
        noise = standard_normals(n, q.noise_dim, key, "gaussian").astype(q.dtype)
        delta = q.scale.displace(noise)
        return np.asarray(q.mean + delta), np.asarray(q._log_prob_of(delta))

    @on_one_thread
    def log_prob_on_host(self, z: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n"]:
        q = self.on_host()
        return np.asarray(q._log_prob_of(z - q.mean))

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        return self._from_noise(jr.normal(key, (self.noise_dim,), self.dtype))

    def _from_noise(self, noise: Float[Array, "noise"], x: PyTree = None) -> Float[Array, "dim"]:
        return self.mean + self.scale.displace(noise)

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        return self._log_prob_of(z - self.mean)

    def _log_prob_of(self, delta: Float[Array, "*batch dim"]) -> Float[Array, "*batch"]:
        """Log density at mean + delta."""
        half_log_det, quadratic = self.scale.half_log_det_and_quadratic(delta)
        return -(0.5 * self.dim * _LOG_2PI + half_log_det) - 0.5 * quadratic


@scoped
@on_one_thread
def kl(p: Gaussian, q: Gaussian) -> Scalar:
    """KL(p || q) in nats, exact.

        log |root_q| - log |root_p| + (tr cov_q^-1 cov_p + |mean_p - mean_q|^2_q - dim) / 2

    With cov_p = D^2 + C C' the trace is sum D^2 diag(cov_q^-1) + the quadratic form of q at the
    columns of C, so two low-rank (or diagonal) scales cost O(dim r^2), and nothing d x d is built.

    Raises:
        ValueError: when the dimensions differ.
    """
    if p.dim != q.dim:
        raise ValueError(f"kl: the Gaussians have different dimensions, {p.dim} and {q.dim}.")
    diagonal, columns = p.scale.parts()
    trace = (diagonal**2 * q.scale.precision_diagonal()).sum() + _sum_of_quadratics(
        q.scale, columns
    )
    shift = q.scale.quadratic(p.mean - q.mean)
    return q.scale.half_log_det() - p.scale.half_log_det() + 0.5 * (trace + shift - p.dim)


def _sum_of_quadratics(scale: AbstractScale, columns: Float[Array, "dim m"]) -> Scalar:
    if columns.shape[1] == 0:
        # Nothing to map over, which JAX refuses.
        return 0.0
    on_host = namespace(columns, *jax.tree.leaves(scale)) is np
    quadratic = scale.quadratic if on_host else jax.vmap(scale.quadratic)
    return quadratic(columns.T).sum()


def _positive(value: Validated[int, "here"], name: str) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"Gaussian: `{name}` must be an integer of at least 1, got {value!r}.")
    return int(value)


__all__ = ["Gaussian", "kl"]
