"""Small operations on members and on the named tuples that hold their parameters."""

import dataclasses
import math
from typing import TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._types import Array, PyTree

Event: TypeAlias = tuple[int, ...] | dict[str, tuple[int, ...]]
"""Shape of one value, or of each of its parts by name."""

Member = TypeVar("Member", bound=eqx.Module)
Tree = TypeVar("Tree")


def inner(eta: PyTree, statistics: PyTree) -> Float[Array, ""]:
    """<eta, t>: the sum of all products, matrices entry by entry.

    An eta of zero leaves out an infinite statistic.
    """
    pairs = zip(jax.tree.leaves(eta), jax.tree.leaves(statistics), strict=True)
    return sum((jnp.sum(jnp.where(a == 0, 0.0, a * b)) for a, b in pairs), jnp.zeros(()))


def rebuilt(q: Member, **fields: PyTree) -> Member:
    """`q` with other leaves, past its constructor, for numbers that are known to be in the domain.

    Compiled code cannot look at numbers, and on the host the look costs more than the step.
    """
    new = object.__new__(type(q))
    for field in dataclasses.fields(q):
        object.__setattr__(new, field.name, fields.get(field.name, getattr(q, field.name)))
    return new


def settled(tree: Tree) -> Tree:
    """NumPy arrays, whose float64 no JAX flag narrows; what is being traced is left alone."""

    def off(leaf: object) -> object:
        left = isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array)
        return leaf if left else np.asarray(leaf)

    return jax.tree.map(off, tree)


def shapes_of(event: Event) -> list[tuple[int, ...]]:
    """The shapes of the parts of a value, in the order of their names."""
    return [event[name] for name in sorted(event)] if isinstance(event, dict) else [event]


def size_of(event: Event) -> int:
    """How many numbers a value has."""
    return sum(map(math.prod, shapes_of(event)))


def symmetric(matrix: Float[Array, "d d"]) -> Float[jax.Array, "d d"]:
    """The mean of a matrix and its transpose."""
    return jnp.asarray(0.5 * (matrix + matrix.T))


__all__ = ["Event", "inner", "rebuilt", "settled", "shapes_of", "size_of", "symmetric"]
