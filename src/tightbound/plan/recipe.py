"""What `fit()` chooses when you choose nothing: an ordered table, ability -> plan.

The first row that fits is used.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .._numerics import host_rng
from .._types import Budget
from ..amortised.head_ladder import climb_heads
from ..amortised.start import amortised
from ..estimators.fixed_design import FixedDesign
from ..estimators.gauss_hermite import GaussHermite
from ..families.gaussian import Gaussian
from ..loop import run
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..objectives.forward_kl import ForwardKL
from ..results import PairingError, TargetError
from ..search.modes import modes, starts_at_modes
from ..solvers.annealed import anneal
from ..solvers.base import AbstractSolver
from ..solvers.coordinate_ascent import CoordinateAscent, best_start
from ..solvers.fixed_draws import FixedDraws
from ..solvers.held_out import HeldOut
from ..solvers.natural import NaturalGradient
from ..solvers.stochastic import StochasticGradient
from ..solvers.subsampled import Subsampled
from ..starts.from_far import broad_start
from ..starts.many_dimensions import find_start_large
from ..starts.mixture_at_modes import mixture_at_modes
from ..starts.paths import LocalGaussian, dispersed_points, explain_no_start, find_start
from ..starts.reweighted import anneal_reweighted
from ..targets.base import Conjugate, Density, Rows, Simulator
from ..targets.batched import batched
from ..targets.sites import Contaminated, Kernels, Reweighted
from .climb import Climb, climb

MANY_ROWS = 300_000  # rows from which a fit starts on a sample of them
FULL_RANK_UP_TO = 300  # dimensions; above it the d x d algebra costs more than the gradients
_STARTS = 4
_START_PAIRS = 32
_RANK = 20
_FACTORS = "{}: chosen for a product of exponential-family factors"
_TRAINED = "amortised: trained on simulations until those held out gained no more"
# of the noise variance: below it a contaminated posterior with one mode has one optimum
_NARROW = 0.5
_ROUGH = 0.1  # posterior sds: enough to rank the ends of several starts
_FEW_STEPS = 40
_MOST_NODES = {1: 161, 2: 41}  # per axis, to start with


@dataclasses.dataclass(frozen=True)
class Plan:
    """The three choices, and what was found on the way to the start.

    `settled`: why no ladder stands above this plan, where none does; the fit is then certified as
    it is. `ladder`: the one that stands above it otherwise. `rival`: a member of another family, to
    be judged as well.
    """

    q: Any
    objective: AbstractObjective | None
    solver: AbstractSolver
    others: tuple[LocalGaussian, ...] = ()
    settled: str = ""
    rival: Any = None
    ladder: Callable[..., Climb] = climb


def plan(target: Any, q: Any = None, *, key: Any, starts: int | None, factors: bool = True) -> Plan:
    """The default for `target`: the first row of the table whose ability it has.

    With a `q`, how to continue from it.

    `factors`: whether a product of factors will do (not for a solver or an objective that wants a
    law on R^d).

    Raises:
        TargetError: when the log density is finite at no start; it names the parameter where one
            decides.
    """
    if q is not None and q.space == "native":
        return _of_factors(q, _factor_solver(target, q))
    for ability, choose in TABLE:
        if isinstance(target, ability) and (factors or ability is not Conjugate):
            return choose(target, key, starts) if q is None else continue_from(q)
    offered = "; ".join(ability.ability for ability, _ in TABLE)
    raise TargetError(
        f"There is no default for {type(target).__name__}: it needs one of the abilities {offered}."
    )


_CONTINUE = {"full": NaturalGradient, "diagonal": NaturalGradient, "low_rank": FixedDraws}


def continue_from(q: Any) -> Plan:
    """The solver that moves a given q: by the structure of its scale, else stochastic gradients.

    Of networks, training.

    A q whose draws are not smooth in its parameters (nested, mixture) is climbed to anew, from the
    Gaussian of its moments.
    """
    if q.conditional:
        return Plan(q, ForwardKL(), HeldOut(), settled=_TRAINED)
    if not q.reparameterised:
        z, _ = q.draw(max(4000, 4 * q.dim), 0)
        q = Gaussian.from_root(z.mean(axis=0), (z - z.mean(axis=0)).T / np.sqrt(len(z)))
    structure = q.covariance_structure
    if structure == "diagonal" and q.dim > FULL_RANK_UP_TO:
        structure = "low_rank"
    return Plan(q, ELBO(), _CONTINUE.get(structure, StochasticGradient)())


def _conjugate(target: Any, key: Any, starts: int | None) -> Plan:
    """Coordinate ascent from the best of several short runs.

    Natural gradients where a factor is not conjugate.
    """
    q = target.start(key)
    solver = _factor_solver(target, q)
    if isinstance(solver, CoordinateAscent):
        q = best_start(target, key, _STARTS if starts is None else starts)
    return _of_factors(q, solver)


def _of_factors(q: Any, solver: AbstractSolver) -> Plan:
    return Plan(q, ELBO(), solver, settled=_FACTORS.format(type(solver).__name__))


def _factor_solver(target: Any, q: Any) -> AbstractSolver:
    """Coordinate ascent.

    Natural gradients where the target refuses it, being conjugate in some factors only.
    """
    try:
        CoordinateAscent().check(target, q, ELBO())
    except PairingError:
        return NaturalGradient() if isinstance(target, Conjugate) else CoordinateAscent()
    return CoordinateAscent()


def _gaussian(target: Any, key: Any, starts: int | None) -> Plan:
    """Full-rank Gaussian by natural gradient from the best of several starts.

    Low rank above some hundred dimensions.
    """
    starts = _STARTS if starts is None else starts
    if target.dim > FULL_RANK_UP_TO:
        points, rng = _points(target, key, starts), host_rng(key, "probes")
        starts_found = (
            find_start_large(batched(target), tried, rng) for tried in _tries(target, points)
        )
        start = next((found for found in starts_found if found is not None), None)
        if start is None:
            raise explain_no_start(batched(target), points, target.coordinate_names)
        mean, sd = start
        q = Gaussian.low_rank(target.dim, min(_RANK, target.dim)).moved(mean, sd)
        return Plan(q, ELBO(), FixedDraws())
    found = starts_of(target, key, starts)
    return Plan(
        Gaussian.from_root(found[0].mean, found[0].root),
        ELBO(),
        NaturalGradient(),
        tuple(found[1:]),
    )


def _many_rows(target: Any, key: Any, starts: int | None) -> Plan:
    """A sample of the rows, corrected by a few gradients of all of them, where these are what the
    time goes into.
    """
    if target.num_rows < MANY_ROWS or target.dim > FULL_RANK_UP_TO:
        return _gaussian(target, key, starts)
    return Plan(Gaussian.full(target.dim), ELBO(), Subsampled())


def starts_of(target: Any, key: Any, starts: int) -> list[LocalGaussian]:
    """Local Gaussians to start from, best ELBO first.

    An explained error where the density is finite nowhere.
    """
    evaluate, dim = batched(target), target.dim
    points = _points(target, key, starts)
    design = host_rng(key, "start design").standard_normal((_START_PAIRS, dim))
    broad = functools.cache(lambda: broad_start(target, key))
    for tried in _tries(target, points):
        if found := find_start(evaluate, tried, design, broad):
            return found
    raise explain_no_start(evaluate, points, target.coordinate_names)


def _tries(target: Any, points: np.ndarray) -> Iterator[np.ndarray]:
    """Sets of points to search from, each only where those before are nowhere finite.

    The user's example is the last.
    """
    yield points
    yield 0.1 * points
    example = getattr(target, "example_point", None)
    if example is not None:
        yield example[None]
        yield example + 1e-2 * points


def _points(target: Any, key: Any, starts: int) -> np.ndarray:
    return dispersed_points(host_rng(key, "starts"), max(starts, 1), target.dim)


def _contaminated(target: Any, key: Any, starts: int | None) -> Plan:
    """Contaminated data: anneal the kernels in closed form to find the basin, then polish by
    quadrature or on a design.

    Where the annealed q is as wide as a kernel, or the posterior has several modes, it is polished
    from each of them as well, and from the moments of all of them together; the best ELBO is where
    the fit begins. The ladder compares it with a mixture over the modes.
    """
    starts = _STARTS if starts is None else starts
    if target.dim > FULL_RANK_UP_TO:
        return _gaussian(target, key, starts)
    kernels, annealed = target.kernels(), anneal(target)
    found = modes(kernels)
    if len(found) == 1 and _width(kernels, annealed) < _NARROW:
        return Plan(annealed, ELBO(), NaturalGradient(_polisher(target.dim, 0.0)))
    at_modes = starts_at_modes(kernels, found)
    tried = [annealed, *at_modes[:-1][:starts], at_modes[-1]]
    solver = NaturalGradient(_polisher(target.dim, max(_width(kernels, q) for q in tried)))
    ends = sorted((_polished(target, q, solver, key) for q in tried), key=lambda end: -end.elbo)
    ends = [end for end in ends if np.isfinite(end.elbo)] or [_local(annealed, -np.inf)]
    mixture = mixture_at_modes(target, kernels, found, host_rng(key, "mixture at modes"))
    best = Gaussian.from_root(ends[0].mean, ends[0].root)
    return Plan(best, ELBO(), solver, tuple(ends[1:]), rival=mixture)


def _polisher(dim: int, width: float) -> Any:
    """How moments of a contaminated posterior are computed: nodes where they are few, else a
    design.

    Nodes must not step over kernels: 5 + 14 sqrt(v / vg) of them resolve q's of that width.
    """
    if dim > 2:
        return FixedDesign()
    return GaussHermite(int(np.clip(5.0 + 14.0 * np.sqrt(width), 15, _MOST_NODES[dim])))


def _polished(target: Any, q: Gaussian, solver: Any, key: Any) -> LocalGaussian:
    """The end of a short run from q, with its ELBO: -inf where the run failed."""
    ran = run(target, q, ELBO(), solver, key=key, tol=_ROUGH, budget=Budget(), max_steps=_FEW_STEPS)
    return _local(ran.q, -float(ran.trace.loss[-1]) if ran.result.usable and ran.steps else -np.inf)


def _local(q: Gaussian, elbo: float) -> LocalGaussian:
    return LocalGaussian(np.asarray(q.mean), np.asarray(q.root), elbo, 0.0)


def _width(kernels: Kernels, q: Gaussian) -> float:
    """The largest variance of q in units of the median kernel's."""
    white = np.linalg.solve(kernels.root, np.asarray(q.root))
    return float(np.linalg.svd(white, compute_uv=False)[0] ** 2 / kernels.median_scale)


def _regression(target: Any, key: Any, starts: int | None) -> Plan:
    """Regression with outliers: from annealed reweighted least squares."""
    if target.dim > FULL_RANK_UP_TO:
        return _gaussian(target, key, starts)
    return Plan(anneal_reweighted(target), ELBO(), NaturalGradient())


def _simulator(target: Any, key: Any, starts: int | None) -> Plan:
    """Simulations alone: a conditional Gaussian (von Mises in angles) in convex coordinates, by
    expected forward KL.

    Richer heads stand above it where fresh simulations can judge them; stored ones have been
    trained on.
    """
    q = amortised(target, key=key, seeds=starts or 1)
    settled = "" if target.num_simulations is None else _TRAINED
    return Plan(q, ForwardKL(), HeldOut(), settled=settled, ladder=climb_heads)


TABLE: list[tuple[type, Callable[[Any, Any, int | None], Plan]]] = [
    (Simulator, _simulator),
    (Contaminated, _contaminated),
    (Reweighted, _regression),
    (Conjugate, _conjugate),
    (Rows, _many_rows),
    (Density, _gaussian),
]
