"""A Gaussian whose mean and covariance depend on two coordinates, such as two log scales.

The two have a density that is bilinear between the nodes of a regular lattice: its mass is known
exactly, and so are its draws.
"""

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
from .base import HOST_NUMBERS, AbstractFamily, on_one_thread, standard_normals

_TINY = 1e-300  # of a density, in the place of zero: far below any that matters, above underflow


class Bilinear(eqx.Module):
    """f(y) at the nodes origin + step (i, j) of a lattice, bilinear in between, zero outside.

    Normalised at construction. All methods take an `xp` module (numpy or jax.numpy).

    Attributes:
        origin: the first node.
        step: of the lattice, the same in both directions.
        density: f at the nodes.
    """

    origin: Float[Array, "2"]
    step: Float[Array, ""]
    density: Float[Array, "rows columns"]

    @classmethod
    def through(
        cls,
        origin: Float[np.ndarray, "2"],
        step: Scalar,
        log_values: Float[np.ndarray, "rows columns"],
    ) -> "Bilinear":
        """Normalise exp(log_values) over the rectangle."""
        raw = cls(
            np.asarray(origin, np.float64),
            np.asarray(step, np.float64),
            np.exp(log_values - np.max(log_values)),
        )
        return cls(raw.origin, raw.step, raw.density / np.sum(raw._masses(np)))

    def log_prob(self, y: Float[Array, "*batch 2"], xp: ModuleType = np) -> Float[Array, "*batch"]:
        """Log density, -inf outside the rectangle."""
        cell, place = self.locate(y, xp)
        inside = xp.all((place >= 0.0) & (place <= 1.0), axis=-1)
        return xp.where(
            inside,
            xp.log(xp.maximum(interpolate(self.density, cell, xp.clip(place, 0.0, 1.0)), _TINY)),
            -np.inf,
        )

    def inverse_cdf(
        self, u: Float[Array, "*batch 3"], xp: ModuleType = np
    ) -> Float[Array, "*batch 2"]:
        """A draw from three uniforms: the first picks a cell, the others the place in it.

        In closed form: a marginal that is linear along the first side, then a conditional that is
        linear along the second.
        """
        total = xp.cumsum(self._masses(xp).reshape(-1))
        index = xp.clip(
            xp.searchsorted(total, u[..., 0] * total[-1], side="right"), 0, len(total) - 1
        )
        row, column = index // (self.density.shape[1] - 1), index % (self.density.shape[1] - 1)
        low, high = self.density[row, column], self.density[row + 1, column]
        low_next, high_next = self.density[row, column + 1], self.density[row + 1, column + 1]
        first = _linear_quantile(low + low_next, high + high_next, u[..., 1], xp)
        second = _linear_quantile(
            (1 - first) * low + first * high,
            (1 - first) * low_next + first * high_next,
            u[..., 2],
            xp,
        )
        corner = xp.stack([row, column], axis=-1).astype(self.density.dtype)
        return self.origin + self.step * (corner + xp.stack([first, second], axis=-1))

    def locate(
        self, y: Float[Array, "*batch 2"], xp: ModuleType = np
    ) -> tuple[Int[Array, "*batch 2"], Float[Array, "*batch 2"]]:
        """The cell of each point, the nearest one for points outside, and the place in it.

        The place is in [0, 1] for points inside the rectangle.
        """
        return locate(y, self.origin, self.step, self.density.shape, xp)

    def _masses(self, xp: ModuleType) -> Float[Array, "cell_rows cell_columns"]:
        """Mass of each cell: its area times the mean of its corners."""
        f = self.density
        return 0.25 * self.step**2 * (f[1:, 1:] + f[:-1, 1:] + f[1:, :-1] + f[:-1, :-1])


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
    def log_prob_on_host(self, z: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n"]:
        y = np.linalg.solve(self.axes, (z[:, self.coordinates] - self.centre).T).T
        log_q = np.empty(len(z))
        for part in self._blocks(len(z)):
            mean, lower, log_diagonal = self._conditional(y[part], np)
            root = lower + np.exp(log_diagonal)[:, :, None] * np.eye(self.dim - 2)
            noise = np.linalg.solve(root, (z[part][:, self.rest] - mean)[..., None])[..., 0]
            log_q[part] = self._log_of(y[part], noise, log_diagonal, np)
        return log_q

    @on_one_thread
    def draw(self, n: int, key: Key) -> tuple[Float[np.ndarray, "n dim"], Float[np.ndarray, "n"]]:
        """Stratified over the cells of the outer density, antithetic in the rest."""
        noise = standard_normals(n, self.dim, key, "draw")[:, : self.dim - 2]
        # In the plane nothing is left to mirror
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
        rows = max(1, HOST_NUMBERS // self.dim**2)
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


def locate(
    y: Float[Array, "*batch 2"],
    origin: Float[Array, "2"],
    step: Float[Array, ""],
    shape: tuple[int, ...],
    xp: ModuleType,
) -> tuple[Int[Array, "*batch 2"], Float[Array, "*batch 2"]]:
    """Cell and place of points on the lattice of `shape` nodes (further axes do not matter)."""
    at = (y - origin) / step
    corner = xp.clip(xp.floor(at), 0.0, np.array([shape[0] - 2.0, shape[1] - 2.0]))
    return corner.astype(int), at - corner


def interpolate(
    values: Float[Array, "rows columns *value"],
    cell: Int[Array, "*batch 2"],
    place: Float[Array, "*batch 2"],
) -> Float[Array, "..."]:
    """Bilinear interpolation at the places in the cells, `[*batch, *value]`."""
    trailing = (...,) + (None,) * (values.ndim - 2)
    i, j, s, t = cell[..., 0], cell[..., 1], place[..., 0][trailing], place[..., 1][trailing]
    left = (1 - t) * values[i, j] + t * values[i, j + 1]
    right = (1 - t) * values[i + 1, j] + t * values[i + 1, j + 1]
    return (1 - s) * left + s * right


def _linear_quantile(
    start: Float[Array, "*batch"],
    end: Float[Array, "*batch"],
    u: Float[Array, "*batch"],
    xp: ModuleType,
) -> Float[Array, "*batch"]:
    """Inverse distribution function on [0, 1] of a density that is linear from `start` to `end`."""
    # The root of a quadratic equation in the form that does not cancel where the slope is small.
    root = xp.sqrt(start**2 + (end**2 - start**2) * u)
    return xp.clip(u * (start + end) / xp.maximum(start + root, _TINY), 0.0, 1.0)


__all__ = ["Bilinear", "NestedGaussianPair"]
