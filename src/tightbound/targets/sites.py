"""Targets that are a Gaussian prior times sites.

What expectation propagation and the clutter methods ask for.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, final

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .._numerics import to_device, x64
from .._types import Array
from ..results import TargetError
from .base import Sites
from .tracing import host_unless_traced

_NODES = 48
_PASSES = 3


class GaussianSites(Sites):
    """Ability: log p(z) = log N(z.

    Prior) + sum_i multiplicity_i log_site(i, z), with the tilted integrals of each site.
    """

    ability: ClassVar[str] = "Gaussian prior and sites with tilted moments"
    offered_by: ClassVar[str] = "tb.targets.Clutter, tb.targets.LinearSites"

    @abc.abstractmethod
    def prior(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean `[d]` and covariance `[d, d]` of the Gaussian prior."""

    @property
    @abc.abstractmethod
    def multiplicities(self) -> np.ndarray:
        """How often each site counts, `[n]`, positive."""

    @abc.abstractmethod
    def tilt(
        self, index: np.ndarray, means: np.ndarray, covs: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each site averaged over its own cavity N(means `[k, d]`, covs `[k, d, d]`), on the host.

        Returns log Z_i `[k]` in nats with Z_i = E[exp log_site(i, z)], and in the cavity's mean m
        its gradient `[k, d]` and negative Hessian `[k, d, d]`: the tilted mean is m + V grad, the
        tilted covariance V - V (neg. Hessian) V.
        """


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Sites log[(1 - w_i) N(y_i.

    T, s_i I) + w_i c_i], in coordinates t = root^-1 z where the noise is isotropic.

    Attributes:
        points: y_i, `[n, D]`.
        scales: s_i, `[n]`.
        log_odds: log[(1 - w_i) / (w_i c_i |root|)], `[n]`, without the kernel's own (2 pi
            s_i)^(-D/2); +inf where c_i = 0.
        weights: how often each point counts, `[n]`.
        prior_mean: `[D]`, and `prior_precision` `[D, D]`, of t.
        root: `[D, D]`, lower triangular.
    """

    points: np.ndarray
    scales: np.ndarray
    log_odds: np.ndarray
    weights: np.ndarray
    prior_mean: np.ndarray
    prior_precision: np.ndarray
    root: np.ndarray

    @property
    def dim(self) -> int:
        return self.points.shape[1]

    def logits(self, widening: float = 1.0) -> np.ndarray:
        """a_i, `[n]`.

        The log odds that a point at distance 0 is an inlier, for kernels of variance widening *
        s_i.
        """
        return self.own_logits - 0.5 * self.dim * np.log(widening)

    @functools.cached_property
    def own_logits(self) -> np.ndarray:
        """`logits` of the kernels as they are."""
        return self.log_odds - 0.5 * self.dim * np.log(2 * np.pi * self.scales)

    @functools.cached_property
    def median_scale(self) -> float:
        return float(np.median(self.scales))

    @functools.cached_property
    def common_scale(self) -> float | None:
        """The s that all points share, or None.

        Constants instead of arrays in what is done once per point.
        """
        return float(self.scales[0]) if np.all(self.scales == self.scales[0]) else None

    @functools.cached_property
    def common_weight(self) -> float | None:
        """The weight that all points share, or None."""
        return float(self.weights[0]) if np.all(self.weights == self.weights[0]) else None


class Contaminated(GaussianSites):
    """Ability.

    Every site is a Gaussian kernel around a data point plus a constant (the clutter problem).
    """

    ability: ClassVar[str] = "contaminated"
    offered_by: ClassVar[str] = "tb.targets.Clutter"

    @abc.abstractmethod
    def kernels(self) -> Kernels:
        """The kernels, on the host."""

    @abc.abstractmethod
    def log_background(self) -> float:
        """sum_i weight_i log(w_i c_i), nats: the log likelihood if no point were an inlier.

        -inf where that cannot be.
        """


class LearnableNoise(Contaminated):
    """Ability.

    Contaminated data whose share of background, noise and background variance can be set anew.
    """

    ability: ClassVar[str] = "learnable noise"
    offered_by: ClassVar[str] = "tb.targets.Clutter"
    w: eqx.AbstractVar[Array]
    clutter_root: eqx.AbstractVar[Array | None]

    @property
    @abc.abstractmethod
    def vg(self) -> float:
        """Noise variance of the median point, averaged over directions."""

    @property
    @abc.abstractmethod
    def vc(self) -> float:
        """Background variance, averaged over directions.

        NaN where the background was given by its log density.
        """

    @abc.abstractmethod
    def background_squares(self) -> np.ndarray:
        """|background root^-1 x_i|^2, `[n]`.

        Squared distances from the background's centre in its sds.
        """

    @abc.abstractmethod
    def with_noise(self, w: float | None, noise: float, background: float) -> "LearnableNoise":
        """The same data with share w (None keeps it) and both variances multiplied by these
        factors.
        """


class Reweighted(GaussianSites):
    """Ability.

    A regression with outliers, whose sites can be widened and solved by weighted least squares.
    """

    ability: ClassVar[str] = "reweighted least squares"
    offered_by: ClassVar[str] = "tb.targets.LinearClutter"

    @abc.abstractmethod
    def widest(self) -> float:
        """A factor of the noise variance at which every point looks like an inlier of the
        least-squares fit.
        """

    @abc.abstractmethod
    def reweighted(self, z: np.ndarray | None, widening: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean `[d]` and precision `[d, d]` where points count by their responsibilities at z
        (None: fully).
        """


class AlongLines(GaussianSites):
    """Sites that see z `[d]` through one direction each, a_i' z: what linear models share."""

    directions: eqx.AbstractVar[Array]
    prior_mean: eqx.AbstractVar[Array]
    prior_root: eqx.AbstractVar[Array]

    @property
    def dim(self) -> int:
        return self.directions.shape[1]

    @property
    def num_sites(self) -> int:
        return self.directions.shape[0]

    @property
    def multiplicities(self) -> np.ndarray:
        return np.ones(self.num_sites)

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return tuple(f"z[{i}]" for i in range(self.dim))

    def constrain(self, z: Array) -> Any:
        return {"z": z}

    def unconstrain(self, values: Any) -> Array:
        return values["z"]

    def prior(self) -> tuple[np.ndarray, np.ndarray]:
        root = np.asarray(self.prior_root)
        return np.asarray(self.prior_mean), root @ root.T


@final
class LinearSites(AlongLines):
    """log p(z) = log N(z.

    M0, S0) + sum_i log_site(a_i' z, y_i): generalised linear models, for expectation propagation.

    Tilted moments are one-dimensional and come from Gauss-Hermite nodes, centred first on the
    cavity, then on the tilted distribution (exact for Gaussian sites). Not for sites much narrower
    than their cavity, nor multimodal ones.

    Arguments:
        directions: a_i, `[n, d]`.
        log_site: `log_site(s, y_i) -> scalar`, nats, of s = a_i' z; traceable by JAX.
        data: y, an array with leading axis n.
        prior_mean: scalar or `[d]`.
        prior_var: positive scalar, or a covariance `[d, d]`.

    Raises:
        TargetError: shapes that disagree, values that are not finite, or a prior variance that is
            not positive.
    """

    directions: Array
    log_site_along: Callable[[Any, Any], Any] = eqx.field(static=True)
    data: Array
    prior_mean: Array
    prior_root: Array

    def __init__(
        self,
        directions: Any,
        log_site: Callable[[Any, Any], Any],
        data: Any,
        prior_mean: Any = 0.0,
        prior_var: Any = 100.0,
    ):
        self.directions = finite_array(directions, "LinearSites", "directions")
        if self.directions.ndim != 2 or 0 in self.directions.shape:
            raise TargetError(
                "LinearSites: `directions` must be [n, d], one row per site; got"
                f" {self.directions.shape}."
            )
        self.data = finite_array(data, "LinearSites", "data")
        n, dim = self.directions.shape
        if self.data.shape[:1] != (n,):
            raise TargetError(
                f"LinearSites: `data` must have leading axis {n} as `directions`, got"
                f" {self.data.shape}."
            )
        self.log_site_along = log_site
        self.prior_mean = vector_of(prior_mean, dim, "LinearSites", "prior_mean")
        self.prior_root = root_of(prior_var, dim, "LinearSites", "prior_var")

    @host_unless_traced
    def log_site(self, i: Any, z: Array) -> Array:
        return self.log_site_along(jnp.asarray(self.directions)[i] @ z, jnp.asarray(self.data)[i])

    @host_unless_traced
    def log_density(self, z: Array) -> Array:
        sites = jax.vmap(self.log_site_along)(
            jnp.asarray(self.directions) @ z, jnp.asarray(self.data)
        )
        return log_normal(z, self.prior_mean, self.prior_root) + jnp.sum(sites)

    def tilt(
        self, index: np.ndarray, means: np.ndarray, covs: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a = np.asarray(self.directions)[index]
        mean, variance = np.einsum("kd,kd->k", a, means), np.einsum("kd,kde,ke->k", a, covs, a)
        nodes, log_weights = _hermite()
        centre, width = mean, np.sqrt(variance)
        for _ in range(_PASSES):
            s = centre[:, None] + width[:, None] * nodes
            log_ratio = 0.5 * nodes**2 + np.log(width / np.sqrt(variance))[:, None]
            log_ratio = log_ratio - 0.5 * (s - mean[:, None]) ** 2 / variance[:, None] + log_weights
            log_terms = self._along(index, s) + log_ratio
            top = np.max(log_terms, axis=1)
            terms = np.exp(log_terms - top[:, None])
            total = terms.sum(axis=1)
            centre = (terms * s).sum(axis=1) / total
            spread = (terms * (s - centre[:, None]) ** 2).sum(axis=1) / total
            width = np.sqrt(np.maximum(spread, 1e-12 * variance))
        slope, bend = (centre - mean) / variance, (1.0 - spread / variance) / variance
        return (
            top + np.log(total),
            slope[:, None] * a,
            bend[:, None, None] * a[:, :, None] * a[:, None, :],
        )

    def _along(self, index: np.ndarray, s: np.ndarray) -> np.ndarray:
        """log_site of each of the given sites at its own row of `s [k, nodes]`."""
        with x64():
            return np.asarray(
                _along(
                    self.log_site_along, to_device(self.data), jnp.asarray(index), jnp.asarray(s)
                )
            )


@eqx.filter_jit
def _along(log_site: Callable, data: jax.Array, index: jax.Array, s: jax.Array) -> jax.Array:
    return jax.vmap(lambda row, y: jax.vmap(lambda one: log_site(one, y))(row))(s, data[index])


def _hermite() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return nodes, np.log(weights / weights.sum())


def inverses(matrices: np.ndarray) -> np.ndarray:
    """Inverses of `[..., d, d]`; a division where d = 1, which LAPACK takes ten times as long for."""
    return 1.0 / matrices if matrices.shape[-1] == 1 else np.linalg.inv(matrices)


def log_dets(matrices: np.ndarray) -> Any:
    """log |det| of `[..., d, d]`."""
    return (
        np.log(np.abs(matrices[..., 0, 0]))
        if matrices.shape[-1] == 1
        else np.linalg.slogdet(matrices)[1]
    )


def log_normal(z: Array, mean: Array, root: Array) -> Any:
    """log N(z; mean, root root'), nats, for z `[d]` under JAX."""
    root = jnp.asarray(root)
    white = jax.scipy.linalg.solve_triangular(root, z - jnp.asarray(mean), lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(root)))
    return -0.5 * jnp.sum(white**2) - log_det - 0.5 * white.shape[0] * np.log(2 * np.pi)


def is_known(value: Any) -> bool:
    """Whether `value` holds numbers, and is not being traced by JAX."""
    return not isinstance(value, jax.core.Tracer)


def holds(condition: Any) -> bool:
    """Whether the condition holds everywhere.

    Of what is being traced nothing is known, and nothing is refused.
    """
    return not is_known(condition) or bool(np.all(condition))


def finite_array(value: Any, where: str, name: str) -> Any:
    """`value` as a finite float64 array, or a TargetError that says where it is not.

    What JAX traces is left as it is.
    """
    if not is_known(value):
        return value
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TargetError(
            f"{where}: `{name}` must be numbers, got {type(value).__name__}."
        ) from error
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = ", ".join(map(str, bad[0]))
        raise TargetError(
            f"{where}: `{name}` has {len(bad)} NaN or infinite entries, the first at [{at}]; leave"
            " those points out."
        )
    return array


def vector_of(value: Any, dim: int, where: str, name: str) -> np.ndarray:
    """A scalar or `[dim]` as `[dim]`, or a TargetError."""
    array = finite_array(value, where, name)
    if array.shape not in ((), (dim,)):
        raise TargetError(
            f"{where}: `{name}` must be a number or have shape [{dim}], got {array.shape}."
        )
    return np.broadcast_to(array, (dim,)).copy()


def root_of(value: Any, dim: int, where: str, name: str) -> np.ndarray:
    """The Cholesky root `[dim, dim]` of a variance or of a covariance `[dim, dim]`, or a
    TargetError.
    """
    array = finite_array(value, where, name)
    if array.shape == ():
        if not array > 0:
            raise TargetError(
                f"{where}: `{name}` is a variance and must be positive, got {float(array)}."
            )
        return np.sqrt(array) * np.eye(dim)
    if array.shape != (dim, dim):
        raise TargetError(
            f"{where}: `{name}` must be a positive number or a covariance [{dim}, {dim}], got"
            f" {array.shape}."
        )
    try:
        if not np.allclose(array, array.T):
            raise np.linalg.LinAlgError
        return np.linalg.cholesky(array)
    except np.linalg.LinAlgError:
        raise TargetError(f"{where}: `{name}` must be symmetric and positive definite.") from None


__all__ = [
    "Contaminated", "GaussianSites", "Kernels", "LearnableNoise", "LinearSites", "Reweighted", "holds", "inverses",
    "is_known", "log_dets",
]  # fmt: skip
