"""A Gaussian whose mean and covariance depend on one coordinate.

What the log scale of a hierarchical model asks for.
"""

import itertools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.linalg as jsl
import numpy as np

from .._numerics import host_rng
from .._types import Array, Key, PyTree
from .base import AbstractFamily, standard_normals
from .log_linear import LogLinear

_HOST_NUMBERS = 4_000_000  # entries of the roots held at once on the host
_REFINE = 32  # cells of the outer density per interval between knots


class NestedGaussian(AbstractFamily):
    """q(z) = q(t) N(rest.

    M(t), C(t) C(t)'), t = z[coordinate]: a density in closed form, with exact draws.

    Between `knots [K]` the mean is a cubic spline, and C(t), lower triangular, is interpolated
    linearly (its diagonal on the log scale); q(t) has a piecewise linear log density. The general
    form of a nested Laplace approximation, without its restriction to latent Gaussian models. Not
    for posteriors with several separated modes.

    Attributes:
        coordinate: index of t among the `dim` coordinates.
        outer: the density of t.
        coefficients: `[4, K - 1, dim - 1]`, highest power first, of the mean's spline.
        lower: `[K, dim - 1, dim - 1]`, strictly lower part of C at the knots.
        log_diagonal: `[K, dim - 1]`.

    Source: Rue, Martino & Chopin 2009 (nested Laplace); DESIGN section 6.
    """

    coordinate: int = eqx.field(static=True)
    outer: LogLinear
    knots: Array
    coefficients: Array
    lower: Array
    log_diagonal: Array
    reparameterised: ClassVar[bool] = False

    @classmethod
    def through(
        cls,
        coordinate: int,
        knots: np.ndarray,
        profile: np.ndarray,
        means: np.ndarray,
        roots: np.ndarray,
    ) -> "NestedGaussian":
        """From Gaussians N(means[k], roots[k] roots[k]') fitted at `t = knots[k]` (ascending, at
        least four).

        `profile [K]`: log density of t at the knots, up to a constant (the ELBO of the conditional
        fit).
        """
        import scipy.interpolate as si  # half a second of import that few fits need

        fine = np.unique(
            np.concatenate([np.linspace(a, b, _REFINE + 1) for a, b in itertools.pairwise(knots)])
        )
        outer = LogLinear.through(fine, si.CubicSpline(knots, profile)(fine))
        cholesky = np.stack([np.linalg.qr(root.T)[1].T for root in roots])
        sign = np.sign(np.einsum("kii->ki", cholesky))
        cholesky = cholesky * sign[:, None, :]
        log_diagonal = np.log(np.einsum("kii->ki", cholesky))
        return cls(
            coordinate,
            outer,
            np.asarray(knots),
            si.CubicSpline(knots, means).c,
            np.tril(cholesky, -1),
            log_diagonal,
        )

    @property
    def dim(self) -> int:
        return self.lower.shape[-1] + 1

    def _sample(self, key: jax.Array, x: PyTree = None) -> jax.Array:
        outer, inner = jr.split(key)
        t = self.outer.inverse_cdf(jr.uniform(outer, dtype=self.dtype), jnp)
        mean, lower, log_diagonal = self._conditional(t)
        noise = jr.normal(inner, (self.dim - 1,), dtype=self.dtype)
        rest = mean + lower @ noise + jnp.exp(log_diagonal) * noise
        return jnp.insert(rest, self.coordinate, t)

    def _log_prob(self, z: jax.Array, x: PyTree = None) -> jax.Array:
        t, rest = z[self.coordinate], jnp.delete(z, self.coordinate, assume_unique_indices=True)
        mean, lower, log_diagonal = self._conditional(t)
        noise = jsl.solve_triangular(
            lower + jnp.diag(jnp.exp(log_diagonal)), rest - mean, lower=True
        )
        normal = (
            -0.5 * noise @ noise - 0.5 * (self.dim - 1) * np.log(2 * np.pi) - jnp.sum(log_diagonal)
        )
        return self.outer.log_prob(t, jnp) + normal

    def _conditional(self, t: Array) -> tuple[Array, Array, Array]:
        """Mean, strictly lower root and log diagonal of the rest given t."""
        cell, weight = self._position(t, jnp)
        mean = self._mean(t, cell, jnp)
        lower = (1 - weight) * self.lower[cell] + weight * self.lower[cell + 1]
        return (
            mean,
            lower,
            (1 - weight) * self.log_diagonal[cell] + weight * self.log_diagonal[cell + 1],
        )

    def _position(self, t, xp):
        """The interval of knots that t lies in and its place there.

        Beyond the ends the end's values hold.
        """
        cell = xp.clip(xp.searchsorted(self.knots, t, side="right") - 1, 0, len(self.knots) - 2)
        place = (t - self.knots[cell]) / (self.knots[cell + 1] - self.knots[cell])
        return cell, xp.clip(place, 0.0, 1.0)

    def _mean(self, t, cell, xp):
        """The spline inside the knots, its tangent outside."""
        inside = xp.clip(t, self.knots[0], self.knots[-1])
        s = (inside - self.knots[cell])[..., None]
        a, b, c, d = (self.coefficients[i][cell] for i in range(4))
        return (
            ((a * s + b) * s + c) * s + d + (t - inside)[..., None] * ((3 * a * s + 2 * b) * s + c)
        )

    def log_prob_on_host(self, z: np.ndarray) -> np.ndarray:
        t, rest = z[:, self.coordinate], np.delete(z, self.coordinate, axis=1)
        cell, weight = self._position(t, np)
        log_diagonal = (1 - weight)[:, None] * self.log_diagonal[cell] + weight[
            :, None
        ] * self.log_diagonal[cell + 1]
        moved, noise, rows = (
            rest - self._mean(t, cell, np),
            np.empty_like(rest),
            max(1, _HOST_NUMBERS // self.dim**2),
        )
        for i in range(0, len(z), rows):
            part = slice(i, i + rows)
            w, k = weight[part, None, None], cell[part]
            root = (
                (1 - w) * self.lower[k]
                + w * self.lower[k + 1]
                + np.exp(log_diagonal[part])[:, :, None] * np.eye(self.dim - 1)
            )
            noise[part] = np.linalg.solve(root, moved[part, :, None])[..., 0]
        normal = (
            -0.5 * np.sum(noise**2, axis=1)
            - 0.5 * (self.dim - 1) * np.log(2 * np.pi)
            - log_diagonal.sum(axis=1)
        )
        return self.outer.log_prob(t) + normal

    def draw(self, n: int, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """Stratified in t, antithetic in the rest; no matrix per draw, only one product per knot."""
        normals = standard_normals(n, self.dim, key, "draw")
        half = -(-n // 2) if self.dim > 1 else n  # on the line nothing is left to mirror
        rng = host_rng(key, "strata")
        u = (rng.permutation(half) + rng.random(half)) / half
        t = self.outer.inverse_cdf(np.concatenate([u, u])[:n])
        noise = np.delete(normals, self.coordinate, axis=1)
        cell, weight = self._position(t, np)
        log_diagonal = (1 - weight)[:, None] * self.log_diagonal[cell] + weight[
            :, None
        ] * self.log_diagonal[cell + 1]
        rest = self._mean(t, cell, np) + np.exp(log_diagonal) * noise
        for k in np.unique(cell):
            pick = cell == k
            rest[pick] += (1 - weight[pick])[:, None] * (noise[pick] @ self.lower[k].T)
            rest[pick] += weight[pick][:, None] * (noise[pick] @ self.lower[k + 1].T)
        normal = (
            -0.5 * np.sum(noise**2, axis=1)
            - 0.5 * (self.dim - 1) * np.log(2 * np.pi)
            - log_diagonal.sum(axis=1)
        )
        return np.insert(rest, self.coordinate, t, axis=1), self.outer.log_prob(t) + normal
