"""What every sampler shares: chains, a warm-up that is thrown away, a buffer, and when to stop."""

import abc
from collections.abc import Mapping
from typing import ClassVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from .._types import Array, Key, PyTree, Scalar
from ..families.base import AbstractFamily
from ..families.empirical import Empirical
from ..objectives.base import AbstractObjective
from ..results import Result
from ..search.chain_statistics import MixingLimits
from ..targets.base import AbstractTarget
from .base import AbstractSolver, Info, check_no_objective

_LEAST_DRAWS = 4  # of a chain: two halves of two draws, the least that R-hat takes


class Moves(eqx.Module):
    """Where all chains are after one sweep.

    Attributes:
        positions: in the coordinates that the target's `constrain` takes.
        statistics: of the sweep by name, one number for each chain; they become
            `Empirical.statistics`.
        evaluations: gradients of the log density used, of all chains together.
        change: root-mean-square move, in posterior sds where the sampler knows them.
    """

    positions: Float[Array, "chains dim"]
    statistics: Mapping[str, Shaped[Array, "chains"]]
    evaluations: Scalar
    change: Scalar


class SamplerState(eqx.Module):
    """Chains in progress.

    Attributes:
        chains: the sampler's own state.
        count: sweeps made.
        draws: those kept so far, zeros beyond them.
        statistics: of the draws, by name.
        pending: evaluations spent before the first sweep.
        usable: whether every chain began somewhere possible.
    """

    chains: PyTree
    count: Int[jax.Array, ""]
    draws: Float[jax.Array, "chains draws dim"]
    statistics: dict[str, Shaped[jax.Array, "chains draws"]]
    pending: Float[jax.Array, ""]
    usable: bool = eqx.field(static=True)


class AbstractSampler(AbstractSolver):
    """Draws from the posterior itself: a referee for approximations.

    Sampling is slower than they are, and right where the chains have mixed.

    Implementing a sampler: fields `chains`, `warmup`, `draws` (numbers) and `limits` (when the run
    counts as mixed; `MixingLimits()` unless told), and the methods below for ALL chains at once;
    what is the same for each of them goes under `jax.vmap`. The chains start from draws of the q
    that the fit is given (an earlier `fit.q`, say). The loop around them, the buffer, interruption,
    budget and the end are here.
    """

    chains: eqx.AbstractVar[int]
    warmup: eqx.AbstractVar[int]
    draws: eqx.AbstractVar[int]
    limits: eqx.AbstractVar[MixingLimits]
    compiled: ClassVar[bool] = True

    @abc.abstractmethod
    def start(
        self, target: AbstractTarget, q: AbstractFamily, key: jax.Array
    ) -> tuple[PyTree, int, bool]:
        """The chains' state before the first sweep, and what it took.

        Returns:
            The state, evaluations used, and whether every chain stands somewhere possible.
        """

    @abc.abstractmethod
    def sweep(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        chains: PyTree,
        count: Int[jax.Array, ""],
        key: jax.Array,
    ) -> tuple[PyTree, Moves]:
        """One transition of every chain.

        Sweeps `count < warmup` are the warm-up, in which it may tune itself.
        """

    @abc.abstractmethod
    def supports(self, target: AbstractTarget, q: AbstractFamily) -> None:
        """Refuse a target or a q that it cannot draw from or start at (PairingError)."""

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        name = type(self).__name__
        check_no_objective(self, objective, "draws from the posterior itself")
        numbers = (
            ("chains", self.chains, 1),
            ("warmup", self.warmup, 0),
            ("draws", self.draws, _LEAST_DRAWS),
        )
        for field, value, least in numbers:
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"{name}: `{field}` must be an integer of at least {least}, got {value!r}."
                )
        self.supports(target, q)

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> SamplerState:
        key = cast(jax.Array, key)  # which the loop makes of what the user passed
        chains, used, usable = self.start(target, q, key)
        count = jnp.zeros((), jnp.int32)
        # The names and types of the statistics are the sampler's own; tracing one sweep tells them.
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
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: SamplerState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, SamplerState, Info]:
        key = cast(jax.Array, key)  # which the loop makes of what the user passed

        def go_on(state: SamplerState) -> tuple[SamplerState, jax.Array, jax.Array]:
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

        def rest(state: SamplerState) -> tuple[SamplerState, jax.Array, jax.Array]:
            # The last block of the loop may go on after the last draw
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
        return Result.mixed if self.limits.met(np.asarray(state.draws)) else Result.unmixed

    def finish(
        self, target: AbstractTarget, q: AbstractFamily, state: SamplerState
    ) -> AbstractFamily:
        """The draws so far; where they are too few to judge, the q that the chains started from."""
        kept = int(state.count) - self.warmup
        if kept < _LEAST_DRAWS:
            return q
        return Empirical(
            state.draws[:, :kept],
            {name: value[:, :kept] for name, value in state.statistics.items()},
        )


__all__ = ["AbstractSampler", "Moves", "SamplerState"]
