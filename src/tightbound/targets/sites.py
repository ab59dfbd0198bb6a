"""Targets that are a Gaussian prior times sites: the abilities, and what their files share.

What expectation propagation and the clutter methods ask for.
"""

import abc
import dataclasses
import functools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from .._types import Array
from .base import Sites


class GaussianSites(Sites):
    """Ability: a Gaussian prior, and sites of which the tilted integrals are known.

    log p(z) = log N(z; prior) + sum_i multiplicity_i log_site(i, z).
    """

    ability: ClassVar[str] = "Gaussian prior and sites with tilted moments"
    offered_by: ClassVar[str] = "tb.targets.Clutter, tb.targets.LinearSites"

    @abc.abstractmethod
    def prior(self) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
        """Mean and covariance of the Gaussian prior."""

    @property
    @abc.abstractmethod
    def multiplicities(self) -> Float[np.ndarray, "rows"]:
        """How often each site counts, positive."""

    @abc.abstractmethod
    def tilt(
        self,
        index: Int[np.ndarray, "k"],
        means: Float[np.ndarray, "k dim"],
        covs: Float[np.ndarray, "k dim dim"],
    ) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k dim"], Float[np.ndarray, "k dim dim"]]:
        """Each of k sites averaged over its own cavity N(means, covs), on the host.

        Returns log Z_i in nats with Z_i = E[exp log_site(i, z)], and in the cavity's mean m its
        gradient and negative Hessian: the tilted mean is m + V grad, the tilted covariance
        V - V (neg. Hessian) V.
        """


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Sites log[(1 - w_i) N(y_i; t, s_i I) + w_i c_i], in coordinates t = root^-1 z.

    In these coordinates the noise is isotropic. D below is `dim`.

    Attributes:
        points: y_i.
        scales: s_i.
        log_odds: log[(1 - w_i) / (w_i c_i |root|)], without the kernel's own (2 pi s_i)^(-D/2);
            +inf where c_i = 0.
        weights: how often each point counts.
        prior_mean: of t.
        prior_precision: of t.
        root: lower triangular.
    """

    points: Float[np.ndarray, "rows dim"]
    scales: Float[np.ndarray, "rows"]
    log_odds: Float[np.ndarray, "rows"]
    weights: Float[np.ndarray, "rows"]
    prior_mean: Float[np.ndarray, "dim"]
    prior_precision: Float[np.ndarray, "dim dim"]
    root: Float[np.ndarray, "dim dim"]

    @property
    def dim(self) -> int:
        return self.points.shape[1]

    def logits(self, widening: float = 1.0) -> Float[np.ndarray, "rows"]:
        """a_i, the log odds that a point at distance 0 is an inlier.

        For kernels of variance widening * s_i.
        """
        return self.own_logits - 0.5 * self.dim * np.log(widening)

    @functools.cached_property
    def own_logits(self) -> Float[np.ndarray, "rows"]:
        """`logits` of the kernels as they are."""
        return self.log_odds - 0.5 * self.dim * np.log(2 * np.pi * self.scales)

    @functools.cached_property
    def median_scale(self) -> float:
        """The s of the median point."""
        return float(np.median(self.scales))

    @functools.cached_property
    def common_scale(self) -> float | None:
        """The s that all points share, or None.

        With a number in place of an array, what is done for each point takes one product less.
        """
        return float(self.scales[0]) if np.all(self.scales == self.scales[0]) else None

    @functools.cached_property
    def common_weight(self) -> float | None:
        """The weight that all points share, or None."""
        return float(self.weights[0]) if np.all(self.weights == self.weights[0]) else None


class Contaminated(GaussianSites):
    """Ability: every site is a Gaussian kernel around a point plus a constant.

    The clutter problem.
    """

    ability: ClassVar[str] = "contaminated"
    offered_by: ClassVar[str] = "tb.targets.Clutter"

    @abc.abstractmethod
    def kernels(self) -> Kernels:
        """The kernels, on the host."""

    @abc.abstractmethod
    def log_density_on_host(self, points: Float[Array, "n dim"]) -> Float[np.ndarray, "n"]:
        """The log density at many points in NumPy, with nothing to compile, nats."""

    @abc.abstractmethod
    def log_background(self) -> float:
        """sum_i weight_i log(w_i c_i), nats: the log likelihood if no point were an inlier.

        It is -inf where a point cannot be background.
        """


class LearnableNoise(Contaminated):
    """Ability: contaminated data of which share of background and variances can be set anew.

    Attributes:
        x: the points.
        w: the share of background, at each point.
        noise_root: a square root of the covariance of the inliers' noise.
        noise_scale: that covariance counts times this, at each point.
        clutter_root: a square root of the background's covariance; None where it has none.
    """

    ability: ClassVar[str] = "learnable noise"
    offered_by: ClassVar[str] = "tb.targets.Clutter"
    x: eqx.AbstractVar[Float[Array, "rows dim"]]
    w: eqx.AbstractVar[Float[Array, "rows"]]
    noise_root: eqx.AbstractVar[Float[Array, "dim dim"]]
    noise_scale: eqx.AbstractVar[Float[Array, "rows"]]
    clutter_root: eqx.AbstractVar[Float[Array, "dim dim"] | None]

    @property
    @abc.abstractmethod
    def vg(self) -> float:
        """Noise variance of the median point, averaged over directions."""

    @property
    @abc.abstractmethod
    def vc(self) -> float:
        """Background variance, averaged over directions; NaN where its log density was given."""

    @abc.abstractmethod
    def background_squares(self) -> Float[np.ndarray, "rows"]:
        """|background root^-1 x_i|^2: squared distances from the background's centre in its sds."""

    @abc.abstractmethod
    def with_noise(self, w: float | None, noise: float, background: float) -> "LearnableNoise":
        """The same data with another share of background, and variances times these factors.

        Arguments:
            w: the share; None keeps it.
            noise: factor of the variance of the inliers.
            background: factor of the variance of the background.
        """


