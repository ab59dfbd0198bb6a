"""Where the lanes of many data sets start: at local Gaussians along Newton searches, compiled.

As in `starts/paths.py` the mode may not exist, so that the iterates are kept: where the Gaussian at
the end of the path does not look like the posterior, an earlier one may.
"""

import math
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from .._types import Array, PyTree, Scalar
from .natural import LogDensity, RowDensity

# How the damping grows when a step is refused, and shrinks when it is taken.
_DAMPED, _RELAXED = 10.0, 0.1
_MOST_DAMPING = 1e10  # beyond it steps are below rounding: the search ends where it is
_AT_MODE = 0.01  # squared whitened gradient per dimension below which a point counts as a mode
_CURVED = 1e-2  # least curvature of a coordinate, as in `starts/paths.py`
_FLOOR = 1e-2  # least eigenvalue of the scaled curvature, likewise


class Walk(eqx.Module):
    """A damped Newton search: where it stands, and its path so far.

    Attributes:
        point: with its `value`, `gradient` and `precision` (the negative Hessian).
        damping: of the next step.
        path: the point after each try (again the same where it was refused), then the last one.
        tries: so far.
        done: whether it has ended.
    """

    point: Float[Array, "*lanes dim"]
    value: Float[Array, "*lanes"]
    gradient: Float[Array, "*lanes dim"]
    precision: Float[Array, "*lanes dim dim"]
    damping: Float[Array, "*lanes"]
    path: Float[Array, "*lanes most dim"]
    tries: Int[Array, "*lanes"]
    done: Bool[Array, "*lanes"]

    @staticmethod
    def start(points: Float[np.ndarray, "n dim"], most: int) -> "Walk":
        """Many searches from `points` that may make `most` tries, on the host.

        The first try evaluates the start.
        """
        n, dim = points.shape
        path, count = np.repeat(points[:, None, :], most, axis=1), np.zeros(n, np.int64)
        nothing = np.full(n, -np.inf), np.zeros((n, dim)), np.tile(np.eye(dim), (n, 1, 1))
        return Walk(points, *nothing, np.full(n, 1.0 / _RELAXED), path, count, np.zeros(n, bool))


def run_walks(log_density: RowDensity, walks: Walk, rows: PyTree, most: int) -> Walk:
    """All searches at once, until each has ended or made `most` more tries.

    `log_density(row, z)`, leading axes of lanes.
    """

    def one(row: PyTree, at: Walk) -> Walk:
        last = jnp.minimum(at.tries + most, len(at.path))
        return jax.lax.while_loop(
            lambda w: (w.tries < last) & ~w.done,
            lambda w: _tried(lambda z: log_density(row, z), w),
            at,
        )

    return jax.vmap(one)(rows, walks)


def _tried(log_density: LogDensity, at: Walk) -> Walk:
    """A step of Levenberg and Marquardt's method in the coordinates' own scales.

    Taken where the log density grows.
    """
    unit = _unit(at.precision)
    scaled = unit[:, None] * at.precision * unit[None, :]
    factor = jnp.linalg.cholesky(scaled + at.damping * jnp.eye(len(unit)))
    step = unit * jax.scipy.linalg.cho_solve((factor, True), unit * at.gradient)
    slope = at.gradient @ step  # NaN where the damped curvature is not positive
    value, gradient, precision = _expand(log_density, at.point + step)
    better = _finite(value, gradient, precision) & (value >= at.value + 1e-4 * slope)
    damping = at.damping * jnp.where(better, _RELAXED, _DAMPED)
    arrived = better & (at.damping < 0.1) & (slope < _AT_MODE * len(unit))
    done = arrived | (damping > _MOST_DAMPING)
    new = Walk(at.point + step, value, gradient, precision, damping, at.path, at.tries, done)
    stay = eqx.tree_at(lambda w: (w.damping, w.done), at, (damping, done))
    moved = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, stay)
    later = jnp.arange(len(at.path))[:, None] >= at.tries
    path = jnp.where(later, moved.point[None, :], at.path)
    return eqx.tree_at(lambda w: (w.path, w.tries), moved, (path, at.tries + 1))


Local: TypeAlias = tuple[
    Float[Array, "dim dim"],
    Float[Array, ""],
    Float[Array, ""],
    Float[Array, ""],
    Float[Array, ""],
]
"""(root, log |root|, ELBO, spread, pull), see `local_gaussian`."""


def local_gaussian(
    log_density: LogDensity,
    point: Float[Array, "dim"],
    scale: Scalar,
    design: Float[Array, "m dim"],
) -> Local:
    """N(point, scale^2 |Hessian|^-1), judged on antithetic draws from `design`.

    The spread is the sd of log p - log q over the draws in nats; the pull is the whitened gradient
    at the point (rms), small at a mode and only there. The ELBO is -inf where a draw has no finite
    density.
    """
    _, gradient, precision = _expand(log_density, point)
    unit = _unit(precision)
    eigenvalues, vectors = jnp.linalg.eigh(unit[:, None] * precision * unit[None, :])
    sds = scale / jnp.sqrt(jnp.maximum(jnp.abs(eigenvalues), _FLOOR))
    root = unit[:, None] * (vectors * sds[None, :])
    log_det = jnp.sum(jnp.log(unit)) + jnp.sum(jnp.log(sds))
    moves = design @ root.T
    values = jax.vmap(log_density)(
        jnp.concatenate([point[None, :] + moves, point[None, :] - moves])
    )
    half_squares = 0.5 * jnp.tile(jnp.sum(design**2, axis=1), 2)
    finite = jnp.all(jnp.isfinite(values)) & jnp.isfinite(log_det)
    entropy = log_det + 0.5 * len(unit) * (1.0 + math.log(2 * math.pi))
    elbo = jnp.where(finite, jnp.mean(values) + entropy, -jnp.inf)
    pull = jnp.sqrt(jnp.mean((root.T @ gradient) ** 2))
    return root, log_det, elbo, jnp.where(finite, jnp.std(values + half_squares), jnp.inf), pull


def _unit(precision: Float[Array, "dim dim"]) -> Float[Array, "dim"]:
    """The coordinates' own scales: 1 / sqrt of the diagonal's size."""
    return 1.0 / jnp.sqrt(jnp.maximum(jnp.abs(jnp.diagonal(precision)), _CURVED))


Expansion: TypeAlias = tuple[Float[Array, ""], Float[Array, "dim"], Float[Array, "dim dim"]]


def _expand(log_density: LogDensity, point: Float[Array, "dim"]) -> Expansion:
    """Value, gradient and negative Hessian."""

    def with_value(
        z: Float[Array, "dim"],
    ) -> tuple[Float[Array, "dim"], tuple[Float[Array, ""], Float[Array, "dim"]]]:
        value, gradient = jax.value_and_grad(log_density)(z)
        return gradient, (value, gradient)

    hessian, (value, gradient) = jax.jacfwd(with_value, has_aux=True)(point)
    return value, gradient, -0.5 * (hessian + hessian.T)


def _finite(
    value: Float[Array, ""], gradient: Float[Array, "dim"], precision: Float[Array, "dim dim"]
) -> Bool[Array, ""]:
    return jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient)) & jnp.all(jnp.isfinite(precision))
