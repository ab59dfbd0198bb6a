"""The clutter problem: a location measured by points of which a share is unrelated background."""

from typing import TYPE_CHECKING, Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special as sp

from .._types import Array
from ..results import TargetError
from .base import Sequential
from .sites import (
    Kernels,
    LearnableNoise,
    finite_array,
    holds,
    inverses,
    is_known,
    log_dets,
    log_normal,
    root_of,
    vector_of,
)
from .tracing import host_unless_traced

if TYPE_CHECKING:
    from .clutter_exact import Exact

_LOG_2PI = float(np.log(2 * np.pi))
_AXIS_NODES = 31
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

    x: Array
    w: Array
    log_clutter: Array
    clutter_root: Array | None
    noise_root: Array
    noise_scale: Array
    weights: Array
    prior_mean: Array
    prior_root: Array
    is_scalar: bool = eqx.field(static=True)

    def __init__(
        self,
        x: Any,
        *,
        w: Any = 0.5,
        vg: Any = 1.0,
        vc: Any = 10.0,
        log_clutter: Any = None,
        prior_mean: Any = 0.0,
        prior_var: Any = 100.0,
        weights: Any = None,
    ):
        x = finite_array(x, "Clutter", "x")
        if x.ndim not in (1, 2) or x.size == 0:
            raise TargetError(
                "Clutter: `x` must be points [n] or [n, D], at least one of them; got shape"
                f" {x.shape}."
            )
        self.is_scalar = x.ndim == 1
        self.x = x[:, None] if self.is_scalar else x
        n, dim = self.x.shape
        self.w = per_point(w, n, "w", "Clutter")
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
            np.ones(n) if weights is None else per_point(weights, n, "weights", "Clutter")
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
    def multiplicities(self) -> np.ndarray:
        return np.asarray(self.weights)

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return ("theta",) if self.is_scalar else tuple(f"theta[{j}]" for j in range(self.dim))

    def constrain(self, z: Array) -> Any:
        return {"theta": z[0] if self.is_scalar else z}

    def unconstrain(self, values: Any) -> Array:
        return jnp.reshape(jnp.asarray(values["theta"]), (self.dim,))

    @host_unless_traced
    def log_site(self, i: Any, z: Array) -> Array:
        """log[(1 - w_i) N(x_i.

        Z, vg_i) + w_i Pc(x_i)] at one point `[D]`, nats, without its weight.
        """
        x, w, c, s = (
            jnp.asarray(leaf)[i] for leaf in (self.x, self.w, self.log_clutter, self.noise_scale)
        )
        return _log_site(z, x, w, c, s, jnp.asarray(self.noise_root))

    @host_unless_traced
    def log_density(self, z: Array) -> Array:
        per_point = (
            jnp.asarray(leaf) for leaf in (self.x, self.w, self.log_clutter, self.noise_scale)
        )
        each: Any = jax.vmap(_log_site, in_axes=(None, 0, 0, 0, 0, None))
        sites = each(z, *per_point, jnp.asarray(self.noise_root))
        return log_normal(z, self.prior_mean, self.prior_root) + jnp.sum(
            jnp.asarray(self.weights) * sites
        )

    def log_density_on_host(self, points: np.ndarray) -> np.ndarray:
        """The log density at `[m, D]` in NumPy, nothing to compile: `[m]`, nats."""
        k, (prior_mean, _) = self.kernels(), self.prior()
        inlier = (
            np.log1p(-self.w)
            - 0.5 * self.dim * np.log(2 * np.pi * k.scales)
            - _log_det(self.noise_root)
        )
        outlier = np.log(self.w) + self.log_clutter
        out = np.empty(len(points))
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

    def prior(self) -> tuple[np.ndarray, np.ndarray]:
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
        self, index: np.ndarray, means: np.ndarray, covs: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Closed form: with B = (V + vg_i)^-1, u = B (x_i - m), r = the tilted share of the inlier.

        grad = r u,  neg. Hessian = r B - r (1 - r) u u' (Minka 2001, eqs. 3.42-3.46, in D
        dimensions).
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

    def inlier_probabilities(self, q: Any) -> np.ndarray:
        """P(point i is no background | all points) = E_q sigma(a_i - r_i / 2), `[n]`.

        A Gaussian q in one or two dimensions: by 31 Gauss-Hermite nodes per axis, to six digits
            where q is narrower than
        the kernels. Any other: by 4096 draws of q, with standard errors below .008.
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

    def background_squares(self) -> np.ndarray:
        if self.clutter_root is None:
            raise TargetError(
                "Clutter: the background was given by `log_clutter`, and has no variance."
            )
        return np.sum(
            np.linalg.solve(np.asarray(self.clutter_root), np.asarray(self.x).T) ** 2, axis=0
        )

    def with_noise(self, w: float | None, noise: float, background: float) -> "Clutter":
        new: dict[str, Any] = {"noise_scale": noise * self.noise_scale}
        if w is not None:
            new["w"] = np.full(self.num_sites, float(w))
        if self.clutter_root is not None:
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

    def after(self, mean: np.ndarray, cov: np.ndarray, new_data: Any) -> "Clutter":
        """The same model with this prior, for `new_data`: points, or a dict of arguments (`x` and
        what else differs).

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
        carried: dict[str, Any] = {name: float(value[0]) for name, value in known.items()}
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


