"""Expectations of a function that is affine in a factor's statistics, from its values at anchors.

Anchors are a few fixed points z_j. Where f(z) = <a, t(z)> + b, any weights with sum_j w_j = 1 and
sum_j w_j t(z_j) = m give E f = sum_j w_j f(z_j). The weights are affine in m, so an expectation
over several factors, one set of weights for each, is multi-affine in their moments: it is the
expected log joint, from evaluations of the log joint alone.
"""

from collections.abc import Callable
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._types import Array, PyTree
from ...families.exponential.base import AbstractExponentialFamily
from ...families.exponential.gamma import Gamma, InverseGamma
from ...families.exponential.normal import MultivariateNormal, Normal
from ...families.exponential.simplex import Beta, Dirichlet

FamilyClass: TypeAlias = Callable[..., AbstractExponentialFamily]
"""A class of families, as a maker of members from its standard parameters."""

# Spread of anchors on a log scale: closer ones cancel digits, wider ones overflow
_LEAST, _MOST = 0.3, 1.5
# Coordinates beyond which no multivariate normal is tried: it has d (d + 3) / 2 + 1 anchors, and
# each term is tabulated at all of them
_MOST_COORDINATES = 60


class Anchors(eqx.Module):
    """J points for each of P members of a factor, J - 1 the number of its independent statistics.

    Attributes:
        points: values of the site, with the axes of plate and event behind.
        inverse: weights are inverse @ (1, statistics).
    """

    points: Float[Array, "J *value"]
    inverse: Float[Array, "P J J"]

    def weights(self, statistics: PyTree) -> Float[jax.Array, "J P"]:
        """w of members with the given statistics (or moments)."""
        return jnp.einsum("pij,pj->ip", self.inverse, features(statistics, self.inverse.shape[0]))


def features(statistics: PyTree, members: int) -> Float[jax.Array, "P J"]:
    """(1, t) of each member; of a matrix its upper triangle."""
    columns = [jnp.ones((members, 1))]
    for name, leaf in zip(statistics._fields, statistics, strict=True):
        if name == "outer":
            rows, cols = np.triu_indices(leaf.shape[-1])
            columns.append(leaf.reshape((members, *leaf.shape[-2:]))[:, rows, cols])
        else:
            columns.append(leaf.reshape((members, -1)))
    return jnp.concatenate(columns, axis=1)


def anchors_around(q: AbstractExponentialFamily) -> Anchors:
    """Anchors where q has its mass; call inside `x64()`."""
    points = jnp.asarray(_POINTS[type(q).__name__](q))
    members = int(np.prod(q.plate, dtype=int))

    def of_point(value):
        return features(q.each(lambda member, v: member._statistics(v), value), members)

    table = jax.vmap(of_point)(points)  # [J, P, J]
    return Anchors(points, jnp.linalg.inv(jnp.moveaxis(table, 1, 0).swapaxes(-1, -2)))


def _of_normal(q: Normal) -> Float[np.ndarray, "J *value"]:
    sd = 1.0 / np.sqrt(np.asarray(q.precision))
    return np.stack([np.asarray(q.mean) + 1.5 * step * sd for step in (-1.0, 0.0, 1.0)])


def _of_vector(q: MultivariateNormal) -> Float[np.ndarray, "J *value"]:
    """mean + root u for u in 0, e_i, -e_i, e_i + e_j: they determine a quadratic."""
    dim = np.shape(q.mean)[-1]
    unit = np.eye(dim)
    pairs = [unit[i] + unit[j] for i in range(dim) for j in range(i + 1, dim)]
    steps = np.stack([np.zeros(dim), *unit, *(-unit), *pairs])
    root = np.linalg.cholesky(np.linalg.inv(np.asarray(q.precision)))
    return np.asarray(q.mean) + np.moveaxis(np.einsum("...ij,sj->...si", root, steps), -2, 0)


def _of_positive(
    centre: Float[Array, "*plate"],
    spread: Float[Array, "*plate"],
) -> Float[np.ndarray, "J *plate"]:
    spread = np.clip(spread, _LEAST, _MOST)
    return np.stack([centre * np.exp(step * spread) for step in (-1.0, 0.0, 1.0)])


def _of_beta(q: Beta) -> Float[np.ndarray, "J *value"]:
    a, b = np.asarray(q.a), np.asarray(q.b)
    log_odds = np.log(a) - np.log(b)
    spread = np.clip(1.0 / np.sqrt(a) + 1.0 / np.sqrt(b), _LEAST, _MOST)
    return np.stack([1.0 / (1.0 + np.exp(-log_odds - step * spread)) for step in (-1.0, 0.0, 1.0)])


def _of_dirichlet(q: Dirichlet) -> Float[np.ndarray, "J *value"]:
    concentration = np.asarray(q.concentration)
    log_mean = np.log(concentration / concentration.sum(axis=-1, keepdims=True))
    steps = np.concatenate([np.zeros((1, log_mean.shape[-1])), np.eye(log_mean.shape[-1])])
    raw = np.exp(np.stack([log_mean + step for step in steps]))
    return raw / raw.sum(axis=-1, keepdims=True)


# By the name of the class: `features` needs as many points as the family has statistics, plus one
_POINTS: dict[str, Callable[..., np.ndarray]] = {
    "Normal": _of_normal,
    "MultivariateNormal": _of_vector,
    "Gamma": lambda q: _of_positive(
        np.asarray(q.shape) / np.asarray(q.rate), 1.0 / np.sqrt(np.asarray(q.shape))
    ),
    "InverseGamma": lambda q: _of_positive(
        np.asarray(q.scale) / np.asarray(q.shape), 1.0 / np.sqrt(np.asarray(q.shape))
    ),
    "Beta": _of_beta,
    "Dirichlet": _of_dirichlet,
}

CANDIDATES: dict[str, tuple[FamilyClass, ...]] = {
    "'real'": (Normal, MultivariateNormal),
    "'positive'": (Gamma, InverseGamma),
    "'unit_interval'": (Beta,),
    "'simplex'": (Dirichlet,),
}
"""By support: the families that are tried for a site, in this order."""


def first_member(family: FamilyClass, shape: tuple[int, ...]) -> AbstractExponentialFamily | None:
    """A member for a site of `shape`, around the origin of the unconstrained scale.

    None where the family does not serve this shape.
    """
    if family is MultivariateNormal:
        if not shape or shape[-1] > _MOST_COORDINATES:
            return None
        return MultivariateNormal(
            np.zeros(shape), np.broadcast_to(np.eye(shape[-1]), (*shape, shape[-1])).copy()
        )
    if family is Normal:
        return Normal(np.zeros(shape), 1.0)
    if family is Dirichlet:
        return Dirichlet(np.full(shape, 2.0))
    return family(np.full(shape, 2.0), 2.0)


__all__ = ["CANDIDATES", "Anchors", "anchors_around", "first_member"]
