"""Rung 0 of contaminated data: annealed kernels find the basin, quadrature or a design polishes."""

from typing import cast

import numpy as np

from ..._numerics import host_rng
from ..._types import Key
from ...account import Budget
from ...estimators.base import AbstractEstimator
from ...estimators.fixed_design import FixedDesign
from ...estimators.gauss_hermite import GaussHermite
from ...families.gaussian import Gaussian
from ...loop import run
from ...objectives.classic import ELBO
from ...search.modes import modes, starts_at_modes
from ...solvers.natural import NaturalGradient
from ...starts.annealed import anneal
from ...starts.mixture_at_modes import mixture_at_modes
from ...starts.paths import LocalGaussian
from ...starts.reweighted import anneal_reweighted
from ...targets.sites import Contaminated, Kernels, Reweighted
from .. import policy
from ..attempt import Beginning


def contaminated(target: Contaminated, key: Key, starts: int | None) -> Beginning:
    """The annealed Gaussian, polished.

    Where it is as wide as a kernel, or the posterior has several modes, each mode is polished as
    well, and the moments of all of them together; the best ELBO is where the fit begins. The ladder
    compares it with a mixture over the modes.
    """
    starts = policy.STARTS if starts is None else starts
    kernels, annealed = target.kernels(), anneal(target)
    found = modes(kernels)
    if len(found) == 1 and _width(kernels, annealed) < policy.NARROW:
        return Beginning(annealed, NaturalGradient(_polisher(target.dim, 0.0)))
    at_modes = starts_at_modes(kernels, found)
    tried = [annealed, *at_modes[:-1][:starts], at_modes[-1]]
    solver = NaturalGradient(_polisher(target.dim, max(_width(kernels, q) for q in tried)))
    ends = sorted((_polished(target, q, solver, key) for q in tried), key=lambda end: -end.elbo)
    ends = [end for end in ends if np.isfinite(end.elbo)] or [_local(annealed, -np.inf)]
    mixture = mixture_at_modes(target, kernels, found, host_rng(key, "mixture at modes"))
    best = Gaussian.from_root(ends[0].mean, ends[0].root)
    return Beginning(best, solver, tuple(ends[1:]), rival=mixture)


def regression(target: Reweighted, key: Key, starts: int | None) -> Beginning:
    """Regression with outliers: annealed reweighted least squares."""
    return Beginning(anneal_reweighted(target), NaturalGradient())


def _polisher(dim: int, width: float) -> AbstractEstimator:
    """The estimator of a contaminated posterior's moments.

    Quadrature in one and two dimensions, a design above.

    `width`: of the widest q, in variances of a kernel.
    """
    if dim not in policy.MOST_NODES:
        return FixedDesign()
    nodes = policy.NODES_AT_LEAST + policy.NODES_PER_WIDTH * np.sqrt(width)
    return GaussHermite(int(np.clip(nodes, policy.LEAST_NODES, policy.MOST_NODES[dim])))


def _polished(
    target: Contaminated, q: Gaussian, solver: NaturalGradient, key: Key
) -> LocalGaussian:
    """The end of a short run from q, with its ELBO: -inf where the run failed."""
    ran = run(
        target,
        q,
        ELBO(),
        solver,
        key=key,
        tol=policy.ROUGH_TOL,
        budget=Budget(),
        max_steps=policy.ROUGH_STEPS,
    )
    usable = ran.result.usable and ran.steps
    # A solver of Gaussians returns one.
    return _local(cast(Gaussian, ran.q), -float(ran.trace.loss[-1]) if usable else -np.inf)


def _local(q: Gaussian, elbo: float) -> LocalGaussian:
    return LocalGaussian(np.asarray(q.mean), np.asarray(q.root), elbo, 0.0)


def _width(kernels: Kernels, q: Gaussian) -> float:
    """The largest variance of q in units of the median kernel's."""
    white = np.linalg.solve(kernels.root, np.asarray(q.root))
    return float(np.linalg.svd(white, compute_uv=False)[0] ** 2 / kernels.median_scale)
