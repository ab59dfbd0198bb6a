"""Families of finite support as independent parts, each with its list of points.

What Enumerate and Relaxed ask for.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..families.exponential.discrete import Bernoulli, Categorical
from ..families.exponential.product import Product


class Coordinates(eqx.Module):
    """`m` independent parts of a draw with the same points, in the order in which they stand in the
    draw.

    Attributes:
        points: `[s, e]`, the s values that a part can take, each e numbers of the draw (one, or s
            for a one-hot vector).
        log_probs: `[m, s]`, normalised, differentiable in q's leaves.
        labels: whether the points are mere names, with nothing in between that a relaxed draw could
            be.
    """

    points: jax.Array
    log_probs: jax.Array
    labels: bool = eqx.field(default=False, static=True)


@functools.singledispatch
def coordinates(q: Any) -> tuple[Coordinates, ...]:
    """The parts of q, in order; empty for a family that has none registered here.

    A family adds its own with `coordinates.register`; together the parts make up a draw.
    """
    return ()


@coordinates.register
def _(q: Bernoulli) -> tuple[Coordinates, ...]:
    logits = jnp.ravel(q.logits)
    log_probs = jnp.stack([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], axis=1)
    return (Coordinates(jnp.array([[0.0], [1.0]], q.dtype), log_probs),)


@coordinates.register
def _(q: Categorical) -> tuple[Coordinates, ...]:
    count = np.shape(q.logits)[-1]
    log_probs = jax.nn.log_softmax(jnp.reshape(q.logits, (-1, count)), axis=1)
    return (Coordinates(jnp.arange(count, dtype=q.dtype)[:, None], log_probs, labels=True),)


@coordinates.register
def _(q: Product) -> tuple[Coordinates, ...]:
    parts = [coordinates(factor) for factor in q.factors.values()]
    return tuple(part for factor in parts for part in factor) if all(parts) else ()


__all__ = ["Coordinates", "coordinates"]
