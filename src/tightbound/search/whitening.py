"""Coordinates in which a posterior is near a standard normal: from q, refined by chains."""

from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._types import Array
from ..families.base import MOMENT_DRAWS, AbstractFamily
from ..families.gaussian import Gaussian

_MOST_DENSE = 500  # dimensions up to which correlations are whitened, not only scales
_DRAWS_PER_DIMENSION = 10  # for correlations
_SHRINK = 5.0  # per dimension: draws that the present whitening is worth when a new one is learnt
_LEAST_VARIANCE = 1e-6  # of a whitened coordinate, against chains that hardly moved
_JITTER = 1e-9  # keeps a covariance of few draws positive definite in floating point


class Whitening(eqx.Module):
    """z = centre + root u, and the sums of positions u from which the next one is learnt.

    Attributes:
        centre: where u is zero.
        root: `[dim, dim]`, or `[dim]` where only scales are whitened.
        seen: positions so far.
        total: their sum.
        squares: the sum of their outer products, or of their squares: the shape of `root`.
    """

    centre: Float[jax.Array, "dim"]
    root: Float[jax.Array, "dim dim"] | Float[jax.Array, "dim"]
    seen: Float[jax.Array, ""]
    total: Float[jax.Array, "dim"]
    squares: Float[jax.Array, "dim dim"] | Float[jax.Array, "dim"]

    @staticmethod
    def of(
        centre: Float[Array, "dim"], root: Float[Array, "dim dim"] | Float[Array, "dim"]
    ) -> "Whitening":
        """The whitening with this centre and root, on the device, that has seen nothing."""
        zeros = jnp.zeros_like(jnp.asarray(root))
        return Whitening(
            jnp.asarray(centre), jnp.asarray(root), jnp.zeros(()), jnp.zeros(len(centre)), zeros
        )

    def unwhiten(self, u: Float[jax.Array, "dim"]) -> Float[jax.Array, "dim"]:
        """centre + root u."""
        return self.centre + (self.root * u if self.root.ndim == 1 else self.root @ u)

    def whiten(self, z: Float[jax.Array, "n dim"]) -> Float[jax.Array, "n dim"]:
        """The inverse of `unwhiten`, for many points."""
        moved = z - self.centre[None, :]
        if self.root.ndim == 1:
            return moved / self.root[None, :]
        return jnp.linalg.solve(self.root, moved.T).T

    def having_seen(self, u: Float[jax.Array, "chains dim"]) -> "Whitening":
        """The sums with the positions of all chains added."""
        squares = u.T @ u if self.root.ndim == 2 else jnp.sum(u**2, axis=0)
        return Whitening(
            self.centre,
            self.root,
            self.seen + len(u),
            self.total + u.sum(axis=0),
            self.squares + squares,
        )

    def forgetful(self) -> "Whitening":
        """The same coordinates, with nothing seen."""
        return eqx.tree_at(lambda w: (w.seen, w.total, w.squares), self, replace_fn=jnp.zeros_like)

    def relearnt(self) -> "Whitening":
        """Centre and root from what was seen, shrunk towards the present ones."""
        mean, second = self.total / self.seen, self.squares / self.seen
        dim = mean.shape[0]
        trust = self.seen / (self.seen + _SHRINK * (dim if self.root.ndim == 2 else 1.0))
        if self.root.ndim == 1:
            variance = trust * (second - mean**2) + (1.0 - trust)
            root = self.root * jnp.sqrt(jnp.maximum(variance, _LEAST_VARIANCE))
        else:
            # Variances are taken as seen, correlations are shrunk: there are dim^2 / 2 of them.
            covariance = second - mean[:, None] * mean[None, :]
            blend = trust * covariance + (1.0 - trust) * jnp.diag(
                jnp.maximum(jnp.diag(covariance), _LEAST_VARIANCE)
            )
            jitter = _JITTER * jnp.eye(dim, dtype=blend.dtype)
            root = self.root @ jnp.linalg.cholesky(blend + jitter)
            root = jnp.where(jnp.all(jnp.isfinite(root)), root, self.root)
        return Whitening(
            self.unwhiten(mean),
            root,
            jnp.zeros_like(self.seen),
            jnp.zeros_like(mean),
            jnp.zeros_like(self.squares),
        )


def whitening_of(
    q: AbstractFamily,
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"] | Float[np.ndarray, "dim"]]:
    """Centre and root of q: a Gaussian's own, else those of draws.

    In many dimensions the root is `[dim]`: scales only.
    """
    if q.dim <= _MOST_DENSE and q.covariance_structure != "none":
        gaussian = cast(Gaussian, q)  # no other family stores a covariance
        return np.asarray(gaussian.mean), np.asarray(gaussian.root)
    z, _ = q.draw(max(MOMENT_DRAWS, _DRAWS_PER_DIMENSION * min(q.dim, _MOST_DENSE)), 0)
    centre, sd = z.mean(axis=0), np.maximum(z.std(axis=0), 1e-300)
    if q.dim > _MOST_DENSE:
        return centre, sd
    u = (z - centre) / sd
    trust = len(z) / (len(z) + _SHRINK * q.dim)
    correlation = trust * (u.T @ u / len(u)) + (1.0 - trust) * np.eye(q.dim)
    return centre, sd[:, None] * np.linalg.cholesky(correlation)


def whitened(
    points: Float[np.ndarray, "n dim"],
    centre: Float[np.ndarray, "dim"],
    root: Float[np.ndarray, "dim dim"] | Float[np.ndarray, "dim"],
) -> Float[np.ndarray, "n dim"]:
    """`Whitening.whiten` in NumPy: nothing to compile."""
    moved = points - centre
    return moved / root if root.ndim == 1 else np.linalg.solve(root, moved.T).T


__all__ = ["Whitening", "whitened", "whitening_of"]
