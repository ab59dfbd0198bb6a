"""The default transformation of the stochastic solver: Adam for a start that may be far away."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from .._types import PyTree

_MEMORY = 0.9  # of the exponential mean of signs: about the last ten gradients
_FIRST_RESTART = 64  # steps; then at every power of two
_AGREEMENT = 0.8  # of that mean: the last ten gradients or so all point one way
_FASTER, _SLOWER = 1.05, 0.5  # per step: at rate .05, n steps go 1.05^n - 1 sds, 1e4 in 190


def travelling_adam(learning_rate: float) -> optax.GradientTransformation:
    """Adam (b1 = .9, b2 = .999) that forgets and that strides.

    Near the posterior it is Adam. Far away Adam has two faults. Gradients there can be 1e6 times
    those near it, and Adam divides by their memory for thousands of steps after they are gone: this
    one starts afresh after 64, 128, 256, ... steps. And a distance of 1e4 sds takes 1e4 / rate
    steps: here each coordinate's rate grows by 5 % per step while its gradients agree in sign, and
    is halved (back to the plain rate) when they do not (Riedmiller & Braun 1993, Rprop). Gradient
    noise near the optimum never agrees for long.
    """
    adam = optax.adam(learning_rate)

    def init(params: PyTree) -> PyTree:
        signs = jax.tree.map(jnp.zeros_like, params)
        return (
            jnp.zeros((), jnp.int32),
            adam.init(params),
            signs,
            jax.tree.map(jnp.ones_like, params),
        )

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        count, inner, signs, strides = state
        # A number whose bits are one 1 is a power of two
        afresh = (count >= _FIRST_RESTART) & ((count & (count - 1)) == 0)
        inner = jax.tree.map(
            lambda new, old: jnp.where(afresh, new, old), adam.init(updates), inner
        )
        signs = jax.tree.map(lambda s, g: _MEMORY * s + 0.1 * jnp.sign(g), signs, updates)
        # A stride that made up for Adam's memory of large gradients would be a leap once that
        # memory is gone.
        strides = jax.tree.map(lambda r, s: jnp.where(afresh, 1.0, _stride(r, s)), strides, signs)
        updates, inner = adam.update(updates, inner, params)
        return jax.tree.map(jnp.multiply, updates, strides), (count + 1, inner, signs, strides)

    return optax.GradientTransformation(init, update)


def _stride(
    stride: Float[jax.Array, "*shape"], sign: Float[jax.Array, "*shape"]
) -> Float[jax.Array, "*shape"]:
    """Longer strides where the mean of signs agrees, else half of them, 1 at least."""
    return jnp.where(
        jnp.abs(sign) > _AGREEMENT, _FASTER * stride, jnp.maximum(_SLOWER * stride, 1.0)
    )


__all__ = ["travelling_adam"]
