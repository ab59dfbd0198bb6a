"""What samplers with a step size share: coordinates whitened by q, and a warm-up that learns."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float, Int

from .._types import PyTree
from ..families.base import AbstractFamily
from ..search.blackjax_kernels import (
    LogDensity,
    Transition,
    averaging_begun,
    averaging_updated,
    hamiltonian_state,
    load_blackjax,
)
from ..search.whitening import Whitening, whitened, whitening_of
from ..targets.base import AbstractTarget, Density, require
from ..targets.batched import batched
from .sampling import AbstractSampler, Moves

_CANDIDATES = 16  # draws of q per chain among which a start of finite density is looked for
# Of the warm-up: the whitening is learnt in the two windows between these, and the step size alone
# before (chains still travel) and after (it must fit the last whitening)
_WINDOWS = (0.15, 0.4, 0.8)


class Tuning(eqx.Module):
    """What the warm-up learns, shared by all chains.

    Attributes:
        whitening: the coordinates in which the kernel moves.
        averaging: dual averaging of the log step size.
    """

    whitening: Whitening
    averaging: PyTree


class AbstractWhitenedSampler(AbstractSampler):
    """A kernel with a step size, on log p(centre + root u).

    Centre and root come from q and are refined while warming up.

    Implementing one: `_begin` and `_transition` for one chain in whitened coordinates, and the step
    size to begin with.
    """

    target_acceptance: eqx.AbstractVar[float]
    gradients_at_start: ClassVar[int] = 1

    @abc.abstractmethod
    def _begin(self, log_density: LogDensity, u: Float[jax.Array, "dim"]) -> PyTree:
        """The kernel's state at a position."""

    @abc.abstractmethod
    def _transition(
        self,
        log_density: LogDensity,
        state: PyTree,
        step_size: Float[jax.Array, ""],
        key: jax.Array,
    ) -> Transition:
        """One transition."""

    @abc.abstractmethod
    def _first_step_size(self, dim: int) -> float:
        """In posterior sds, for a standard normal of `dim` dimensions."""

    def supports(self, target: AbstractTarget, q: AbstractFamily) -> None:
        require(self, target, Density)
        load_blackjax()

    def start(
        self, target: AbstractTarget, q: AbstractFamily, key: jax.Array
    ) -> tuple[PyTree, int, bool]:
        density, q = require(self, target, Density), q.on_host()
        centre, root = whitening_of(q)
        candidates, _ = q.draw(_CANDIDATES * self.chains, key)
        values, scores = batched(density)(candidates)
        good = np.isfinite(values) & np.all(np.isfinite(scores), axis=1)
        # In the order drawn, those of finite density first
        chosen = candidates[np.argsort(~good, kind="stable")[: self.chains]]
        white = whitened(chosen, centre, root)
        tuning = Tuning(Whitening.of(centre, root), self._averaging(q.dim, root.dtype))
        states = _begin_all(self, density, tuning.whitening, jnp.asarray(white))
        return (
            (states, tuning),
            len(candidates) + self.chains * self.gradients_at_start,
            bool(good.sum() >= self.chains),
        )

    def sweep(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        chains: PyTree,
        count: Int[jax.Array, ""],
        key: jax.Array,
    ) -> tuple[PyTree, Moves]:
        states, tuning = chains
        density = require(self, target, Density)
        log_density = _in_white(density, tuning.whitening)
        warming = count < self.warmup
        averaging = tuning.averaging
        step_size = jnp.exp(
            jnp.where(warming, averaging.log_step_size, averaging.log_step_size_avg)
        )

        def one(state: PyTree, key: jax.Array) -> Transition:
            return self._transition(log_density, state, step_size, key)

        new = jax.vmap(one)(states, jr.split(key, self.chains))
        positions = jax.vmap(tuning.whitening.unwhiten)(new.position)
        change = jnp.sqrt(jnp.mean((new.position - states.position) ** 2))
        statistics = {
            "lp": new.log_density,
            "acceptance_rate": new.acceptance,
            "diverging": new.diverging,
        }
        moves = Moves(positions, statistics, jnp.sum(new.evaluations), change)

        def tune(chains: tuple[PyTree, Tuning]) -> tuple[PyTree, Tuning]:
            states, tuning = chains
            acceptance = jnp.mean(new.acceptance)
            return self._tuned(density, states, tuning, new.position, acceptance, count)

        return jax.lax.cond(warming, tune, lambda chains: chains, (new.state, tuning)), moves

    def _tuned(
        self,
        target: Density,
        states: PyTree,
        tuning: Tuning,
        u: Float[jax.Array, "chains dim"],
        acceptance: Float[jax.Array, ""],
        count: Int[jax.Array, ""],
    ) -> tuple[PyTree, Tuning]:
        """The step size after one more acceptance.

        At the end of a window the whitening too, with the chains moved over.
        """
        averaging = averaging_updated(tuning.averaging, acceptance, self.target_acceptance)
        tuning = Tuning(tuning.whitening.having_seen(u), averaging)
        opens, middle, last = (int(share * self.warmup) for share in _WINDOWS)

        def refresh(chains: tuple[PyTree, Tuning]) -> tuple[PyTree, Tuning]:
            states, tuning = chains
            old, fresh = tuning.whitening, tuning.whitening.relearnt()
            u = fresh.whiten(jax.vmap(old.unwhiten)(states.position))
            # A step size that fitted the old coordinates says nothing about the new ones.
            averaging = self._averaging(u.shape[1], u.dtype)
            averaging = jax.tree.map(
                lambda new, old: jnp.asarray(new, old.dtype), averaging, tuning.averaging
            )
            return _begin_in(self, target, fresh, u), Tuning(fresh, averaging)

        def forget(chains: tuple[PyTree, Tuning]) -> tuple[PyTree, Tuning]:
            states, tuning = chains
            return states, Tuning(tuning.whitening.forgetful(), tuning.averaging)

        seen = tuning.whitening.seen
        ends = ((count + 1 == middle) | (count + 1 == last)) & (seen > self.chains)
        states, tuning = jax.lax.cond(ends, refresh, lambda chains: chains, (states, tuning))
        return jax.lax.cond(count + 1 == opens, forget, lambda chains: chains, (states, tuning))

    def _averaging(self, dim: int, dtype: np.dtype) -> PyTree:
        """Dual averaging at its beginning, all in `dtype`: a scan keeps types as they are."""
        first = jnp.asarray(self._first_step_size(dim))
        averaging = averaging_begun(first, self.target_acceptance)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), averaging)


