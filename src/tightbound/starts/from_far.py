"""A start that climbs the ELBO from far out, instead of the density.

A path up the density of a centred hierarchical model ends where a scale collapses to zero: the
density grows without bound there, and q is drawn into a false optimum tens of nats below the true
one. The entropy of a q that is as wide as the search region keeps it out, and steps that double
while they climb bring it home in some thirty steps.
"""

import numpy as np
from jaxtyping import Float

from .._numerics import host_rng
from .._types import Array, Key
from ..estimators.base import Moments
from ..estimators.fixed_design import FixedDesign, moment_matched
from ..families.gaussian import Gaussian
from ..search.natural_rule import FULL
from ..search.natural_search import begun, whole_step
from ..targets.base import Density
from ..targets.batched import batched
from .paths import LocalGaussian, with_elbo

_STEPS = 40
_MANY = 100  # dimensions
# At sds of 1 a collapsed optimum attracts half of the starts; but the farther out, the more steps,
# and the design grows with the dimension: above _MANY dimensions sds of 1 must do.
_WIDE, _NARROW = 3.0, 1.0
_TOL = 0.1  # posterior sds: a start, not an answer


def broad_start(target: Density, key: Key, steps: int = _STEPS) -> LocalGaussian | None:
    """The Gaussian that natural gradients reach from far out, converged or not.

    Found on one small design; its ELBO is that of another. None where the density is finite on no
    Gaussian around the origin, however small. Cost: twice the design (the dimension, or 32) in
    gradients for each of at most `steps` steps.
    """
    estimator, dim = FixedDesign(), target.dim
    q = Gaussian.full(dim).moved(np.zeros(dim), np.full(dim, _WIDE if dim <= _MANY else _NARROW))
    design, root = estimator.prepare(target, q, key), np.array(q.root, dtype=np.float64)

    def moments_at(mean: Float[Array, "dim"], root: Float[Array, "dim dim"]) -> Moments:
        return estimator.moments(target, np.asarray(mean), np.asarray(root), design)

    search = begun(np.zeros(dim), root, np.linalg.slogdet(root)[1])
    with np.errstate(all="ignore"):
        for _ in range(steps + 1):  # its start is one of them
            search, _ = whole_step(search, moments_at, FULL, _TOL)
    fresh = moment_matched(host_rng(key, "broad start"), max(dim, 32), dim)
    found = with_elbo(
        batched(target), np.asarray(search.mean)[None], [np.asarray(search.root)], fresh, (1.0,)
    )
    return found[0] if found else None


__all__ = ["broad_start"]
