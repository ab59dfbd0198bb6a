"""The No-U-Turn sampler."""

import equinox as eqx
import jax
from jaxtyping import Float

from .._types import PyTree
from ..search import blackjax_kernels
from ..search.blackjax_kernels import LogDensity, Transition
from ..search.chain_statistics import MixingLimits
from .whitened_sampler import AbstractHamiltonian


class NUTS(AbstractHamiltonian):
    """The No-U-Turn sampler, multinomial form: the referee for posteriors with gradients.

    Chains start from draws of q, in coordinates whitened by it: after `fit = tb.fit(target)`,
    `tb.fit(target, fit.q, solver=tb.solvers.NUTS())` needs no long warm-up; without a q it starts
    from the default's local Gaussian. `fit.q` is then an `Empirical`; the certificate has R-hat,
    effective sample sizes and divergences. Not for separated modes (each chain stays in one, which
    the certificate's searches may or may not notice), nor where one gradient takes seconds.

    Source: Hoffman & Gelman 2014, algorithm 6; Betancourt 2017, appendix A. By BlackJAX (extra
    `samplers`).

    Attributes:
        draws: kept per chain.
        warmup: sweeps before, thrown away: step size by dual averaging, whitening refined twice.
        chains: number of chains, run together.
        target_acceptance: that the step size is tuned for; raise it where transitions diverge.
        max_doublings: of a trajectory, which has at most 2^max_doublings steps.
        limits: of R-hat and effective draws, by which the run ends as mixed or unmixed.
    """

    draws: int = eqx.field(default=1000, static=True)
    warmup: int = eqx.field(default=400, static=True)
    chains: int = eqx.field(default=4, static=True)
    target_acceptance: float = eqx.field(default=0.8, static=True)
    max_doublings: int = eqx.field(default=10, static=True)
    limits: MixingLimits = eqx.field(default=MixingLimits(), static=True)

    def _transition(
        self,
        log_density: LogDensity,
        state: PyTree,
        step_size: Float[jax.Array, ""],
        key: jax.Array,
    ) -> Transition:
        return blackjax_kernels.nuts(log_density, state, step_size, key, self.max_doublings)


__all__ = ["NUTS"]
