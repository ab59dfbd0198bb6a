"""Gaussian heads in coordinates where minus the log density is convex.

In these coordinates it also stays well scaled as posteriors narrow.
"""

import math
from typing import ClassVar, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.linalg as jsl
import numpy as np
from jaxtyping import Float

from ..._types import Array, Validated
from ...families.head import AbstractHead

FLOOR = 0.02
"""Smallest diagonal of the precision's root: an sd of fifty prior sds.

Below it the loss goes on as a parabola.
"""

_LOG_2PI = math.log(2 * math.pi)

Structure: TypeAlias = Literal["mean", "diagonal", "full"]


class Gaussian(AbstractHead):
    """u ~ N(mu, (L L')^-1) with eta = (L' mu, L), L lower triangular with a positive diagonal.

        loss = |L' u - m|^2 / 2 - sum log L_ii + d/2 log 2 pi,   m = L' mu

    Convex in (m, L) jointly: the square of something linear, and minus logarithms. The natural
    parameters (L L' mu, -L L'/2) are convex too, but they grow as 1/sd^2 where these grow as 1/sd,
    and their domain is a cone of matrices where this one is d half-lines. In (mean, log sd) the
    loss is not convex away from the optimum. With the root fixed (`mean`) the natural parameter is
    m up to a constant.

    Not for several modes, or for a shape that is not elliptical: Mixture, Spline, Flow.

    Attributes:
        dim: d.
        structure: "full"; "diagonal", independent coordinates; "mean", independent with the given
            sds.
        sd: `[d]`, for "mean": the sds that are kept.
    """

    # A field in the place of a property: equinox allows it, pyright has no way to say so.
    dim: int = eqx.field(static=True)  # pyright: ignore[reportIncompatibleMethodOverride]
    structure: Validated[Structure, "__check_init__"] = eqx.field(static=True, default="full")
    sd: tuple[float, ...] | None = eqx.field(static=True, default=None)
    convex: ClassVar[bool] = True
    reparameterised: ClassVar[bool] = True

    def __check_init__(self):
        if self.structure not in ("mean", "diagonal", "full"):
            raise ValueError(
                "Gaussian head: `structure` must be 'mean', 'diagonal' or 'full', got"
                f" {self.structure!r}."
            )
        if self.dim < 1:
            raise ValueError(f"Gaussian head: `dim` must be at least 1, got {self.dim}.")
        if (self.structure == "mean") != (self.sd is not None):
            raise ValueError(
                "Gaussian head: give `sd`, the sds to keep, with structure='mean', and only there."
            )
        if self.sd is not None and (len(self.sd) != self.dim or min(self.sd) <= 0):
            raise ValueError(
                f"Gaussian head: `sd` must hold {self.dim} positive numbers, got {self.sd}."
            )

    @property
    def size(self) -> int:
        return {
            "mean": self.dim,
            "diagonal": 2 * self.dim,
            "full": self.dim + self.dim * (self.dim + 1) // 2,
        }[self.structure]

    def log_prob(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        m, diagonal, below = self._parts(eta)
        diagonal = jnp.maximum(diagonal, FLOOR)
        return (
            -0.5 * jnp.sum((self._times(diagonal, below, u) - m) ** 2)
            + jnp.sum(jnp.log(diagonal))
            - self._constant
        )

    def loss(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        m, diagonal, below = self._parts(eta)
        return (
            0.5 * jnp.sum((self._times(diagonal, below, u) - m) ** 2)
            + jnp.sum(barrier(diagonal))
            + self._constant
        )

    def sample(self, eta: Float[Array, "size"], key: jax.Array) -> Float[Array, "dim"]:
        m, diagonal, below = self._parts(eta)
        return self._solved(
            jnp.maximum(diagonal, FLOOR), below, m + jr.normal(key, (self.dim,), m.dtype)
        )

    def moments(self, eta: Float[Array, "size"]) -> tuple[Float[Array, "dim"], Float[Array, "dim"]]:
        m, diagonal, below = self._parts(eta)
        diagonal = jnp.maximum(diagonal, FLOOR)
        if below is None:
            return m / diagonal, 1 / diagonal
        root = jsl.solve_triangular(
            jnp.diag(diagonal) + below, jnp.eye(self.dim, dtype=m.dtype), lower=True
        ).T
        return root @ m, jnp.sqrt(jnp.sum(root**2, axis=1))

    def start(self) -> Float[np.ndarray, "size"]:
        return self._packed(np.zeros(self.dim), np.eye(self.dim))

    def linear_start(
        self,
        slope: Float[np.ndarray, "dim p"],
        mean: Float[np.ndarray, "dim"],
        cov: Float[np.ndarray, "dim dim"],
    ) -> tuple[Float[np.ndarray, "size p"], Float[np.ndarray, "size"]]:
        # The variances of a q without correlations are the marginal ones here, as a start should
        # rather be too wide.
        if self.structure != "full":
            cov = np.diag(np.diag(cov))
        root = (
            np.diag(1 / np.array(self.sd))
            if self.sd is not None
            else np.linalg.cholesky(np.linalg.inv(cov))
        )
        weight = np.zeros((self.size, slope.shape[1]))
        weight[: self.dim] = root.T @ slope
        return weight, self._packed(root.T @ mean, root)

    @property
    def _constant(self) -> float:
        return 0.5 * self.dim * _LOG_2PI

    def _packed(
        self, m: Float[np.ndarray, "dim"], root: Float[np.ndarray, "dim dim"]
    ) -> Float[np.ndarray, "size"]:
        """eta of m and L."""
        rest = {
            "mean": [],
            "diagonal": [np.diag(root)],
            "full": [np.diag(root), root[np.tril_indices(self.dim, -1)]],
        }
        return np.concatenate([m, *rest[self.structure]])

    def _parts(
        self, eta: Float[Array, "size"]
    ) -> tuple[Float[Array, "dim"], Float[Array, "dim"], Float[Array, "dim dim"] | None]:
        """m, the diagonal of L, and what lies below it (None where nothing does)."""
        d = self.dim
        if self.sd is not None:
            return eta, 1 / jnp.asarray(self.sd, eta.dtype), None
        if self.structure == "diagonal":
            return eta[:d], eta[d:], None
        rows, columns = np.tril_indices(d, -1)
        below = jnp.zeros((d, d), eta.dtype).at[rows, columns].set(eta[2 * d :]) if d > 1 else None
        return eta[:d], eta[d : 2 * d], below

    def _times(
        self,
        diagonal: Float[Array, "dim"],
        below: Float[Array, "dim dim"] | None,
        u: Float[Array, "dim"],
    ) -> Float[Array, "dim"]:
        """L' u."""
        return diagonal * u if below is None else diagonal * u + below.T @ u

    def _solved(
        self,
        diagonal: Float[Array, "dim"],
        below: Float[Array, "dim dim"] | None,
        v: Float[Array, "dim"],
    ) -> Float[Array, "dim"]:
        """L'^-1 v."""
        if below is None:
            return v / diagonal
        return jsl.solve_triangular(jnp.diag(diagonal) + below, v, trans=1, lower=True)


def barrier(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """-log x, continued below FLOOR by its parabola there.

    Convex, twice differentiable, finite everywhere.
    """
    # Both branches of `where` are differentiated, so that the logarithm must not see x below FLOOR.
    inside = jnp.maximum(x, FLOOR)
    t = (x - FLOOR) / FLOOR
    return jnp.where(x > FLOOR, -jnp.log(inside), -math.log(FLOOR) - t + 0.5 * t**2)


__all__ = ["FLOOR", "Gaussian", "barrier"]
