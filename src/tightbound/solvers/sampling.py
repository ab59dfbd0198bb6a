"""What every sampler shares.

Several chains, a warm-up that is thrown away, draws kept in a buffer, and when to stop.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._types import Array, PyTree
from ..families.empirical import Empirical
from ..objectives.base import AbstractObjective
from ..results import PairingError, Result
from ..search.chain_statistics import ess_bulk, rhat
from .base import AbstractSolver, Info

RHAT = 1.01
"""Rank-normalised split R-hat below which chains are taken to agree (Vehtari et al.

2021, section 4).
"""
ESS_PER_CHAIN = 50
"""Effective draws per split chain that make R-hat itself reliable (Vehtari et al. 2021, section 4).

400 of four chains.
"""


class Moves(eqx.Module):
    """Where all C chains are after one sweep.

    Attributes:
        positions: `[C, d]`, in the coordinates that the target's `constrain` takes.
        statistics: of the sweep by name, each `[C]`; they become `Empirical.statistics`.
        evaluations: gradients of the log density used, of all chains together.
        change: root-mean-square move, in posterior sds where the sampler knows them.
    """

    positions: Array
    statistics: dict[str, Any]
    evaluations: Array | float
    change: Array | float


class SamplerState(eqx.Module):
    """Chains in progress.

    The sampler's own state, sweeps made, and the draws kept so far (zeros beyond them).
    """

    chains: PyTree
    count: Array
    draws: Array
    statistics: dict[str, Any]
    pending: Array  # evaluations spent before the first sweep
    usable: bool = eqx.field(static=True)


class AbstractSampler(AbstractSolver):
    """Draws from the posterior itself: a referee for approximations, slower than they are and right
    where it has mixed.

    Implementing a sampler: fields `chains`, `warmup`, `draws` (numbers), and the two methods below
    for ALL chains at once; what is the same for each of them goes under `jax.vmap`. The chains
    start from draws of the q that the fit is given (an earlier `fit.q`, say). The loop around them,
    the buffer, interruption, budget and the end are here.
    """

    chains: eqx.AbstractVar[int]
    warmup: eqx.AbstractVar[int]
    draws: eqx.AbstractVar[int]
    compiled: ClassVar[bool] = True

    @abc.abstractmethod
    def start(self, target: Any, q: Any, key: jax.Array) -> tuple[PyTree, int, bool]:
        """The chains' state before the first sweep, evaluations used, and whether every chain
        stands somewhere possible.
        """

    @abc.abstractmethod
    def sweep(
        self, target: Any, q: Any, chains: PyTree, count: jax.Array, key: jax.Array
    ) -> tuple[PyTree, Moves]:
        """One transition of every chain.

        Sweeps `count < warmup` are the warm-up, in which it may tune itself.
        """

    @abc.abstractmethod
    def supports(self, target: Any, q: Any) -> None:
        """Refuse a target or a q that it cannot draw from or start at (PairingError)."""

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        name = type(self).__name__
        if objective is not None:
            raise PairingError(
                f"{name} draws from the posterior itself and takes no objective, got"
                f" {type(objective).__name__}; leave it out."
            )
        for field, least in (("chains", 1), ("warmup", 0), ("draws", 4)):
            value = getattr(self, field)
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"{name}: `{field}` must be an integer of at least {least}, got {value!r}."
                )
        self.supports(target, q)

    def init(self, target: Any, q: Any, objective: Any, key: Any, tol: float) -> SamplerState:
        chains, used, usable = self.start(target, q, key)
        count = jnp.zeros((), jnp.int32)
        _, moves = eqx.filter_eval_shape(self.sweep, target, q, chains, count, key)
        buffers = {
            name: jnp.zeros((self.chains, self.draws), s.dtype)
            for name, s in moves.statistics.items()
        }
        draws = jnp.zeros(
            (self.chains, self.draws, moves.positions.shape[1]), moves.positions.dtype
        )
        return SamplerState(chains, count, draws, buffers, jnp.asarray(float(used)), usable)

    def step(
        self, target: Any, q: Any, objective: Any, state: SamplerState, key: Any
    ) -> tuple[Any, Any, SamplerState, Info]:
        def go_on(state):
            chains, moves = self.sweep(target, q, state.chains, state.count, key)
            slot = jnp.maximum(state.count - self.warmup, 0)  # the warm-up writes over itself
            draws = state.draws.at[:, slot].set(moves.positions)
            statistics = {
                name: state.statistics[name].at[:, slot].set(value)
                for name, value in moves.statistics.items()
            }
            used = state.pending + jnp.asarray(moves.evaluations, state.pending.dtype)
            new = SamplerState(
                chains,
                state.count + 1,
                draws,
                statistics,
                jnp.zeros_like(state.pending),
                state.usable,
            )
            return new, used, jnp.asarray(moves.change, draws.dtype)

        def rest(state):  # the last block of the loop may go on after the last draw
            return state, jnp.zeros_like(state.pending), jnp.zeros((), state.draws.dtype)

        state, used, change = jax.lax.cond(
            state.count < self.warmup + self.draws, go_on, rest, state
        )
        return target, q, state, Info(jnp.asarray(jnp.nan, change.dtype), change, used)

    def done(self, state: SamplerState) -> Result | None:
        if not state.usable:
            return Result.nonfinite
        if int(state.count) < self.warmup + self.draws:
            return None
        x = np.asarray(state.draws)
        agree = np.all(rhat(x) < RHAT) and np.all(ess_bulk(x) >= 2 * ESS_PER_CHAIN * self.chains)
        return Result.mixed if agree else Result.unmixed

    def finish(self, target: Any, q: Any, state: SamplerState) -> Any:
        """The draws so far, where there are enough of them to speak of.

        Else the q that the chains started from.
        """
        kept = int(state.count) - self.warmup
        if kept < 4:
            return q
        return Empirical(
            state.draws[:, :kept],
            {name: value[:, :kept] for name, value in state.statistics.items()},
        )


__all__ = ["ESS_PER_CHAIN", "RHAT", "AbstractSampler", "Moves", "SamplerState"]
