"""What `fit()` chooses when you choose nothing: an ordered table, ability -> plan; the first row that fits is used."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ._numerics import host_rng
from .estimators.fixed_design import FixedDesign
from .estimators.gauss_hermite import GaussHermite
from .families.amortised import amortised
from .families.gaussian import Gaussian
from .objectives.base import AbstractObjective
from .objectives.classic import ELBO
from .objectives.forward_kl import ForwardKL
from .results import TargetError
from .solvers.annealed import anneal
from .solvers.base import AbstractSolver
from .solvers.fixed_draws import FixedDraws
from .solvers.held_out import HeldOut
from .solvers.natural import NaturalGradient
from .solvers.start import LocalGaussian, dispersed_points, explain_no_start, find_start
from .solvers.start_large import find_start_large
from .solvers.stochastic import StochasticGradient
from .targets.base import Density, Simulator
from .targets.batched import batched
from .targets.sites import Contaminated

FULL_RANK_UP_TO = 300  # dimensions; above it the d x d algebra costs more than the gradients
_STARTS = 4
_START_PAIRS = 32
_RANK = 20


@dataclasses.dataclass(frozen=True)
class Plan:
    """The three choices, and what was found on the way to the start."""

    q: Any
    objective: AbstractObjective | None
    solver: AbstractSolver
    others: tuple[LocalGaussian, ...] = ()


def plan(target: Any, q: Any = None, *, key: Any, starts: int | None) -> Plan:
    """The default for `target`: the first row of the table whose ability it has; with a `q`, how to continue from it.

    Raises:
        TargetError: when the log density is finite at no start; it names the parameter where one decides.
    """
    for ability, choose in TABLE:
        if isinstance(target, ability):
            return choose(target, key, starts) if q is None else continue_from(q)
    offered = "; ".join(ability.ability for ability, _ in TABLE)
    raise TargetError(f"There is no default for {type(target).__name__}: it needs one of the abilities {offered}.")


_CONTINUE = {"full": NaturalGradient, "diagonal": NaturalGradient, "low_rank": FixedDraws}


def continue_from(q: Any) -> Plan:
    """The solver that moves a given q: by the structure of its scale, else stochastic gradients; of networks, training.

    A q whose draws are not smooth in its parameters (nested, mixture) is climbed to anew, from the Gaussian of its moments.
    """
    if q.conditional:
        return Plan(q, ForwardKL(), HeldOut())
    if not q.reparameterised:
        z, _ = q.draw(max(4000, 4 * q.dim), 0)
        q = Gaussian.from_root(z.mean(axis=0), (z - z.mean(axis=0)).T / np.sqrt(len(z)))
    structure = getattr(getattr(q, "scale", None), "structure", "none")
    if structure == "diagonal" and q.dim > FULL_RANK_UP_TO:
        structure = "low_rank"
    return Plan(q, ELBO(), _CONTINUE.get(structure, StochasticGradient)())


def _gaussian(target: Any, key: Any, starts: int | None) -> Plan:
    """Full-rank Gaussian by natural gradient from the best of several starts; low rank above some hundred dimensions."""
    starts = _STARTS if starts is None else starts
    if target.dim > FULL_RANK_UP_TO:
        points = _points(target, key, starts)
        start = find_start_large(batched(target), points, host_rng(key, "probes"))
        if start is None:
            raise explain_no_start(batched(target), points, target.coordinate_names)
        mean, sd = start
        q = Gaussian.low_rank(target.dim, min(_RANK, target.dim)).moved(mean, sd)
        return Plan(q, ELBO(), FixedDraws())
    found = starts_of(target, key, starts)
    return Plan(Gaussian.from_root(found[0].mean, found[0].root), ELBO(), NaturalGradient(), tuple(found[1:]))


def starts_of(target: Any, key: Any, starts: int) -> list[LocalGaussian]:
    """Local Gaussians to start from, best ELBO first; an explained error where the density is finite nowhere."""
    evaluate, dim = batched(target), target.dim
    points = _points(target, key, starts)
    design = host_rng(key, "start design").standard_normal((_START_PAIRS, dim))
    found = find_start(evaluate, points, design)
    if not found:
        found = find_start(evaluate, 0.1 * points, design)
    if not found:
        raise explain_no_start(evaluate, points, target.coordinate_names)
    return found


def _points(target: Any, key: Any, starts: int) -> np.ndarray:
    return dispersed_points(host_rng(key, "starts"), max(starts, 1), target.dim)


def _contaminated(target: Any, key: Any, starts: int | None) -> Plan:
    """Contaminated data: anneal the kernels in closed form to find the basin, then polish by quadrature or on a design.

    Of 100 data sets of 20 points the polished Gaussian is on average 1e-5 nat from the best one, the general default 4e-4.
    """
    if target.dim > FULL_RANK_UP_TO:
        return _gaussian(target, key, starts)
    return Plan(anneal(target), ELBO(), NaturalGradient(GaussHermite() if target.dim <= 2 else FixedDesign()))


def _simulator(target: Any, key: Any, starts: int | None) -> Plan:
    """Simulations alone: a conditional Gaussian (von Mises in angles) in convex coordinates, by expected forward KL."""
    return Plan(amortised(target, key=key, seeds=starts or 1), ForwardKL(), HeldOut())


TABLE: list[tuple[type, Callable[[Any, Any, int | None], Plan]]] = [
    (Simulator, _simulator),
    (Contaminated, _contaminated),
    (Density, _gaussian),
]
