"""A Gaussian whose mean and covariance depend on one coordinate, such as a log scale."""

import itertools
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
from .._types import Array, Key, PyTree
from .base import HOST_NUMBERS, AbstractFamily, on_one_thread, standard_normals
from .log_linear import LogLinear

# Cells of the outer density per interval between knots: the error of linear interpolation falls
# with the square of their number, to a thousandth of that at the knots alone.
_REFINE = 32


class NestedGaussian(AbstractFamily):
    """q(z) = q(t) N(rest; m(t), C(t) C(t)'), t = z[coordinate]: in closed form, with exact draws.

    Between the knots the mean m(t) is a cubic spline, and C(t), lower triangular, is interpolated
    linearly (its diagonal on the log scale); q(t) has a piecewise linear log density. The general
    form of a nested Laplace approximation, without its restriction to latent Gaussian models. Not
    for posteriors with several separated modes.

    Attributes:
        coordinate: index of t among the `dim` coordinates.
        outer: the density of t.
        knots: values of t, ascending.
        coefficients: of the mean's spline, highest power first.
        lower: the part of C below its diagonal, at the knots.
        log_diagonal: log of the diagonal of C at the knots.

    Source: Rue, Martino & Chopin 2009 (nested Laplace approximations).
    """

    coordinate: int = eqx.field(static=True)
    outer: LogLinear
    knots: Float[Array, "knots"]
    coefficients: Float[Array, "4 knots-1 rest"]
    lower: Float[Array, "knots rest rest"]
    log_diagonal: Float[Array, "knots rest"]
    reparameterised: ClassVar[bool] = False

    @classmethod
    def through(
        cls,
        coordinate: int,
        knots: Float[np.ndarray, "knots"],
        profile: Float[np.ndarray, "knots"],
        means: Float[np.ndarray, "knots rest"],
        roots: Float[np.ndarray, "knots rest m"],
    ) -> "NestedGaussian":
        """From Gaussians N(means[k], roots[k] roots[k]') fitted at t = knots[k].

        Four knots at least, ascending. `profile`: log density of t at the knots, up to a constant
        (the ELBO of the conditional fit).
        """
        import scipy.interpolate as si  # half a second of import that few fits need

        fine = np.unique(
            np.concatenate([np.linspace(a, b, _REFINE + 1) for a, b in itertools.pairwise(knots)])
        )
        outer = LogLinear.through(fine, si.CubicSpline(knots, profile)(fine))
        # Interpolation wants roots that change smoothly with t: Cholesky factors, which are unique.
        # By a QR, because the covariance itself has the square of the root's condition number.
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

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        outer, inner = jr.split(key)
        t = self.outer.inverse_cdf(jr.uniform(outer, dtype=self.dtype), jnp)
        mean, lower, log_diagonal = self._conditional(t)
        noise = jr.normal(inner, (self.dim - 1,), dtype=self.dtype)
        rest = mean + lower @ noise + jnp.exp(log_diagonal) * noise
        return jnp.insert(rest, self.coordinate, t)

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        # One index is unique: without this word `delete` sorts at run time.
        t, rest = z[self.coordinate], jnp.delete(z, self.coordinate, assume_unique_indices=True)
        mean, lower, log_diagonal = self._conditional(t)
        noise = jsl.solve_triangular(
            lower + jnp.diag(jnp.exp(log_diagonal)), rest - mean, lower=True
        )
        normal = (
            -0.5 * noise @ noise - 0.5 * (self.dim - 1) * np.log(2 * np.pi) - jnp.sum(log_diagonal)
        )
        return self.outer.log_prob(t, jnp) + normal

    def _conditional(
        self, t: Float[Array, ""]
    ) -> tuple[Float[Array, "rest"], Float[Array, "rest rest"], Float[Array, "rest"]]:
        """Mean, strictly lower root and log diagonal of the rest given t."""
        cell, weight = self._position(t, jnp)
        mean = self._mean(t, cell, jnp)
        lower = (1 - weight) * self.lower[cell] + weight * self.lower[cell + 1]
        return (
            mean,
            lower,
            (1 - weight) * self.log_diagonal[cell] + weight * self.log_diagonal[cell + 1],
        )

    def _position(
        self, t: Float[Array, "*batch"], xp: ModuleType
    ) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
        """The interval of knots that t lies in and its place there.

        Beyond the ends the end's values hold.
        """
        cell = xp.clip(xp.searchsorted(self.knots, t, side="right") - 1, 0, len(self.knots) - 2)
        place = (t - self.knots[cell]) / (self.knots[cell + 1] - self.knots[cell])
        return cell, xp.clip(place, 0.0, 1.0)

    def _mean(
        self, t: Float[Array, "*batch"], cell: Int[Array, "*batch"], xp: ModuleType
    ) -> Float[Array, "*batch rest"]:
        """The spline inside the knots, its tangent outside."""
        inside = xp.clip(t, self.knots[0], self.knots[-1])
        s = (inside - self.knots[cell])[..., None]
        a, b, c, d = (self.coefficients[i][cell] for i in range(4))
        return (
            ((a * s + b) * s + c) * s + d + (t - inside)[..., None] * ((3 * a * s + 2 * b) * s + c)
        )

    @on_one_thread
    def log_prob_on_host(self, z: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n"]:
        t, rest = z[:, self.coordinate], np.delete(z, self.coordinate, axis=1)
        cell, weight = map(np.asarray, self._position(t, np))
        log_diagonal = self._log_diagonals(cell, weight)
        moved, noise = rest - self._mean(t, cell, np), np.empty_like(rest)
        rows = max(1, HOST_NUMBERS // self.dim**2)
        for i in range(0, len(z), rows):
            part = slice(i, i + rows)
            w, k = weight[part, None, None], cell[part]
            root = (
                (1 - w) * self.lower[k]
                + w * self.lower[k + 1]
                + np.exp(log_diagonal[part])[:, :, None] * np.eye(self.dim - 1)
            )
            noise[part] = np.linalg.solve(root, moved[part, :, None])[..., 0]
        return self._log_prob_of(t, noise, log_diagonal)

    @on_one_thread
    def draw(self, n: int, key: Key) -> tuple[Float[np.ndarray, "n dim"], Float[np.ndarray, "n"]]:
        """Stratified in t, antithetic in the rest; one matrix product per knot, none per draw."""
        normals = standard_normals(n, self.dim, key, "draw")
        half = -(-n // 2) if self.dim > 1 else n  # on the line nothing is left to mirror
        rng = host_rng(key, "strata")
        u = (rng.permutation(half) + rng.random(half)) / half
        t = np.asarray(self.outer.inverse_cdf(np.concatenate([u, u])[:n]))
        noise = np.delete(normals, self.coordinate, axis=1)
        cell, weight = map(np.asarray, self._position(t, np))
        log_diagonal = self._log_diagonals(cell, weight)
        rest = self._mean(t, cell, np) + np.exp(log_diagonal) * noise
        # The root at t is linear between those at two knots: all draws of an interval are
        # multiplied by the same two matrices, and none has a matrix built for itself.
        for k in np.unique(cell):
            pick = cell == k
            rest[pick] += (1 - weight[pick])[:, None] * (noise[pick] @ self.lower[k].T)
            rest[pick] += weight[pick][:, None] * (noise[pick] @ self.lower[k + 1].T)
        z = np.insert(rest, self.coordinate, t, axis=1)
        return z, self._log_prob_of(t, noise, log_diagonal)

    def _log_diagonals(
        self, cell: Int[np.ndarray, "n"], weight: Float[np.ndarray, "n"]
    ) -> Float[np.ndarray, "n rest"]:
        """Log of the diagonal of C at places in intervals between knots."""
        low, high = self.log_diagonal[cell], self.log_diagonal[cell + 1]
        return np.asarray((1 - weight)[:, None] * low + weight[:, None] * high)

    def _log_prob_of(
        self,
        t: Float[np.ndarray, "n"],
        noise: Float[np.ndarray, "n rest"],
        log_diagonal: Float[np.ndarray, "n rest"],
    ) -> Float[np.ndarray, "n"]:
        """Log density of the draws that t and `noise` make."""
        normal = (
            -0.5 * np.sum(noise**2, axis=1)
            - 0.5 * (self.dim - 1) * np.log(2 * np.pi)
            - log_diagonal.sum(axis=1)
        )
        return np.asarray(self.outer.log_prob(t)) + normal