class Reweighted(GaussianSites):
    """Ability: sites that can be widened, and then solved by weighted least squares.

    A regression with outliers.
    """

    ability: ClassVar[str] = "reweighted least squares"
    offered_by: ClassVar[str] = "tb.targets.LinearClutter"

    @abc.abstractmethod
    def widest(self) -> float:
        """The factor of the noise variance that makes every point an inlier of least squares."""

    @abc.abstractmethod
    def reweighted(
        self, z: Float[np.ndarray, "dim"] | None, widening: float
    ) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
        """Mean and precision of the posterior in which points count by their responsibilities.

        Arguments:
            z: where responsibilities are taken; None counts each point fully.
            widening: factor of the noise variance.
        """


def inverses(matrices: Float[np.ndarray, "*batch dim dim"]) -> Float[np.ndarray, "*batch dim dim"]:
    """Inverses of matrices."""
    # One dimension is the usual case of the clutter problem, and LAPACK takes ten times as long for
    # it as a division.
    return 1.0 / matrices if matrices.shape[-1] == 1 else np.linalg.inv(matrices)


def log_dets(
    matrices: Float[np.ndarray, "*batch dim dim"],
) -> Float[np.ndarray | np.generic, "*batch"]:
    """log |det| of each matrix."""
    return (
        np.log(np.abs(matrices[..., 0, 0]))
        if matrices.shape[-1] == 1
        else np.linalg.slogdet(matrices)[1]
    )


def log_normal(
    z: Float[Array, "dim"], mean: Float[Array, "dim"], root: Float[Array, "dim dim"]
) -> Float[jax.Array, ""]:
    """log N(z; mean, root root'), nats, at one point, under JAX."""
    root = jnp.asarray(root)
    white = jax.scipy.linalg.solve_triangular(root, z - jnp.asarray(mean), lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(root)))
    return -0.5 * jnp.sum(white**2) - log_det - 0.5 * white.shape[0] * np.log(2 * np.pi)


__all__ = [
    "Contaminated",
    "GaussianSites",
    "Kernels",
    "LearnableNoise",
    "Reweighted",
    "inverses",
    "log_dets",
    "log_normal",
]
