"""Rung 0 of a conjugate model: a product of factors, and coordinate ascent where it is possible."""

from ..._types import Key
from ...families.base import AbstractFamily
from ...objectives.classic import ELBO
from ...results import PairingError
from ...solvers.base import AbstractSolver
from ...solvers.coordinate_ascent import CoordinateAscent, best_start
from ...solvers.natural import NaturalGradient
from ...targets.base import AbstractTarget, Conjugate
from .. import policy
from ..attempt import Beginning


def factors(target: Conjugate, key: Key, starts: int | None) -> Beginning:
    """The best of several short runs; natural gradients where a factor is not conjugate."""
    q = target.start(key)
    if _is_conjugate(target, q):
        q = best_start(target, key, policy.FACTOR_STARTS if starts is None else starts)
    return Beginning(q, factor_solver(target, q))


def factor_solver(target: AbstractTarget, q: AbstractFamily) -> AbstractSolver:
    """Coordinate ascent; natural gradients where the target refuses it.

    Some targets are conjugate in some of their factors only.
    """
    if _is_conjugate(target, q) or not isinstance(target, Conjugate):
        return CoordinateAscent()
    return NaturalGradient()


def _is_conjugate(target: AbstractTarget, q: AbstractFamily) -> bool:
    """Whether coordinate ascent takes the pair: every factor that it moves is conjugate."""
    try:
        CoordinateAscent().check(target, q, ELBO())
    except PairingError:
        return False
    return True
