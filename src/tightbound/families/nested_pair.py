"""A Gaussian whose mean and covariance depend on two coordinates.

For models with two scales that matter.
"""

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
from .bilinear import Bilinear, interpolate, locate

_HOST_NUMBERS = 4_000_000  # entries of the roots held at once on the host


class NestedGaussianPair(AbstractFamily):
    """q(z) = q(t) N(rest.

    M(t), C(t) C(t)'), t = z[coordinates] = centre + axes y: closed form, with exact draws.

    Knots lie on a regular lattice of y. Between them the mean follows a cubic spline, C(t) is
    bilinear (its diagonal on the log scale), and q(y) is bilinear on a finer lattice, zero outside
    it. The same as a `NestedGaussian`, whose one coordinate is cheaper to fit. Not above some 40
    dimensions, where the fits at some 60 knots cost too much.

    Attributes:
        coordinates: indices of t among the `dim` coordinates.
        centre, axes: `[2]` and lower triangular `[2, 2]`.
        outer: the density of y.
        origin, step: the knots are y = origin + step (i, j).
        means: `[N, M, dim - 2]` on the finer lattice of `outer`.
        lower: `[n, m, dim - 2, dim - 2]`, strictly lower part of C at the knots.
        log_diagonal: `[n, m, dim - 2]`.

    Source: Rue, Martino & Chopin 2009, section 3.1 (a grid over standardised hyperparameters).
    """

    coordinates: tuple[int, int] = eqx.field(static=True)
    centre: Array
    axes: Array
    outer: Bilinear
    origin: Array
    step: Array
    means: Array
    lower: Array
    log_diagonal: Array
    reparameterised: ClassVar[bool] = False

    @classmethod
    def through(
        cls,
        coordinates: tuple[int, int],
        centre: np.ndarray,
        axes: np.ndarray,
        origin: np.ndarray,
        step: float,
        profile: np.ndarray,
        means: np.ndarray,
        roots: np.ndarray,
        *,
        refine: int = 8,
    ) -> "NestedGaussianPair":
        """From Gaussians N(means[i, j], roots[i, j] roots[i, j]') fitted at y = origin + step (i,
        j), 4 x 4 or more.

        `profile [n, m]`: log density of t at the knots, up to a constant (the ELBO of the
        conditional fit). `refine`: cells of q(y) and of the mean between knots.
        """
        import scipy.interpolate as si  # half a second of import that few fits need

        n, m = profile.shape
        fine = np.stack(
            np.meshgrid(
                *(np.linspace(0, k - 1, refine * (k - 1) + 1) for k in (n, m)), indexing="ij"
            ),
            axis=-1,
        )
        at_knots = np.concatenate([profile[..., None], means], axis=-1)
        smooth = si.RegularGridInterpolator((np.arange(n), np.arange(m)), at_knots, method="cubic")(
            fine
        )
        cholesky = np.swapaxes(np.linalg.qr(np.swapaxes(roots, -1, -2))[1], -1, -2)
        cholesky = cholesky * np.sign(np.einsum("ijkk->ijk", cholesky))[..., None, :]
        return cls(
            coordinates,
            np.asarray(centre),
            np.asarray(axes),
            Bilinear.through(origin, step / refine, smooth[..., 0]),
            np.asarray(origin),
            np.asarray(step, np.float64),
            smooth[..., 1:],
            np.tril(cholesky, -1),
            np.log(np.einsum("ijkk->ijk", cholesky)),
        )

    @property
    def dim(self) -> int:
        return self.lower.shape[-1] + 2

    @property
    def rest(self) -> np.ndarray:
        """Indices of the other coordinates, `[dim - 2]`."""
        return np.delete(np.arange(self.dim), self.coordinates)

    def _sample(self, key: jax.Array, x: PyTree = None) -> jax.Array:
        outer, inner = jr.split(key)
        y = self.outer.inverse_cdf(jr.uniform(outer, (3,), dtype=self.dtype), jnp)
        mean, lower, log_diagonal = self._conditional(y, jnp)
        noise = jr.normal(inner, (self.dim - 2,), dtype=self.dtype)
        z = (
            jnp.zeros(self.dim, self.dtype)
            .at[self.rest]
            .set(mean + lower @ noise + jnp.exp(log_diagonal) * noise)
        )
        return z.at[np.array(self.coordinates)].set(self.centre + self.axes @ y)

    def _log_prob(self, z: jax.Array, x: PyTree = None) -> jax.Array:
        y = jsl.solve_triangular(self.axes, z[np.array(self.coordinates)] - self.centre, lower=True)
        mean, lower, log_diagonal = self._conditional(y, jnp)
        noise = jsl.solve_triangular(
            lower + jnp.diag(jnp.exp(log_diagonal)), z[self.rest] - mean, lower=True
        )
        return self._log_of(y, noise, log_diagonal, jnp)

    def log_prob_on_host(self, z: np.ndarray) -> np.ndarray:
        y = np.linalg.solve(self.axes, (z[:, self.coordinates] - self.centre).T).T
        log_q = np.empty(len(z))
        for part in self._blocks(len(z)):
            mean, lower, log_diagonal = self._conditional(y[part], np)
            root = lower + np.exp(log_diagonal)[:, :, None] * np.eye(self.dim - 2)
            noise = np.linalg.solve(root, (z[part][:, self.rest] - mean)[..., None])[..., 0]
            log_q[part] = self._log_of(y[part], noise, log_diagonal, np)
        return log_q

    def draw(self, n: int, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """Stratified over the cells of the outer density, antithetic in the rest."""
        noise = standard_normals(n, self.dim, key, "draw")[:, : self.dim - 2]
        # in the plane nothing is left to mirror
        count, rng = (-(-n // 2) if self.dim > 2 else n), host_rng(key, "strata")
        u = np.stack(
            [
                (rng.permutation(count) + rng.random(count)) / count,
                rng.random(count),
                rng.random(count),
            ],
            axis=1,
        )
        y = self.outer.inverse_cdf(np.concatenate([u, u])[:n])
        z, log_q = np.empty((n, self.dim)), np.empty(n)
        z[:, self.coordinates] = self.centre + y @ self.axes.T
        for part in self._blocks(n):
            mean, lower, log_diagonal = self._conditional(y[part], np)
            moves = np.einsum("nij,nj->ni", lower, noise[part]) + np.exp(log_diagonal) * noise[part]
            z[part][:, self.rest] = mean + moves
            log_q[part] = self._log_of(y[part], noise[part], log_diagonal, np)
        return z, log_q

    def _blocks(self, n: int) -> list[slice]:
        """Rows in blocks whose roots fit into memory."""
        rows = max(1, _HOST_NUMBERS // self.dim**2)
        return [slice(i, i + rows) for i in range(0, n, rows)]

    def _conditional(self, y, xp):
        """Mean, strictly lower root and log diagonal of the rest at y.

        Beyond the lattice those of its edge.
        """
        cell, place = self.outer.locate(y, xp)
        mean = interpolate(self.means, cell, xp.clip(place, 0.0, 1.0))
        cell, place = locate(y, self.origin, self.step, self.lower.shape, xp)
        place = xp.clip(place, 0.0, 1.0)
        return (
            mean,
            interpolate(self.lower, cell, place),
            interpolate(self.log_diagonal, cell, place),
        )

    def _log_of(self, y, noise, log_diagonal, xp):
        normal = (
            -0.5 * xp.sum(noise**2, axis=-1)
            - 0.5 * (self.dim - 2) * np.log(2 * np.pi)
            - xp.sum(log_diagonal, axis=-1)
        )
        return self.outer.log_prob(y, xp) - xp.log(self.axes[0, 0] * self.axes[1, 1]) + normal


__all__ = ["NestedGaussianPair"]
