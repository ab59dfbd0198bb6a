"""Hamiltonian Monte Carlo with trajectories of a given length."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Float

from .._types import PyTree
from ..search import blackjax_kernels
from ..search.blackjax_kernels import LogDensity, Transition
from ..search.chain_statistics import MixingLimits
from .whitened_sampler import AbstractHamiltonian


class HMC(AbstractHamiltonian):
    """Hamiltonian Monte Carlo: a cheap referee for nearly Gaussian posteriors.

    Trajectories have a given length. Whitened by q, one of length pi/2 takes a standard normal to
    an independent draw. Lengths vary by a factor uniform(1/2, 3/2), so that no periodic orbit traps
    a chain. Not where scales vary over the posterior (funnels): NUTS.

    Source: Neal 2011, section 5.3. By BlackJAX (extra `samplers`).

    Attributes:
        draws: kept per chain.
        warmup: sweeps before, thrown away.
        chains: number of chains, run together.
        length: of a trajectory, in posterior sds; it takes length / step size gradients, at most
            1,000.
        target_acceptance: that the step size is tuned for.
        limits: of R-hat and effective draws, by which the run ends as mixed or unmixed.
    """

    draws: int = eqx.field(default=1000, static=True)
    warmup: int = eqx.field(default=400, static=True)
    chains: int = eqx.field(default=4, static=True)
    length: float = eqx.field(default=math.pi / 2, static=True)
    target_acceptance: float = eqx.field(default=0.8, static=True)
    limits: MixingLimits = eqx.field(default=MixingLimits(), static=True)

    def _transition(
        self,
        log_density: LogDensity,
        state: PyTree,
        step_size: Float[jax.Array, ""],
        key: jax.Array,
    ) -> Transition:
        vary, move = jr.split(key)
        length = self.length * jr.uniform(vary, (), state.position.dtype, 0.5, 1.5)
        # At most 1,000: a step size that collapsed must not stop the run
        steps = jnp.clip(jnp.ceil(length / step_size), 1, 1000).astype(jnp.int32)
        return blackjax_kernels.hmc(log_density, state, step_size, move, steps)


__all__ = ["HMC"]
