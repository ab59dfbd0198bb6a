"""Training many networks side by side with a published schedule, and looking at them on the way."""

from collections.abc import Callable
from typing import TypeAlias, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Float

from .._types import PyTree, Scalar

Network = TypeVar("Network", bound=eqx.Module)
Schedule: TypeAlias = Callable[[jax.Array], Float[jax.Array, ""]]
"""The step size at a step, as optax asks for it."""


def harmonic(first: float, every: int) -> Schedule:
    """The rate `first` held for `every` steps, then first / 2k with k = 1, 2, ...

    Source: the public code of McNamara, Loper & Regier 2024.
    """
    return lambda n: first / jnp.maximum(1, 2 * (n // every)).astype(jnp.float32)


def train(
    loss: Callable[[Network, PyTree, jax.Array], Scalar],
    networks: list[Network],
    data: PyTree,
    key: jax.Array,
    *,
    rate: Schedule,
    steps: int,
    looks: int = 1,
    look: Callable[[list[Network], int], None] | None = None,
) -> list[Network]:
    """Adam on `loss(network, data_r, key)` for each network r, in one program.

    Returns the trained networks.

    Arguments:
        loss: of one network, at its own data and a fresh key.
        networks: of one structure, from their own starts.
        data: a pytree whose leaves have a leading axis, one entry for each network.
        key: of all randomness.
        rate: of the steps.
        steps: of Adam.
        looks: how many times `look` is called, evenly spread, at the end for the last time.
        look: `look(networks, steps so far)`.
    """
    parts = [eqx.partition(network, eqx.is_inexact_array) for network in networks]
    static = parts[0][1]  # the networks are of one structure: any of them has it
    weights = jax.tree.map(
        lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *(p[0] for p in parts)
    )
    # optax says that a schedule takes any number; it calls it with the count of steps, an array
    adam = optax.adam(cast(optax.Schedule, rate))
    state = jax.vmap(adam.init)(weights)
    block = max(1, steps // looks)

    def one(weights, state, data, key):
        gradient = jax.grad(lambda w: loss(eqx.combine(w, static), data, key))(weights)
        updates, state = adam.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    @jax.jit
    def advance(weights, state, first):
        def body(carry, n):
            # Folded with the number of the step, so that looking more often changes no draw
            keys = jr.split(jr.fold_in(key, n), len(networks))
            weights, state = carry
            return jax.vmap(one)(weights, state, data, keys), None

        return jax.lax.scan(body, (weights, state), first + jnp.arange(block))[0]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for i in range(looks):
            weights, state = advance(weights, state, i * block)
            if look is not None:
                look(_apart(weights, static, len(networks)), (i + 1) * block)
    return _apart(weights, static, len(networks))


def _apart(weights: Network, static: Network, count: int) -> list[Network]:
    """The networks one by one, on the host, of the weights with a leading axis."""
    host = jax.tree.map(np.asarray, weights)
    return [
        eqx.combine(jax.tree.map(lambda leaf, i=i: leaf[i], host), static) for i in range(count)
    ]


__all__ = ["Network", "Schedule", "harmonic", "train"]
