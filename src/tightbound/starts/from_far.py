"""A start that climbs the ELBO from far out, instead of the density.

A path up the density of a centred hierarchical model ends where a scale collapses to zero: the
density grows without bound there, and q is drawn into a false optimum tens of nats below the true
one. The entropy of a q that is as wide as the search region keeps it out, and steps that double
while they climb bring it home in some thirty steps.
"""

from typing import Any

import numpy as np

from .._numerics import host_rng
from ..estimators.fixed_design import moment_matched
from ..families.gaussian import Gaussian
from ..objectives.classic import ELBO
from ..solvers.natural import NaturalGradient
from ..targets.batched import batched
from .paths import LocalGaussian, with_elbo

_STEPS = 40
# up to 100 dimensions sds of 3 (at 1 a collapsed optimum attracts half of the starts), above it 1:
_WIDE = (100, 3.0, 1.0)
# the farther out, the more steps, and the design grows with the dimension
_TOL = 0.1  # posterior sds: a start, not an answer


def broad_start(target: Any, key: Any, steps: int = _STEPS) -> LocalGaussian | None:
    """The Gaussian that natural gradients reach from far out on one small design, converged or not.

    Its ELBO on another.

    None where the density is finite on no Gaussian around the origin, however small. Cost: twice
    the design (the dimension, or 32) in gradients for each of at most `steps` steps.
    """
    solver, objective, q = NaturalGradient(max_doublings=0), ELBO(), Gaussian.full(target.dim)
    few, wide, narrow = _WIDE
    q = q.moved(np.zeros(target.dim), np.full(target.dim, wide if target.dim <= few else narrow))
    with np.errstate(all="ignore"):
        state = solver.init(target, q, objective, key, _TOL)
        for _ in range(steps):
            if solver.done(state) is not None:
                break
            _, q, state, _ = solver.step(target, q, objective, state, key)
    fresh = moment_matched(host_rng(key, "broad start"), max(target.dim, 32), target.dim)
    found = with_elbo(batched(target), state.mean[None], [state.root], fresh, (1.0,))
    return found[0] if found else None


__all__ = ["broad_start"]
