"""The network of the convergence theorem, and the linearisation of any network around its start."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from ..._types import Array, PyTree
from ...families.encoder import AbstractEncoder, flatten


class WideReLU(AbstractEncoder):
    """f(x) = p^(-1/2) a relu(W x): two layers, scaled for the limit of infinite width.

    a starts at zero, W at N(0, 1). The network of the theorem, for experiments with the theory; an
    MLP trains better. With `bias` a constant 1 is appended to x. Without it relu(u) - relu(-u) = u
    makes the network linear in its odd part, and its kernel singular on antipodal points at any
    width: the theorem's condition of a positive definite kernel fails.

    Source: McNamara, Loper & Regier 2024, section 4, scaled ReLU networks.

    Attributes:
        inner: W.
        outer: a.
        bias: whether a constant 1 is appended to x.
    """

    inner: Float[Array, "width inputs"]
    outer: Float[Array, "size width"]
    bias: bool = eqx.field(static=True, default=True)

    @staticmethod
    def make(
        inputs: int,
        size: int,
        key: jax.Array,
        *,
        width: int = 1024,
        bias: bool = True,
        dtype: np.dtype | type = float,
    ) -> "WideReLU":
        """The start of the theorem at this width."""
        inner = jr.normal(key, (width, inputs + int(bias)), dtype)
        return WideReLU(inner, jnp.zeros((size, width), dtype), bias)

    def __call__(self, x: PyTree) -> Float[Array, "size"]:
        x = flatten(x)
        x = jnp.concatenate([x, jnp.ones((1,), x.dtype)]) if self.bias else x
        return self.outer @ jax.nn.relu(self.inner @ x) * (self.inner.shape[0] ** -0.5)


class Linearised(AbstractEncoder):
    """f_lin(x; phi) = f(x; phi_0) + J f(x; phi_0) (phi - phi_0).

    A network as linear in its weights as the theory has it. The twin of a network: trained with the
    same loss from the same start, it shows what the network would do if its kernel stood still.
    Make one with `Linearised.of(encoder)`.

    Attributes:
        start: the network at phi_0, which is not trained.
        now: the network's weights phi, which are.
    """

    start: AbstractEncoder
    now: AbstractEncoder

    @staticmethod
    def of(encoder: AbstractEncoder) -> "Linearised":
        """The linearisation around the weights that `encoder` has."""
        return Linearised(encoder, jax.tree.map(lambda leaf: leaf + np.zeros_like(leaf), encoder))

    def __call__(self, x: PyTree) -> Float[Array, "size"]:
        start, static = eqx.partition(self.start, eqx.is_inexact_array)
        start = jax.lax.stop_gradient(start)
        # The linear term in phi, as one directional derivative: no Jacobian is ever built.
        step = jax.tree.map(lambda a, b: a - b, eqx.filter(self.now, eqx.is_inexact_array), start)
        value, slope = jax.jvp(lambda weights: eqx.combine(weights, static)(x), (start,), (step,))
        return value + slope


__all__ = ["Linearised", "WideReLU"]
