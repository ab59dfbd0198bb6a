"""The default transformation of the stochastic solver.

Adam for a search whose start may be far away.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

_AGREEMENT = 0.8  # of an exponential mean of signs: the last ten gradients or so all point one way
_FASTER, _SLOWER = 1.05, 0.5


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

    def init(params: Any) -> Any:
        signs = jax.tree.map(jnp.zeros_like, params)
        return (
            jnp.zeros((), jnp.int32),
            adam.init(params),
            signs,
            jax.tree.map(jnp.ones_like, params),
        )

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        count, inner, signs, strides = state
        afresh = (count >= 64) & ((count & (count - 1)) == 0)
        inner = jax.tree.map(
            lambda new, old: jnp.where(afresh, new, old), adam.init(updates), inner
        )
        signs = jax.tree.map(lambda s, g: 0.9 * s + 0.1 * jnp.sign(g), signs, updates)
        # A stride that made up for Adam's memory of large gradients would be a leap once that
        # memory is gone.
        strides = jax.tree.map(lambda r, s: jnp.where(afresh, 1.0, _stride(r, s)), strides, signs)
        updates, inner = adam.update(updates, inner, params)
        return jax.tree.map(jnp.multiply, updates, strides), (count + 1, inner, signs, strides)

    return optax.GradientTransformation(init, update)


def _stride(stride: jax.Array, sign: jax.Array) -> jax.Array:
    return jnp.where(
        jnp.abs(sign) > _AGREEMENT, _FASTER * stride, jnp.maximum(_SLOWER * stride, 1.0)
    )


__all__ = ["travelling_adam"]
