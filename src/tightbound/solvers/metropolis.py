"""Random-walk Metropolis-Hastings."""

import math

import equinox as eqx
import jax
from jaxtyping import Float

from .._types import PyTree
from ..search import blackjax_kernels
from ..search.blackjax_kernels import LogDensity, Transition
from ..search.chain_statistics import MixingLimits
from .whitened_sampler import AbstractWhitenedSampler


class Metropolis(AbstractWhitenedSampler):
    """Random-walk Metropolis-Hastings: needs values of the log density only, and many of them.

    Proposals N(u, step^2 I) in whitened coordinates; about 10 d sweeps make one effective draw, so
    not above some twenty dimensions. Where the gradient is cheap NUTS is better in everything.

    Source: Metropolis et al. 1953; Roberts, Gelman & Gilks 1997 (the acceptance rate of 0.234). By
    BlackJAX (extra `samplers`).

    Attributes:
        draws: kept per chain.
        warmup: sweeps before, thrown away.
        chains: number of chains, run together.
        target_acceptance: that the step size is tuned for.
        limits: of R-hat and effective draws, by which the run ends as mixed or unmixed.
    """

    draws: int = eqx.field(default=10_000, static=True)
    warmup: int = eqx.field(default=2_000, static=True)
    chains: int = eqx.field(default=4, static=True)
    target_acceptance: float = eqx.field(default=0.234, static=True)
    limits: MixingLimits = eqx.field(default=MixingLimits(), static=True)

    def _begin(self, log_density: LogDensity, u: Float[jax.Array, "dim"]) -> PyTree:
        return blackjax_kernels.random_walk_state(log_density, u)

    def _transition(
        self,
        log_density: LogDensity,
        state: PyTree,
        step_size: Float[jax.Array, ""],
        key: jax.Array,
    ) -> Transition:
        return blackjax_kernels.random_walk(log_density, state, step_size, key)

    def _first_step_size(self, dim: int) -> float:
        return 2.38 / math.sqrt(dim)  # the best for a standard normal (Roberts et al. 1997)


__all__ = ["Metropolis"]
