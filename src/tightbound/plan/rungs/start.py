"""Rung 0 of an ordinary target: the Gaussian that the climb begins with, and the solver for it."""

import functools

import numpy as np

from ..._numerics import host_rng
from ..._types import Key
from ...account import Best
from ...families.base import MOMENT_DRAWS, AbstractFamily
from ...families.gaussian import Gaussian
from ...solvers.base import AbstractSolver
from ...solvers.fixed_draws import FixedDraws
from ...solvers.natural import NaturalGradient
from ...solvers.stochastic import StochasticGradient
from ...solvers.subsampled import Subsampled
from ...starts.many_dimensions import find_start_large
from ...starts.paths import (
    LocalGaussian,
    broad_start,
    dispersed_points,
    explain_no_start,
    find_start,
    sets_of_points,
)
from ...targets.base import Density, Rows
from ...targets.batched import batched
from .. import policy
from ..attempt import Beginning


def gaussian(target: Density, key: Key, starts: int | None) -> Beginning:
    """A full-rank Gaussian at the best of several starts; low rank above some hundred dimensions.

    Raises:
        TargetError: the density is finite at no start; it names the parameter where one decides.
    """
    starts = policy.STARTS if starts is None else starts
    if target.dim > policy.FULL_RANK_UP_TO:
        return Beginning(_low_rank(target, key, starts), FixedDraws())
    found = starts_of(target, key, starts)
    q = Gaussian.from_root(found[0].mean, found[0].root)
    return Beginning(q, NaturalGradient(), tuple(found[1:]))


def many_rows(target: Rows, key: Key, starts: int | None) -> Beginning:
    """A fit to a sample of the rows, where gradients of all rows are what the time goes into.

    It is corrected by a few gradients of all rows.
    """
    if target.num_rows < policy.MANY_ROWS or target.dim > policy.FULL_RANK_UP_TO:
        return gaussian(target, key, starts)
    return Beginning(Gaussian.full(target.dim), Subsampled())


def cut_short(target: Density, best: Best | None) -> Beginning:
    """What a start that was interrupted leaves: unit sds around the best point that it saw."""
    mean = np.zeros(target.dim) if best is None else best.point
    if target.dim > policy.FULL_RANK_UP_TO:
        q = Gaussian.low_rank(target.dim, min(policy.RANK, target.dim))
        return Beginning(q.moved(mean, np.ones(target.dim)), FixedDraws())
    return Beginning(Gaussian.from_root(mean, np.eye(target.dim)), NaturalGradient())


def starts_of(target: Density, key: Key, starts: int) -> list[LocalGaussian]:
    """Local Gaussians to start from, best ELBO first.

    Raises:
        TargetError: the density is finite nowhere that was tried.
    """
    evaluate, dim = batched(target), target.dim
    points = dispersed_points(host_rng(key, "starts"), max(starts, 1), dim)
    design = host_rng(key, "start design").standard_normal((policy.START_PAIRS, dim))
    broad = functools.cache(lambda: broad_start(target, key))
    for tried in sets_of_points(target, points):
        if found := find_start(evaluate, tried, design, broad):
            return found
    raise explain_no_start(evaluate, points, target.coordinate_names)


def _low_rank(target: Density, key: Key, starts: int) -> Gaussian:
    """A low-rank Gaussian at the highest end of L-BFGS paths, with sds from the curvature there."""
    points = dispersed_points(host_rng(key, "starts"), max(starts, 1), target.dim)
    rng = host_rng(key, "probes")
    tries = (find_start_large(batched(target), p, rng) for p in sets_of_points(target, points))
    start = next((found for found in tries if found is not None), None)
    if start is None:
        raise explain_no_start(batched(target), points, target.coordinate_names)
    mean, sd = start
    return Gaussian.low_rank(target.dim, min(policy.RANK, target.dim)).moved(mean, sd)


def mover(q: AbstractFamily) -> AbstractSolver:
    """The solver that moves a given member of a family on R^d: by how its covariance is stored."""
    structure = q.covariance_structure
    if structure == "low_rank" or (structure == "diagonal" and q.dim > policy.FULL_RANK_UP_TO):
        return FixedDraws()
    return StochasticGradient() if structure == "none" else NaturalGradient()


def of_moments(q: AbstractFamily) -> Gaussian:
    """The Gaussian of q's moments: from it a q that no solver moves is climbed to anew."""
    z, _ = q.draw(max(MOMENT_DRAWS, 4 * q.dim), 0)
    return Gaussian.from_root(z.mean(axis=0), (z - z.mean(axis=0)).T / np.sqrt(len(z)))
