"""Expectations under the joint distribution of parameters and data: draws of the model itself."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Bool, Float

from .._numerics import as_key
from .._types import Array, Key, PyTree, Validated
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective, Draws, Source
from ..objectives.forward_kl import ForwardKL
from ..results import PairingError
from ..targets.base import AbstractTarget, Simulator, require
from .base import AbstractEstimator

# A tenth of stored simulations is held out, in these bounds: enough to see overfitting, and no more
# than tells it well.
_HELD_OUT_SHARE = 10
_LEAST_HELD_OUT, _MOST_HELD_OUT = 20, 2000


class Simulations(eqx.Module):
    """What stays fixed over a run: simulations kept for training, and those held out.

    Attributes:
        train_z: parameters to train on; None where simulations are made on the fly.
        train_x: their data, with a leading axis n.
        held_z: parameters held out.
        held_x: their data, with a leading axis.
    """

    train_z: Float[Array, "n dim"] | None
    train_x: PyTree
    held_z: Float[Array, "held dim"]
    held_x: PyTree


class FromModel(AbstractEstimator[Simulator]):
    """`n` draws (z, x) of the model per step, for expected forward KL.

    They are fresh ones unless simulations are stored. Draws with NaN or infinity in z or x are left
    out, which is right for any data without them. A tenth of given simulations (20 to 2,000 of
    them) is held out, and never trained on.

    Attributes:
        n: draws per step.
        stored: number of simulations made once and used again and again, for a simulator that is
            slow; None makes fresh ones at each step, which cannot be overfitted. What
            `tb.from_simulations` was given is always stored.
        held_out: fresh simulations held out, where they are made on the fly.
    """

    n: int = eqx.field(default=128, static=True)
    stored: int | None = eqx.field(default=None, static=True)
    held_out: int = eqx.field(default=1024, static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = (ForwardKL,)
    draws_from: ClassVar[Source] = Source.joint

    def __check_init__(self):
        for name, least in (("n", 1), ("held_out", 100), ("stored", 200)):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least
            ):
                raise ValueError(
                    f"FromModel: `{name}` must be an integer of at least {least}, got {value!r}."
                )

    def check(
        self,
        target: Validated[AbstractTarget, "require"],
        q: AbstractFamily,
        objective: AbstractObjective | None,
    ) -> None:
        simulator = require(self, target, Simulator)
        if objective is not None and objective.drawn_from is not self.draws_from:
            raise PairingError(
                f"{type(objective).__name__} is an expectation under {objective.drawn_from.value},"
                f" but FromModel draws from {self.draws_from.value}; use ForwardKL, or condition on"
                " data first: tb.fit(target.at(x), fit.q.at(x), ...)."
            )
        if not q.conditional:
            raise PairingError(
                f"FromModel draws data as well as parameters, but {type(q).__name__} does not"
                " depend on data; use tb.amortised.amortised(target), or leave `q` out."
            )
        if q.dim != simulator.dim:
            raise PairingError(f"`q` has {q.dim} dimensions, but the target has {simulator.dim}.")

    def prepare(self, target: Simulator, q: AbstractFamily | None, key: Key) -> Simulations:
        held_key, train_key = jr.split(as_key(key))
        if target.num_simulations is not None:
            # In a random order, since those that are given may stand in an order of their own.
            order = jr.permutation(train_key, target.num_simulations)
            share = target.num_simulations // _HELD_OUT_SHARE
            held = int(np.clip(share, _LEAST_HELD_OUT, _MOST_HELD_OUT))
            return Simulations(*target.take(order[held:]), *target.take(order[:held]))
        held_z, held_x = _finite_only(*_made(target, held_key, self.held_out))
        train = None, None
        if self.stored is not None:
            train = _finite_only(*_made(target, train_key, self.stored))
        return Simulations(*train, held_z, held_x)

    def surrogate(
        self,
        objective: AbstractObjective,
        target: Simulator,
        q: AbstractFamily,
        state: Simulations,
        key: jax.Array,
    ) -> tuple[Float[Array, ""], Simulations]:
        z, x = self.batch(target, state, key, q.dtype)
        log_q = jnp.asarray(jax.vmap(q._log_prob_to_train)(jnp.asarray(z), x))
        return objective.loss(Draws(None, log_q)), state

    def batch(
        self,
        target: Simulator,
        state: Simulations,
        key: jax.Array,
        dtype: np.dtype | type[np.floating],
    ) -> tuple[Float[Array, "n dim"], PyTree]:
        """`n` finite draws: z, and x with a leading axis n."""
        if state.train_z is None:
            return _cast(valid_only(*draws(target, key, self.n)), dtype)
        index = jr.randint(key, (self.n,), 0, state.train_z.shape[0])
        return _cast(
            (state.train_z[index], jax.tree.map(lambda leaf: leaf[index], state.train_x)), dtype
        )

    def evaluations_per_step(self, target: Simulator) -> float:
        return 0.0  # gradients of a log density: there is none


def draws(target: Simulator, key: jax.Array, n: int) -> tuple[Float[Array, "n dim"], PyTree]:
    """`n` draws of the model, finite or not: z, and x with a leading axis n.

    The user's code promotes as it likes.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.vmap(target.draw)(jr.split(key, n))


_made = eqx.filter_jit(draws)  # one program; op by op the compiler would be called dozens of times


def is_valid(z: Float[Array, "n dim"], x: PyTree) -> Bool[jax.Array, "n"]:
    """Which draws are finite."""
    leaves = [z, *jax.tree.leaves(x)]
    return jnp.all(
        jnp.stack(
            [jnp.all(jnp.isfinite(leaf.reshape((z.shape[0], -1))), axis=1) for leaf in leaves]
        ),
        axis=0,
    )


def valid_only(z: Float[Array, "n dim"], x: PyTree) -> tuple[Float[Array, "n dim"], PyTree]:
    """The same number of draws, those that are not finite replaced by finite ones in turn."""
    valid = is_valid(z, x)
    # Stable shapes for the compiler: the finite draws first, then again from the first of them.
    order = jnp.argsort(~valid)
    index = order[jnp.mod(jnp.arange(z.shape[0]), jnp.maximum(jnp.sum(valid), 1))]
    return z[index], jax.tree.map(lambda leaf: leaf[index], x)


def _finite_only(
    z: Float[Array, "n dim"], x: PyTree
) -> tuple[Float[np.ndarray, "valid dim"], PyTree]:
    valid = np.asarray(is_valid(z, x))
    return np.asarray(z)[valid], jax.tree.map(lambda leaf: np.asarray(leaf)[valid], x)


def _cast(tree: PyTree, dtype: np.dtype | type[np.floating]) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


__all__ = ["FromModel", "Simulations", "draws", "is_valid", "valid_only"]
