"""The Gaussian family: one class, whatever the shape of the covariance."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Float

from .._numerics import scoped
from .._types import Array, CovarianceStructure, Key, PyTree
from .base import AbstractFamily, Nats, standard_normals
from .low_rank import LowRank
from .scales import AbstractScale, Diagonal, Full, as_floating, namespace

_LOG_2PI = math.log(2 * math.pi)


class Gaussian(AbstractFamily):
    """N(mean, cov), where the scale decides what the covariance can be: Diagonal, Full or LowRank.

    Make one with `Gaussian.full(dim)`, `.diagonal(dim)` or `.low_rank(dim, rank)` (all standard
    normal), or from a mean and a scale, as in `Gaussian(mean, Full.from_covariance(cov))`. Not for
    several modes, heavy tails or funnels.

    log q(z) = -d/2 log 2 pi - log |root| - |root^-1 (z - mean)|^2 / 2.

    Attributes:
        mean: `[d]`.
        scale: a square root of the covariance.

    Raises:
        ValueError: when mean and scale disagree in their dimension.
    """

    mean: Float[Array, " d"] = eqx.field(converter=as_floating)
    scale: AbstractScale

    def __check_init__(self):
        if np.shape(self.mean) != (self.scale.dim,):
            raise ValueError(
                f"Gaussian: `mean` must have shape [{self.scale.dim}] as its scale has, got"
                f" {np.shape(self.mean)}."
            )

    @property
    def covariance_structure(self) -> CovarianceStructure:
        return self.scale.structure

    @staticmethod
    def diagonal(dim: int) -> "Gaussian":
        """The standard normal, with independent coordinates (mean field)."""
        return Gaussian(np.zeros(_positive(dim, "dim")), Diagonal(np.zeros(dim)))

    @staticmethod
    def full(dim: int) -> "Gaussian":
        """The standard normal, with room for any covariance."""
        return Gaussian(np.zeros(_positive(dim, "dim")), Full(np.zeros((dim, dim))))

    @staticmethod
    def low_rank(dim: int, rank: int) -> "Gaussian":
        """Mean zero, unit sds and nearly independent, with room for `rank` directions of
        correlation.
        """
        if _positive(rank, "rank") > _positive(dim, "dim"):
            raise ValueError(
                f"Gaussian.low_rank: `rank` must not exceed `dim`, got rank {rank} of dim {dim};"
                " use Gaussian.full."
            )
        return Gaussian(np.zeros(dim), LowRank.small(dim, rank))

    @staticmethod
    def from_root(mean: Any, root: Any) -> "Gaussian":
        """N(mean, root root') with a full scale, from any square root `[d, m]`, m >= d."""
        return Gaussian(mean, Full.from_root(root))

    @property
    def dim(self) -> int:
        return self.mean.shape[0]

    @property
    def noise_dim(self) -> int:
        return self.scale.noise_dim

    @property
    @scoped
    def sd(self) -> Array:
        """Marginal standard deviations, `[d]`; never builds anything d x d."""
        return self.scale.sd

    @property
    @scoped
    def cov(self) -> Array:
        """The covariance, `[d, d]`.

        With a low-rank scale it takes the d^2 numbers that the scale avoids.
        """
        return self.scale.cov

    @property
    @scoped
    def root(self) -> Array:
        """A square root of the covariance, `[d, d]`: the one that `unwhiten` applies."""
        xp = namespace(*jax.tree.leaves(self))
        unwhiten = self.scale.unwhiten if xp is np else jax.vmap(self.scale.unwhiten)
        return unwhiten(xp.eye(self.dim, dtype=self.dtype)).T

    @scoped
    def entropy(self) -> Nats:
        """d/2 (1 + log 2 pi) + log |root|, nats, exact."""
        return 0.5 * self.dim * (1.0 + _LOG_2PI) + self.scale.half_log_det()

    @scoped
    def moved(self, mean: Any, sd: Any = 1.0) -> "Gaussian":
        """The law of mean + sd * (z - self.mean): this shape, centred elsewhere, each coordinate
        stretched by `sd`.

        Raises:
            ValueError: when `sd` is not positive.
        """
        xp = namespace(mean, sd, self.mean)
        sd = xp.broadcast_to(xp.asarray(sd, dtype=self.dtype), (self.dim,))
        if xp is np and not np.all(sd > 0):
            raise ValueError("Gaussian.moved: `sd` must be positive.")
        return Gaussian(xp.asarray(mean, dtype=self.dtype), self.scale.stretched(sd))

    @scoped
    def whiten(self, z: Array) -> Array:
        """Coordinates in which q is standard normal: root^-1 (z - mean), `[d]`.

        On the host also `[..., d]`.
        """
        return self.scale.whiten(z - self.mean)

    @scoped
    def unwhiten(self, white: Array) -> Array:
        """The inverse of `whiten`: mean + root white."""
        return self.mean + self.scale.unwhiten(white)

    @scoped
    def whiten_score(self, score: Array) -> Array:
        """A gradient in z as a gradient in white coordinates: root' score."""
        return self.scale.whiten_score(score)

    def retract(self, step: "Gaussian") -> "Gaussian":
        """mean + root step.mean, and the scale's own retraction.

        A step of size 1 is one posterior sd.
        """
        return Gaussian(self.mean + self.scale.unwhiten(step.mean), self.scale.retract(step.scale))

    def monitored(self) -> tuple[Array, Array]:
        """Means and marginal sds, in units of the sds."""
        xp, sd = namespace(self.mean), self.scale.sd
        return xp.stack([self.mean, sd]), xp.stack([sd, sd])

    def draw(self, n: int, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """`n` antithetic draws and their log densities, in NumPy: nothing to compile.

        Draw i mirrors draw i + n/2.
        """
        q = self.on_host()
        noise = standard_normals(n, q.noise_dim, key, "gaussian").astype(q.dtype)
        delta = q.scale.displace(noise)
        return q.mean + delta, -q._log_normaliser() - 0.5 * q.scale.quadratic(delta)

    def log_prob_on_host(self, z: np.ndarray) -> np.ndarray:
        q = self.on_host()
        return -q._log_normaliser() - 0.5 * q.scale.quadratic(z - q.mean)

    def _sample(self, key: jax.Array, x: PyTree = None) -> Any:
        return self._from_noise(jr.normal(key, (self.noise_dim,), self.dtype))

    def _from_noise(self, noise: Array, x: PyTree = None) -> Array:
        return self.mean + self.scale.displace(noise)

    def _log_prob(self, z: Array, x: PyTree = None) -> Any:
        return -self._log_normaliser() - 0.5 * self.scale.quadratic(z - self.mean)

    def _log_normaliser(self) -> Any:
        return 0.5 * self.dim * _LOG_2PI + self.scale.half_log_det()


@scoped
def kl(p: Gaussian, q: Gaussian) -> Nats:
    """KL(p || q) in nats, exact: log |root_q| - log |root_p| + (tr cov_q^-1 cov_p + |mean
    difference|^2_q - d) / 2.

    With cov_p = D^2 + C C' the trace is sum D^2 diag(cov_q^-1) + the quadratic form of q at the
    columns of C, so two low-rank (or diagonal) scales cost O(d r^2) and nothing d x d is built.

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


def _sum_of_quadratics(scale: AbstractScale, columns: Array) -> Any:
    if columns.shape[1] == 0:
        return 0.0
    on_host = namespace(columns, *jax.tree.leaves(scale)) is np
    quadratic = scale.quadratic if on_host else jax.vmap(scale.quadratic)
    return quadratic(columns.T).sum()


def _positive(value: Any, name: str) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"Gaussian: `{name}` must be an integer of at least 1, got {value!r}.")
    return int(value)


__all__ = ["Gaussian", "kl"]
