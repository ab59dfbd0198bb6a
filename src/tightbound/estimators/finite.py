"""Families of finite support as independent parts: what Enumerate and Relaxed ask for."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._types import Array
from ..families.base import AbstractFamily
from ..families.exponential.discrete import Bernoulli, Categorical
from ..families.exponential.product import Product


class Coordinates(eqx.Module):
    """Independent parts of a draw with the same points, in the order in which they stand there.

    Attributes:
        points: the values that a part can take, each some `numbers` of the draw (one, or as many as
            there are values for a one-hot vector).
        log_probs: normalised, differentiable in q's leaves.
        labels: whether the points are mere names, with nothing in between that a relaxed draw could
            be.
    """

    points: Float[Array, "values numbers"]
    log_probs: Float[Array, "parts values"]
    labels: bool = eqx.field(default=False, static=True)


@functools.singledispatch
def coordinates(q: AbstractFamily) -> tuple[Coordinates, ...]:
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