class AbstractHamiltonian(AbstractWhitenedSampler):
    """What samplers share that move along the gradient of the log density."""

    def _begin(self, log_density: LogDensity, u: Float[jax.Array, "dim"]) -> PyTree:
        return hamiltonian_state(log_density, u)

    def _first_step_size(self, dim: int) -> float:
        # dim^-1/4 keeps the acceptance the same in all dimensions (Beskos et al. 2013)
        return 1.0 / dim**0.25


def _in_white(target: Density, whitening: Whitening) -> LogDensity:
    """log p(centre + root u), with -inf where it is not a number: such a proposal is rejected."""

    def log_density(u: Float[jax.Array, "dim"]) -> Float[jax.Array, ""]:
        value = target.log_density(whitening.unwhiten(u))
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    return log_density


def _begin_in(
    sampler: AbstractWhitenedSampler,
    target: Density,
    whitening: Whitening,
    u: Float[jax.Array, "chains dim"],
) -> PyTree:
    """The kernel's states of all chains at these positions."""
    log_density = _in_white(target, whitening)
    return jax.vmap(lambda point: sampler._begin(log_density, point))(u)


_begin_all = eqx.filter_jit(_begin_in)


__all__ = ["AbstractHamiltonian", "AbstractWhitenedSampler", "Tuning"]
