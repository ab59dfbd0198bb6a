"""Linear regression with outliers: of the measurements, a share is unrelated background."""

from typing import final

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
    log_density_of_background,
    per_point,
    root_of,
    vector_of,
)
from .linear_sites import AlongLines
from .sites import Reweighted, log_normal
from .support import ArrayLike
from .tracing import host_unless_traced

_LOG_2PI = float(np.log(2 * np.pi))  # of Gaussian densities


@final
class LinearClutter(AlongLines, Reweighted, Sequential):
    """p(y_i | z) = (1 - w) N(y_i; a_i'z, vg) + w Pc(y_i), z ~ N(prior_mean, prior_var).

    Regression with outliers. log p(z, y) in nats with all constants. `tb.fit` starts it from
    annealed reweighted least squares; `tb.solvers.EP()` has its tilted moments in closed form, and
    gives the evidence. Not for outliers in `directions` (leverage): those are inputs here. Not for
    an unknown noise variance: write that with `tb.from_rows`.

    Arguments:
        directions: a_i, `[n, d]`; put a column of ones for an intercept.
        y: the measurements, `[n]`.
        w: share of background in (0, 1); one number or `[n]`.
        vg: noise variance of the inliers, a number or `[n]`.
        vc: variance of the background N(clutter_mean, vc); None is that of y, at least vg. Unused
            with `log_clutter`.
        clutter_mean: a number; None is the mean of y. Unused with `log_clutter`.
        log_clutter: log Pc(y_i) in nats, a number or `[n]`.
        prior_mean: number or `[d]`.
        prior_var: positive number, or covariance `[d, d]`.

    Raises:
        TargetError: shapes that disagree, NaN or infinite entries, w outside (0, 1), variances that
            are not positive.

    Source: Box & Tiao 1968 (the contaminated regression).
    """

    directions: Float[Array, "rows dim"]
    y: Float[Array, "rows"]
    w: Float[Array, "rows"]
    vg: Float[Array, "rows"]
    log_clutter: Float[Array, "rows"]
    background: Float[Array, "2"] | None
    prior_mean: Float[Array, "dim"]
    prior_root: Float[Array, "dim dim"]

    def __init__(
        self,
        directions: Validated[ArrayLike, "finite_array"],
        y: Validated[ArrayLike, "finite_array"],
        *,
        w: Validated[ArrayLike, "per_point"] = 0.1,
        vg: Validated[ArrayLike, "per_point"] = 1.0,
        vc: Validated[ArrayLike | None, "root_of"] = None,
        clutter_mean: Validated[ArrayLike | None, "finite_array"] = None,
        log_clutter: Validated[ArrayLike | None, "log_density_of_background"] = None,
        prior_mean: Validated[ArrayLike, "vector_of"] = 0.0,
        prior_var: Validated[ArrayLike, "root_of"] = 100.0,
    ):
        self.directions = finite_array(directions, "LinearClutter", "directions")
        if self.directions.ndim != 2 or 0 in self.directions.shape:
            raise TargetError(
                "LinearClutter: `directions` must be [n, d], a row per point; got"
                f" {self.directions.shape}."
            )
        n, dim = self.directions.shape
        self.y = finite_array(y, "LinearClutter", "y")
        if self.y.shape != (n,):
            raise TargetError(
                f"LinearClutter: `y` must have shape [{n}] as `directions` has rows, got"
                f" {self.y.shape}."
            )
        self.w = per_point(w, n, "LinearClutter", "w")
        if not np.all((self.w > 0) & (self.w < 1)):
            raise TargetError(
                "LinearClutter: `w`, the share of background, must lie strictly between 0 and 1."
            )
        self.vg = per_point(vg, n, "LinearClutter", "vg")
        if not np.all(self.vg > 0):
            raise TargetError(
                f"LinearClutter: `vg` is a variance and must be positive, got {self.vg.min()}."
            )
        # Background as wide as the data themselves: never narrower than the noise, or the two would
        # change places.
        if vc is None:
            vc = max(float(np.var(self.y)), float(self.vg.max()))
        centre = (
            np.mean(self.y)
            if clutter_mean is None
            else finite_array(clutter_mean, "LinearClutter", "clutter_mean")
        )
        self.background = None if log_clutter is not None else np.array([centre, vc], np.float64)
        self.log_clutter = log_density_of_background(
            log_clutter, vc, (self.y - centre)[:, None], "LinearClutter"
        )
        self.prior_mean = vector_of(prior_mean, dim, "LinearClutter", "prior_mean")
        self.prior_root = root_of(prior_var, dim, "LinearClutter", "prior_var")

    @host_unless_traced
    def log_site(self, i: Int[Array, ""] | int, z: Float[Array, "dim"]) -> Float[Array, ""]:
        """log[(1 - w_i) N(y_i; a_i'z, vg_i) + w_i Pc(y_i)], nats."""
        a, *point = (
            jnp.asarray(leaf)[i]
            for leaf in (self.directions, self.y, self.w, self.vg, self.log_clutter)
        )
        return _log_site(a @ z, *point)

    @host_unless_traced
    def log_density(self, z: Float[Array, "dim"]) -> Float[Array, ""]:
        points = (jnp.asarray(leaf) for leaf in (self.y, self.w, self.vg, self.log_clutter))
        sites = jax.vmap(_log_site)(jnp.asarray(self.directions) @ z, *points)
        return log_normal(z, self.prior_mean, self.prior_root) + jnp.sum(sites)

    def tilt(
        self,
        index: Int[np.ndarray, "k"],
        means: Float[np.ndarray, "k dim"],
        covs: Float[np.ndarray, "k dim dim"],
    ) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k dim"], Float[np.ndarray, "k dim dim"]]:
        """Closed form along a_i.

        With s = a'V a + vg, u = (y - a'm) / s and r the tilted share of the inlier: grad = r u a,
        neg. Hessian = [r / s - r (1 - r) u^2] a a'.
        """
        a, w = self.directions[index], self.w[index]
        s = np.einsum("kd,kde,ke->k", a, covs, a) + self.vg[index]
        d = self.y[index] - np.einsum("kd,kd->k", a, means)
        inlier = np.log1p(-w) - 0.5 * (d**2 / s + np.log(s) + _LOG_2PI)
        outlier = np.log(w) + self.log_clutter[index]
        r = sp.expit(inlier - outlier)
        bend = r / s - r * (1 - r) * (d / s) ** 2
        return (
            np.logaddexp(inlier, outlier),
            (r * d / s)[:, None] * a,
            bend[:, None, None] * a[:, :, None] * a[:, None, :],
        )

    def log_odds(
        self, z: Float[np.ndarray, "dim"], vg: Float[Array, "rows"] | None = None
    ) -> Float[np.ndarray, "rows"]:
        """Log odds that each point is an inlier if z is true.

        Arguments:
            z: the coefficients.
            vg: noise variances in place of the target's own.
        """
        vg = self.vg if vg is None else vg
        inlier = np.log1p(-self.w) - 0.5 * (
            (self.y - self.directions @ z) ** 2 / vg + np.log(vg) + _LOG_2PI
        )
        return inlier - np.log(self.w) - self.log_clutter

    def widest(self) -> float:
        # Widened so, the point farthest from least squares is half an sd away
        z, _ = self.reweighted(None, 1.0)
        return max(1.0, 4.0 * float(np.max((self.y - self.directions @ z) ** 2 / self.vg)))

    def reweighted(
        self, z: Float[np.ndarray, "dim"] | None, widening: float
    ) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
        vg = widening * np.asarray(self.vg)
        # The normal equations of weighted least squares, with the prior as a further observation
        share = (np.ones(self.num_sites) if z is None else sp.expit(self.log_odds(z, vg))) / vg
        white = np.linalg.inv(np.asarray(self.prior_root))
        prior_precision = white.T @ white
        precision = (self.directions * share[:, None]).T @ self.directions + prior_precision
        pull = self.directions.T @ (share * self.y) + prior_precision @ np.asarray(self.prior_mean)
        return np.linalg.solve(precision, pull), np.asarray(precision)

    def inlier_probabilities(self, q: AbstractFamily) -> Float[np.ndarray, "rows"]:
        """P(point i is no background | all points) under q, by 4096 draws (s.e. < .008)."""
        draws = q.draw(4096, 0)[0]
        return np.mean([sp.expit(self.log_odds(z)) for z in draws], axis=0)

    def after(
        self, mean: Float[np.ndarray, "dim"], cov: Float[np.ndarray, "dim dim"], new_data: PyTree
    ) -> "LinearClutter":
        """The same model with this prior, for a dict of `directions`, `y` and what else differs.

        The share w, vg and the background density are carried over where each is one number for all
        points.
        """
        if not isinstance(new_data, dict) or not {"directions", "y"} <= new_data.keys():
            raise TargetError("LinearClutter: new data must be a dict with `directions` and `y`.")
        fresh = {"vc", "clutter_mean", "log_clutter"} & new_data.keys()
        names = ("w", "vg") if fresh or self.background is not None else ("w", "vg", "log_clutter")
        kept = {name: getattr(self, name) for name in names if name not in new_data}
        for name, value in kept.items():
            if np.any(value != value[0]):
                raise TargetError(
                    f"LinearClutter: the old points differ in `{name}`; say it for the new ones in"
                    " `new_data`."
                )
        known = {name: float(value[0]) for name, value in kept.items()}
        if self.background is not None and not fresh:
            known |= {"clutter_mean": float(self.background[0]), "vc": float(self.background[1])}
        return LinearClutter(**{**known, **new_data}, prior_mean=mean, prior_var=cov)


def _log_site(
    location: Scalar, y: Scalar, w: Scalar, vg: Scalar, log_clutter: Scalar
) -> Float[jax.Array, ""]:
    inlier = jnp.log1p(-w) - 0.5 * ((y - location) ** 2 / vg + jnp.log(vg) + _LOG_2PI)
    return jnp.logaddexp(inlier, jnp.log(w) + log_clutter)


__all__ = ["LinearClutter"]
