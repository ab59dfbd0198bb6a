"""A Gaussian whose mean and covariance depend on two coordinates, such as two log scales."""

from types import ModuleType
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.linalg as jsl
import numpy as np
from jaxtyping import Float, Int

from .._numerics import host_rng
from .._types import Array, Key, PyTree, Scalar
from .base import AbstractFamily, on_one_thread, standard_normals
from .bilinear import Bilinear, interpolate, locate

_HOST_NUMBERS = 4_000_000  # entries of the roots held at once on the host: 32 MB


class NestedGaussianPair(AbstractFamily):
    """q(z) = q(t) N(rest; m(t), C(t) C(t)'), t = z[coordinates] = centre + axes y.

    In closed form, with exact draws. Knots lie on a regular lattice of y. Between them the mean
    follows a cubic spline, C(t) is bilinear (its diagonal on the log scale), and q(y) is bilinear
    on a finer lattice, zero outside it. The same as a `NestedGaussian`, whose one coordinate is
    cheaper to fit. Not above some 40 dimensions, where the fits at some 60 knots cost too much.

    Attributes:
        coordinates: indices of t among the `dim` coordinates.
        centre: t at y = 0.
        axes: lower triangular.
        outer: the density of y.
        origin: y at the first knot.
        step: the knots are y = origin + step (i, j).
        means: m at the nodes of `outer`, a finer lattice.
        lower: the part of C below its diagonal, at the knots.
        log_diagonal: log of the diagonal of C at the knots.

    Source: Rue, Martino & Chopin 2009, section 3.1 (a grid over standardised hyperparameters).
    """

    coordinates: tuple[int, int] = eqx.field(static=True)
    centre: Float[Array, "2"]
    axes: Float[Array, "2 2"]
    outer: Bilinear
    origin: Float[Array, "2"]
    step: Float[Array, ""]
    means: Float[Array, "fine_rows fine_columns rest"]
    lower: Float[Array, "rows columns rest rest"]
    log_diagonal: Float[Array, "rows columns rest"]
    reparameterised: ClassVar[bool] = False

    @classmethod
    def through(
        cls,
        coordinates: tuple[int, int],
        centre: Float[np.ndarray, "2"],
        axes: Float[np.ndarray, "2 2"],
        origin: Float[np.ndarray, "2"],
        step: Scalar,
        profile: Float[np.ndarray, "rows columns"],
        means: Float[np.ndarray, "rows columns rest"],
        roots: Float[np.ndarray, "rows columns rest m"],
        *,
        refine: int = 8,
    ) -> "NestedGaussianPair":
        """From Gaussians N(means[i, j], roots[i, j] roots[i, j]') fitted at the knots.

        The knots are y = origin + step (i, j), 4 x 4 or more. `profile`: log density of t at the
        knots, up to a constant (the ELBO of the conditional fit). `refine`: cells of q(y) and of
        the mean between knots.
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
        knots = (np.arange(n), np.arange(m))
        smooth = si.RegularGridInterpolator(knots, at_knots, method="cubic")(fine)
        # Interpolation wants roots that change smoothly with y: Cholesky factors, which are unique.
        # By a QR, because the covariance itself has the square of the root's condition number.
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
    def rest(self) -> Int[np.ndarray, "rest"]:
        """Indices of the other coordinates."""
        return np.delete(np.arange(self.dim), self.coordinates)

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        outer, inner = jr.split(key)
        y = self.outer.inverse_cdf(jr.uniform(outer, (3,), dtype=self.dtype), jnp)
        mean, lower, log_diagonal = self._conditional(y, jnp)
        noise = jr.normal(inner, (self.dim - 2,), dtype=self.dtype)
        rest = mean + lower @ noise + jnp.exp(log_diagonal) * noise
        z = jnp.zeros(self.dim, self.dtype).at[self.rest].set(rest)
        return z.at[np.array(self.coordinates)].set(self.centre + self.axes @ y)

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        y = jsl.solve_triangular(self.axes, z[np.array(self.coordinates)] - self.centre, lower=True)
        mean, lower, log_diagonal = self._conditional(y, jnp)
        noise = jsl.solve_triangular(
            lower + jnp.diag(jnp.exp(log_diagonal)), z[self.rest] - mean, lower=True
        )
        return self._log_of(y, noise, log_diagonal, jnp)

    @on_one_thread
    def log_prob_on_host(self, z: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, " n"]:
        y = np.linalg.solve(self.axes, (z[:, self.coordinates] - self.centre).T).T
        log_q = np.empty(len(z))
        for part in self._blocks(len(z)):
            mean, lower, log_diagonal = self._conditional(y[part], np)
            root = lower + np.exp(log_diagonal)[:, :, None] * np.eye(self.dim - 2)
            noise = np.linalg.solve(root, (z[part][:, self.rest] - mean)[..., None])[..., 0]
            log_q[part] = self._log_of(y[part], noise, log_diagonal, np)
        return log_q

    @on_one_thread
    def draw(self, n: int, key: Key) -> tuple[Float[np.ndarray, "n dim"], Float[np.ndarray, " n"]]:
        """Stratified over the cells of the outer density, antithetic in the rest."""
        noise = standard_normals(n, self.dim, key, "draw")[:, : self.dim - 2]
        # in the plane nothing is left to mirror
        count, rng = (-(-n // 2) if self.dim > 2 else n), host_rng(key, "strata")
        cells = (rng.permutation(count) + rng.random(count)) / count
        u = np.stack([cells, rng.random(count), rng.random(count)], axis=1)
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

    def _conditional(
        self, y: Float[Array, "*batch 2"], xp: ModuleType
    ) -> tuple[
        Float[Array, "*batch rest"], Float[Array, "*batch rest rest"], Float[Array, "*batch rest"]
    ]:
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

    def _log_of(
        self,
        y: Float[Array, "*batch 2"],
        noise: Float[Array, "*batch rest"],
        log_diagonal: Float[Array, "*batch rest"],
        xp: ModuleType,
    ) -> Float[Array, "*batch"]:
        normal = (
            -0.5 * xp.sum(noise**2, axis=-1)
            - 0.5 * (self.dim - 2) * np.log(2 * np.pi)
            - xp.sum(log_diagonal, axis=-1)
        )
        return self.outer.log_prob(y, xp) - xp.log(self.axes[0, 0] * self.axes[1, 1]) + normal


__all__ = ["NestedGaussianPair"]