def _nodes_under(q: Any) -> tuple[np.ndarray, np.ndarray]:
    """Points `[m, D]` and weights `[m]` for expectations under q."""
    if not hasattr(q, "root") or q.dim > 2:
        return q.draw(4096, 0)[0], np.full(4096, 1.0 / 4096)
    nodes, weights = np.polynomial.hermite_e.hermegauss(_AXIS_NODES)
    white = np.stack(np.meshgrid(*[nodes] * q.dim, indexing="ij"), axis=-1).reshape(-1, q.dim)
    joint = np.prod(
        np.stack(np.meshgrid(*[weights] * q.dim, indexing="ij"), axis=-1).reshape(-1, q.dim), axis=1
    )
    return np.asarray(q.mean) + white @ np.asarray(q.root).T, joint / joint.sum()


def _log_det(root: Any) -> float:
    return float(np.sum(np.log(np.diagonal(np.asarray(root)))))


def _log_site(z: Any, x: Any, w: Any, log_clutter: Any, scale: Any, root: Any) -> Any:
    white = jax.scipy.linalg.solve_triangular(root, x - z, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(root))) + 0.5 * white.shape[0] * (
        _LOG_2PI + jnp.log(scale)
    )
    inlier = jnp.log1p(-w) - 0.5 * jnp.sum(white**2) / scale - log_det
    return jnp.logaddexp(inlier, jnp.log(w) + log_clutter)


def per_point(value: Any, n: int, name: str, where: str) -> Any:
    """A number or `[n]` as `[n]`, or a TargetError."""
    array = finite_array(value, where, name)
    if array.shape not in ((), (n,)):
        raise TargetError(
            f"{where}: `{name}` must be a number or have one entry per point, [{n}]; got"
            f" {array.shape}."
        )
    return np.broadcast_to(array, (n,)).copy() if is_known(array) else jnp.broadcast_to(array, (n,))


def _noise(vg: Any, n: int, dim: int) -> tuple[np.ndarray, Any]:
    """(root `[D, D]`, scale `[n]`): the noise of point i has covariance scale_i root root'."""
    array = finite_array(vg, "Clutter", "vg")
    if array.ndim == 2:
        return root_of(array, dim, "Clutter", "vg"), np.ones(n)
    scale = per_point(array, n, "vg", "Clutter")
    if not holds(scale > 0):
        raise TargetError(f"Clutter: `vg` is a variance and must be positive, got {np.min(scale)}.")
    return np.eye(dim), scale


def log_density_of_background(log_clutter: Any, vc: Any, x: Any, where: str) -> Any:
    """log Pc at the points `x [n, D]`, `[n]`: as given, or that of N(0, vc)."""
    n, dim = x.shape
    if log_clutter is None:
        root = root_of(vc, dim, where, "vc")
        white = np.linalg.inv(root) @ x.T
        return -0.5 * (white**2).sum(axis=0) - _log_det(root) - 0.5 * dim * _LOG_2PI
    array = log_clutter if not is_known(log_clutter) else np.asarray(log_clutter, dtype=np.float64)
    if is_known(array) and np.any(np.isnan(array) | np.isposinf(array)):
        raise TargetError(
            f"{where}: `log_clutter` has NaN or +inf entries; it is the log of a density (-inf"
            " means none)."
        )
    if array.shape not in ((), (n,)):
        raise TargetError(
            f"{where}: `log_clutter` must be a number or have one entry per point, [{n}]; got"
            f" {array.shape}."
        )
    return np.broadcast_to(array, (n,)).copy() if is_known(array) else jnp.broadcast_to(array, (n,))


__all__ = ["Clutter", "log_density_of_background", "per_point"]
