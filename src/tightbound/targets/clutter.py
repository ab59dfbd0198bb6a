"""The clutter problem: a location measured by points of which a share is unrelated background."""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special as sp
from jaxtyping import Float, Int

from .._types import Array, PyTree, Scalar, Validated
from ..families.base import AbstractFamily
from ..results import TargetError
from .base import Sequential
from .checked_arrays import (
    finite_array,
    holds,
    log_density_of_background,
    per_point,
    root_of,
    vector_of,
)
from .sites import Kernels, LearnableNoise, inverses, log_dets, log_normal
from .support import ArrayLike
from .tracing import host_unless_traced

if TYPE_CHECKING:
    from ..families.gaussian import Gaussian
    from .clutter_exact import Exact
else:
    # clutter_exact.py imports families that nobody needs who does not ask for `exact()`
    Exact = object

_LOG_2PI = float(np.log(2 * np.pi))  # of Gaussian densities
# Gauss-Hermite nodes on each axis: six digits of the probability of an inlier (tests)
_AXIS_NODES = 31
# Draws in place of nodes: a standard error of at most .5 / sqrt(4096) < .008 of a probability
_DRAWS = 4096
_ELEMENTS = 2**21  # of an intermediate on the host: 16 MiB


@final
class Clutter(LearnableNoise, Sequential):
    """p(x_i | theta) = (1 - w) N(x_i; theta, vg) + w Pc(x_i), theta ~ N(prior_mean, prior_var).

    log p(theta, x) in nats with all constants, so that its integral is the evidence. Pc enters only
    through its values at the points. `tb.solvers.LearnClutter` estimates w, vg and vc; where their
    uncertainty matters, write the model with `tb.from_log_density`. Arrays may be traced by JAX
    (`tb.fit_batch`): what depends on their values is then not checked.

    Arguments:
        x: the points, `[n]` (theta is a number) or `[n, D]` (theta is a vector).
        w: share of background in (0, 1); one number or `[n]`.
        vg: noise variance of the inliers: a number, `[n]` for points of different precision, or a
            covariance `[D, D]`.
        vc: variance of the background N(0, vc I), or its covariance `[D, D]`; unused when
            `log_clutter` is given.
        log_clutter: log Pc(x_i) in nats, a number (uniform background) or `[n]`; -inf where there
            can be no background.
        prior_mean: number or `[D]`.
        prior_var: positive number, or covariance `[D, D]`.
        weights: how often each point counts, `[n]`, positive; None counts each once.

    Raises:
        TargetError: no points, NaN or infinite ones, shapes that disagree, w outside (0, 1),
            variances not positive.

    Source: Minka 2001, section 3.2.1; Popov 2024 (arXiv 2404.10550), eqs. of section 4.
    """

    x: Float[Array, "rows dim"]
    w: Float[Array, "rows"]
    log_clutter: Float[Array, "rows"]
    clutter_root: Float[Array, "dim dim"] | None
    noise_root: Float[Array, "dim dim"]
    noise_scale: Float[Array, "rows"]
    weights: Float[Array, "rows"]
    prior_mean: Float[Array, "dim"]
    prior_root: Float[Array, "dim dim"]
    is_scalar: bool = eqx.field(static=True)

    def __init__(
        self,
        x: Validated[ArrayLike, "finite_array"],
        *,
        w: Validated[ArrayLike, "per_point"] = 0.5,
        vg: Validated[ArrayLike, "_noise"] = 1.0,
        vc: Validated[ArrayLike, "root_of"] = 10.0,
        log_clutter: Validated[ArrayLike | None, "log_density_of_background"] = None,
        prior_mean: Validated[ArrayLike, "vector_of"] = 0.0,
        prior_var: Validated[ArrayLike, "root_of"] = 100.0,
        weights: Validated[ArrayLike | None, "per_point"] = None,
    ):
        points = finite_array(x, "Clutter", "x")
        if points.ndim not in (1, 2) or points.size == 0:
            raise TargetError(
                "Clutter: `x` must be points [n] or [n, D], at least one of them; got shape"
                f" {points.shape}."
            )
        self.is_scalar = points.ndim == 1
        self.x = points[:, None] if self.is_scalar else points
        n, dim = self.x.shape
        self.w = per_point(w, n, "Clutter", "w")
        if not holds((self.w > 0) & (self.w < 1)):
            raise TargetError(
                "Clutter: `w`, the share of background, must lie strictly between 0 and 1; without"
                " background use a Gaussian model, and with nothing else there is nothing to learn."
            )
        self.noise_root, self.noise_scale = _noise(vg, n, dim)
        self.clutter_root = root_of(vc, dim, "Clutter", "vc") if log_clutter is None else None
        self.log_clutter = log_density_of_background(log_clutter, vc, self.x, "Clutter")
        self.prior_mean = vector_of(prior_mean, dim, "Clutter", "prior_mean")
        self.prior_root = root_of(prior_var, dim, "Clutter", "prior_var")
        self.weights = (
            np.ones(n) if weights is None else per_point(weights, n, "Clutter", "weights")
        )
        if not holds(self.weights > 0):
            raise TargetError(
                "Clutter: `weights` must be positive; leave out the points that do not count."
            )

    @property
    def dim(self) -> int:
        return self.x.shape[1]

    @property
    def num_sites(self) -> int:
        return self.x.shape[0]

    @property
    def multiplicities(self) -> Float[np.ndarray, "rows"]:
        return np.asarray(self.weights)

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return ("theta",) if self.is_scalar else tuple(f"theta[{j}]" for j in range(self.dim))

    def constrain(self, z: Float[Array, "dim"]) -> PyTree:
        return {"theta": z[0] if self.is_scalar else z}

    def unconstrain(self, values: PyTree) -> Float[Array, "dim"]:
        return jnp.reshape(jnp.asarray(values["theta"]), (self.dim,))

    @host_unless_traced
    def log_site(self, i: Int[Array, ""] | int, z: Float[Array, "dim"]) -> Float[Array, ""]:
        """log[(1 - w_i) N(x_i; z, vg_i) + w_i Pc(x_i)] at one point, nats, without its weight."""
        x, w, c, s = (
            jnp.asarray(leaf)[i] for leaf in (self.x, self.w, self.log_clutter, self.noise_scale)
        )
        return _log_site(z, x, w, c, s, jnp.asarray(self.noise_root))

    @host_unless_traced
    def log_density(self, z: Float[Array, "dim"]) -> Float[Array, ""]:
        points = (
            jnp.asarray(leaf) for leaf in (self.x, self.w, self.log_clutter, self.noise_scale)
        )
        each: Callable[..., jax.Array] = jax.vmap(_log_site, in_axes=(None, 0, 0, 0, 0, None))
        sites = each(z, *points, jnp.asarray(self.noise_root))
        return log_normal(z, self.prior_mean, self.prior_root) + jnp.sum(
            jnp.asarray(self.weights) * sites
        )

    def log_density_on_host(self, points: Float[Array, "n dim"]) -> Float[np.ndarray, "n"]:
        k, (prior_mean, _) = self.kernels(), self.prior()
        inlier = (
            np.log1p(-self.w)
            - 0.5 * self.dim * np.log(2 * np.pi * k.scales)
            - _log_det(self.noise_root)
        )
        outlier = np.log(self.w) + self.log_clutter
        out = np.empty(len(points))
        # In blocks, each coordinate by itself: an array [n, rows, dim] would not fit in memory
        rows = max(1, _ELEMENTS // self.num_sites)
        for start in range(0, len(points), rows):
            t = np.linalg.solve(k.root, points[start : start + rows].T).T
            squares = np.zeros((len(t), self.num_sites))
            for j in range(self.dim):
                squares += (t[:, j, None] - k.points[:, j]) ** 2
            out[start : start + rows] = (
                np.logaddexp(inlier - 0.5 * squares / k.scales, outlier) @ k.weights
            )
        white = np.linalg.solve(np.asarray(self.prior_root), (points - prior_mean).T)
        return (
            out
            - 0.5 * np.sum(white**2, axis=0)
            - _log_det(self.prior_root)
            - 0.5 * self.dim * _LOG_2PI
        )

    def prior(self) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
        root = np.asarray(self.prior_root)
        return np.asarray(self.prior_mean), root @ root.T

    def kernels(self) -> Kernels:
        root = np.asarray(self.noise_root)
        white = np.linalg.solve(root, np.asarray(self.prior_root))
        white_inverse = np.linalg.inv(white)
        log_odds = np.log1p(-self.w) - np.log(self.w) - self.log_clutter - _log_det(root)
        return Kernels(
            points=np.linalg.solve(root, np.asarray(self.x).T).T,
            scales=np.asarray(self.noise_scale),
            log_odds=log_odds,
            weights=np.asarray(self.weights),
            prior_mean=np.linalg.solve(root, np.asarray(self.prior_mean)),
            prior_precision=white_inverse.T @ white_inverse,
            root=root,
        )

    def log_background(self) -> float:
        return float(np.sum(self.weights * (np.log(self.w) + self.log_clutter)))

    def tilt(
        self,
        index: Int[np.ndarray, "k"],
        means: Float[np.ndarray, "k dim"],
        covs: Float[np.ndarray, "k dim dim"],
    ) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k dim"], Float[np.ndarray, "k dim dim"]]:
        """Closed form: with B = (V + vg_i)^-1, u = B (x_i - m), r = the tilted share of the inlier.

            grad = r u,   neg. Hessian = r B - r (1 - r) u u'

        Source: Minka 2001, eqs. 3.42-3.46, here in D dimensions.
        """
        noise = np.asarray(self.noise_root) @ np.asarray(self.noise_root).T
        total = covs + self.noise_scale[index][:, None, None] * noise
        inverse = inverses(total)
        d = self.x[index] - means
        u = np.einsum("kde,ke->kd", inverse, d)
        log_det = log_dets(total)
        inlier = np.log1p(-self.w[index]) - 0.5 * (
            np.sum(d * u, axis=1) + log_det + self.dim * _LOG_2PI
        )
        outlier = np.log(self.w[index]) + self.log_clutter[index]
        r = sp.expit(inlier - outlier)
        bend = (
            r[:, None, None] * inverse
            - (r * (1 - r))[:, None, None] * u[:, :, None] * u[:, None, :]
        )
        return np.logaddexp(inlier, outlier), r[:, None] * u, bend

    def inlier_probabilities(self, q: AbstractFamily) -> Float[np.ndarray, "rows"]:
        """P(point i is no background | all points) = E_q sigma(a_i - r_i / 2).

        Here a_i are the log odds of a point at distance 0 and r_i the squared distance in the
        kernel's sds. For a Gaussian q in one or two dimensions by 31 Gauss-Hermite nodes on each
        axis, to six digits where q is narrower than the kernels. For any other q by 4096 draws,
        with standard errors below .008.
        """
        k = self.kernels()
        z, weights = _nodes_under(q)
        t = np.linalg.solve(k.root, z.T).T
        out = np.empty(self.num_sites)
        step = max(1, _ELEMENTS // len(t))
        for start in range(0, len(out), step):
            part = slice(start, start + step)
            squares = np.zeros((len(t), len(k.points[part])))
            for j in range(self.dim):
                squares += (t[:, j, None] - k.points[part, j]) ** 2
            out[part] = weights @ sp.expit(k.own_logits[part] - 0.5 * squares / k.scales[part])
        return out

    @property
    def vg(self) -> float:
        return float(
            np.median(self.noise_scale) * np.mean(np.sum(np.asarray(self.noise_root) ** 2, axis=1))
        )

    @property
    def vc(self) -> float:
        return (
            np.nan
            if self.clutter_root is None
            else float(np.mean(np.sum(np.asarray(self.clutter_root) ** 2, axis=1)))
        )

    def background_squares(self) -> Float[np.ndarray, "rows"]:
        if self.clutter_root is None:
            raise TargetError(
                "Clutter: the background was given by `log_clutter`, and has no variance."
            )
        return np.sum(
            np.linalg.solve(np.asarray(self.clutter_root), np.asarray(self.x).T) ** 2, axis=0
        )

    def with_noise(self, w: float | None, noise: float, background: float) -> "Clutter":
        new: dict[str, Array] = {"noise_scale": noise * self.noise_scale}
        if w is not None:
            new["w"] = np.full(self.num_sites, float(w))
        if self.clutter_root is not None:
            # log N(x; 0, b vc) - log N(x; 0, vc) with b the factor
            stretched = 0.5 * self.background_squares() * (
                1.0 - 1.0 / background
            ) - 0.5 * self.dim * np.log(background)
            new |= {
                "log_clutter": self.log_clutter + stretched,
                "clutter_root": self.clutter_root * np.sqrt(background),
            }
        return eqx.tree_at(
            lambda target: [getattr(target, name) for name in new], self, list(new.values())
        )

    def after(
        self, mean: Float[np.ndarray, "dim"], cov: Float[np.ndarray, "dim dim"], new_data: PyTree
    ) -> "Clutter":
        """The same model with this prior, for new points, or a dict of `x` and what else differs.

        w, vg and the background are carried over where they are the same for all points.

        Raises:
            TargetError: they are not, and `new_data` does not say what they are for the new points.
        """
        given = dict(new_data) if isinstance(new_data, dict) else {"x": new_data}
        if "x" not in given:
            raise TargetError("Clutter: new data must be points, or a dict with `x`.")
        noise = np.asarray(self.noise_root) @ np.asarray(self.noise_root).T
        known = {"w": self.w} if "w" not in given else {}
        if "vg" not in given:
            known["vg"] = self.noise_scale
        if "log_clutter" not in given and "vc" not in given and self.clutter_root is None:
            known["log_clutter"] = self.log_clutter
        for name, value in known.items():
            if np.any(value != value[0]):
                raise TargetError(
                    f"Clutter: the old points differ in `{name}`; say it for the new ones in"
                    " `new_data`."
                )
        carried: dict[str, Array | float] = {name: float(value[0]) for name, value in known.items()}
        if "vg" in carried and not np.array_equal(noise, np.eye(self.dim)):
            carried["vg"] = carried["vg"] * noise
        if self.clutter_root is not None and not {"log_clutter", "vc"} & given.keys():
            carried["vc"] = np.asarray(self.clutter_root) @ np.asarray(self.clutter_root).T
        return Clutter(**{**carried, **given}, prior_mean=mean, prior_var=cov)

    def exact(self) -> "Exact":
        """The posterior on a grid: mean, covariance, log evidence, KL both ways.

        One or two dimensions.

        Raises:
            TargetError: in more than two dimensions, or when the posterior is too spread out for a
                grid.
        """
        from .clutter_exact import exact_posterior

        return exact_posterior(self)


def _nodes_under(
    q: AbstractFamily,
) -> tuple[Float[np.ndarray, "m dim"], Float[np.ndarray, "m"]]:
    """Points and weights for expectations under q."""
    if q.covariance_structure == "none" or q.dim > 2:
        return q.draw(_DRAWS, 0)[0], np.full(_DRAWS, 1.0 / _DRAWS)
    q = cast("Gaussian", q)  # the only family with a covariance structure
    nodes, weights = np.polynomial.hermite_e.hermegauss(_AXIS_NODES)
    white = np.stack(np.meshgrid(*[nodes] * q.dim, indexing="ij"), axis=-1).reshape(-1, q.dim)
    joint = np.prod(
        np.stack(np.meshgrid(*[weights] * q.dim, indexing="ij"), axis=-1).reshape(-1, q.dim), axis=1
    )
    return np.asarray(q.mean) + white @ np.asarray(q.root).T, joint / joint.sum()


def _log_det(root: Float[Array, "dim dim"]) -> float:
    return float(np.sum(np.log(np.diagonal(np.asarray(root)))))


def _log_site(
    z: Float[Array, "dim"],
    x: Float[jax.Array, "dim"],
    w: Scalar,
    log_clutter: Scalar,
    scale: Scalar,
    root: Float[jax.Array, "dim dim"],
) -> Float[jax.Array, ""]:
    white = jax.scipy.linalg.solve_triangular(root, x - z, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(root))) + 0.5 * white.shape[0] * (
        _LOG_2PI + jnp.log(scale)
    )
    inlier = jnp.log1p(-w) - 0.5 * jnp.sum(white**2) / scale - log_det
    return jnp.logaddexp(inlier, jnp.log(w) + log_clutter)


def _noise(
    vg: ArrayLike, n: int, dim: int
) -> tuple[Float[np.ndarray, "dim dim"], Float[Array, "rows"]]:
    """(root, scale): the noise of point i has covariance scale_i root root'."""
    array = finite_array(vg, "Clutter", "vg")
    if array.ndim == 2:
        return root_of(array, dim, "Clutter", "vg"), np.ones(n)
    scale = per_point(array, n, "Clutter", "vg")
    if not holds(scale > 0):
        raise TargetError(f"Clutter: `vg` is a variance and must be positive, got {np.min(scale)}.")
    return np.eye(dim), scale


__all__ = ["Clutter"]
