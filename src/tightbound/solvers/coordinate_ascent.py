"""Coordinate ascent (CAVI).

Each factor to its optimum given the others, derived from the expected log joint.
"""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.random as jr
import numpy as np

from .._numerics import key_words, to_device, to_host
from ..families.exponential.product import Product
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError, Result
from ..search.conjugate_form import as_conjugate
from ..search.factor_rule import check_product, curved_factors, distance, elbo, order, sweep, valid
from .base import AbstractSolver, Info

_SHARE = 0.1  # of tol that the way still to go may amount to
_ROUNDING = 1e-7  # a move this small is rounding


@dataclasses.dataclass(frozen=True)
class AscentState:
    """The conjugate target and q on the device, and the last moves."""

    target: Any
    q: Product
    tol: float
    elbo: float = -np.inf
    change: float = np.inf
    result: Result | None = None


class CoordinateAscent(AbstractSolver):
    """Coordinate ascent variational inference: exact, monotone, no learning rate, no Monte Carlo.

        eta_d <- d/dm_d E_q[log p(x, z) - log h_d(z_d)],   one factor d after the other

    A target gives E_q[log p] as ONE function of the factors' moments (tb.from_expected_log_joint,
    tb.targets.conjugate), or is a tb.from_numpyro model of conjugate pieces; no update is written
    by hand. Each sweep raises the ELBO (to rounding). The run ends when the way still to go, from
    the ratio of the last two moves, is below a tenth of `tol` posterior sds. Not for models that
    are not conditionally conjugate (they are refused, with the name of the factor; NaturalGradient
    takes them), and not for very many rows (SVI).

    Source: Blei, Kucukelbir & McAuliffe 2017, section 2.4; Khan & Rue 2023, section 5.
    """

    compiled: ClassVar[bool] = False

    def default_objective(self) -> AbstractObjective:
        return ELBO()

    def own_start(self, target: Any, key: Any, starts: int | None) -> Any:
        """The best of a few short runs from different starts."""
        return best_start(as_conjugate(target), key, starts)

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        if not isinstance(objective, ELBO):
            raise PairingError(
                "CoordinateAscent maximises the ELBO and nothing else, got"
                f" {type(objective).__name__}; leave it out."
            )
        conjugate = as_conjugate(target)
        check_product("CoordinateAscent", conjugate, q)
        curved = curved_factors(to_device(conjugate), to_device(q), jr.key(0))
        if curved:
            raise PairingError(
                f"CoordinateAscent: the model is not conjugate in the factor {curved[0]!r}: its"
                " expected log joint is not affine in the mean parameters of that"
                f" {type(q[curved[0]]).__name__}"
                + (f" (nor in those of {', '.join(map(repr, curved[1:]))})" if curved[1:] else "")
                + ". Use tb.solvers.NaturalGradient(), or another family for that factor."
            )

    def init(self, target: Any, q: Any, objective: Any, key: Any, tol: float) -> AscentState:
        return AscentState(to_device(as_conjugate(target)), to_device(q), tol)

    def step(
        self, target: Any, q: Any, objective: Any, state: AscentState, key: Any
    ) -> tuple[Any, Any, Any, Info]:
        new, *numbers = _swept(state.target, state.q)
        value, change, inside = (float(number) for number in numbers)
        if not (np.isfinite(value) and inside):  # a flat prior leaves a factor without a law
            ended = Result.nonfinite if inside else Result.unbounded
            return target, q, dataclasses.replace(state, result=ended), Info(np.nan, np.nan, 1)
        result = Result.converged if _arrived(change, state) else None
        state = AscentState(state.target, new, state.tol, value, change, result)
        return target, to_host(new), state, Info(-value, change, 1)

    def done(self, state: AscentState) -> Result | None:
        return state.result


def _arrived(change: float, state: AscentState) -> bool:
    """Whether the moves, continued as a geometric series, lead less than a tenth of tol further."""
    if change < _ROUNDING:
        return True
    ratio = change / state.change if np.isfinite(state.change) else 1.0
    return ratio < 1.0 and change * ratio / (1.0 - ratio) < _SHARE * state.tol


@eqx.filter_jit
def _swept(target: Any, q: Product) -> Any:
    """(q, its ELBO, largest move in sds, whether it is inside its domain) after one sweep."""
    new = sweep(target, q, order(q))
    return new, elbo(target, new), distance(new, q), valid(new)


def best_start(target: Any, key: Any, starts: int | None, sweeps: int = 10) -> Product:
    """The best by ELBO of `sweeps` sweeps from `starts` starts.

    From one where the start is always the same.
    """
    count, best, highest = starts or 4, None, -np.inf
    given = [
        target.start(np.random.SeedSequence([*key_words(key), i]).generate_state(1)[0].item())
        for i in range(count)
    ]
    if all(_same(q, given[0]) for q in given[1:]):
        return given[0]
    on_device = to_device(target)
    for start in given:
        q, value = to_device(start), np.array(-np.inf)
        for _ in range(sweeps):
            q, value, _, inside = _swept(on_device, q)
            if not (inside and np.isfinite(value)):
                value = np.array(-np.inf)
                break
        if best is None or float(value) > highest:
            best, highest = q, float(value)
    return to_host(best)


def _same(a: Product, b: Product) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


__all__ = ["CoordinateAscent", "best_start"]
