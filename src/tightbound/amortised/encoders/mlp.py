"""The plain network for x of a fixed length, beside a linear map that can start at a regression."""

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Float

from ..._types import Array, PyTree
from ...families.encoder import AbstractEncoder, flatten, scaled, stack, through


class MLP(AbstractEncoder):
    """W x + b plus a network with one activation (SiLU) per hidden layer.

    x is flattened, whatever its structure. For x of a fixed length up to some thousand numbers. Not
    for sets, whose order says nothing (DeepSets, SetTransformer), or images (ConvNet). The linear
    map lets training start at the answer of a linear Gaussian model.

    Attributes:
        layers: hidden layers.
        last: from the last hidden layer to the output.
        linear: W and b.
    """

    layers: tuple[eqx.nn.Linear, ...]
    last: eqx.nn.Linear
    linear: eqx.nn.Linear

    @staticmethod
    def make(
        inputs: int,
        size: int,
        key: jax.Array,
        *,
        width: int = 64,
        depth: int = 2,
        dtype: np.dtype | type = float,
    ) -> "MLP":
        """A random start from `inputs` numbers to `size`, whose output is about zero."""
        hidden, last, linear = jr.split(key, 3)
        layers = stack([inputs] + [width] * depth, hidden, dtype)
        # The last layer is small and the linear map zero, so that what comes out is about zero.
        return MLP(
            layers,
            scaled(eqx.nn.Linear(width if depth else inputs, size, dtype=dtype, key=last), 0.1),
            scaled(eqx.nn.Linear(inputs, size, dtype=dtype, key=linear), 0.0),
        )

    def starting_at(
        self, weight: Float[np.ndarray, "size inputs"], bias: Float[np.ndarray, "size"]
    ) -> "MLP":
        """The same network with its linear map at W = `weight`, b = `bias`."""
        new = (
            np.asarray(weight, self.linear.weight.dtype),
            np.asarray(bias, self.linear.weight.dtype),
        )
        return eqx.tree_at(lambda n: (n.linear.weight, n.linear.bias), self, new)

    def __call__(self, x: PyTree) -> Float[Array, "size"]:
        x = flatten(x)
        return self.linear(x) + self.last(through(self.layers, x, jax.nn.silu))


__all__ = ["MLP"]
