"""An encoder: from one standardised data set x to a vector `[size]`."""

import abc
import itertools
from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy.typing as npt
from jaxtyping import Float, Num

from .._types import Array, PyTree

Layer = TypeVar("Layer", eqx.nn.Linear, eqx.nn.Conv, eqx.nn.Conv2d)


class AbstractEncoder(eqx.Module):
    """A network from one standardised data set to a vector.

    Implementing one: `__call__`, for one data set.

    Give its layers biases: without a constant input a ReLU network cannot tell x from -x but
    linearly, and the kernel that governs its training is singular (`amortised/tangent_kernel.py`).
    """

    @abc.abstractmethod
    def __call__(self, x: PyTree) -> Float[Array, "size"]:
        """The output for one x."""


def flatten(x: PyTree) -> Float[jax.Array, "inputs"]:
    """All numbers of a pytree of arrays in one vector."""
    return jnp.concatenate([jnp.reshape(leaf, (-1,)) for leaf in jax.tree.leaves(x)])


def the_array(x: PyTree, part: str) -> Num[Array, "..."]:
    """The one array that x consists of.

    Raises:
        ValueError: x holds several.
    """
    leaves = jax.tree.leaves(x)
    if len(leaves) != 1:
        raise ValueError(
            f"{part} takes x as one array, but `simulate` returns {len(leaves)}. Return one array,"
            " or use the encoder MLP, which flattens whatever it is given."
        )
    return leaves[0]


def scaled(layer: eqx.nn.Linear, factor: float) -> eqx.nn.Linear:
    """A linear layer with its weights multiplied and its bias at zero: a last layer, made small."""
    weight = layer.weight * jnp.asarray(factor, layer.weight.dtype)
    return _with_weight(layer, weight)


def he(layer: Layer) -> Layer:
    """A linear layer or convolution with weights of variance 2 / inputs, and its bias at zero.

    ReLU signals keep their size through it. Equinox draws weights from U(-1/sqrt(n), 1/sqrt(n)),
    through which they shrink by a factor of 2.4 per layer. Source: He et al. 2015, eq. 10.
    """
    # The variance of U(-a, a) is a^2 / 3.
    weight = layer.weight * jnp.asarray(6**0.5, layer.weight.dtype)
    return _with_weight(layer, weight)


def _with_weight(layer: Layer, weight: Float[jax.Array, "..."]) -> Layer:
    """The layer with another weight, and its bias at zero."""
    assert layer.bias is not None
    return eqx.tree_at(lambda n: (n.weight, n.bias), layer, (weight, 0 * layer.bias))


def stack(
    widths: list[int], key: jax.Array, dtype: npt.DTypeLike = float
) -> tuple[eqx.nn.Linear, ...]:
    """Linear layers from each width to the next."""
    pairs = list(itertools.pairwise(widths))
    return tuple(
        eqx.nn.Linear(*pair, dtype=dtype, key=jr.fold_in(key, i)) for i, pair in enumerate(pairs)
    )


def through(
    layers: tuple[eqx.nn.Linear, ...],
    h: Float[jax.Array, "inputs"],
    activation: Callable[[jax.Array], jax.Array],
) -> Float[jax.Array, "outputs"]:
    """The layers one after the other, the activation after each."""
    for layer in layers:
        h = activation(layer(h))
    return h


__all__ = ["AbstractEncoder", "flatten", "he", "scaled", "stack", "the_array", "through"]
