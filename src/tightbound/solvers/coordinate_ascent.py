"""Coordinate ascent (CAVI): each factor to its optimum given the others.

The updates are derived from the expected log joint.
"""

import dataclasses
from typing import ClassVar, cast

import jax.random as jr
import numpy as np

from .._numerics import to_device, to_host
from .._types import Key
from ..families.base import AbstractFamily
from ..families.exponential.product import Product
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError, Result
from ..search.conjugate_form import as_conjugate
from ..search.factor_rule import OF_TOL, check_product, curved_factors, swept
from ..starts.coordinate_ascent import best_start
from ..targets.base import AbstractTarget
from ..targets.conjugate.base import AbstractConjugateTarget
from .base import AbstractSolver, Info, check_elbo

_ROUNDING = 1e-7  # a move this small is rounding


@dataclasses.dataclass(frozen=True)
class AscentState:
    """The conjugate target and q on the device, and the last moves.

    Attributes:
        target: the conjugate form.
        q: where the ascent is.
        tol: accuracy asked for, in posterior sds.
        elbo: of q, nats.
        change: the last move, in posterior sds.
        result: how the run has ended.
    """

    target: AbstractConjugateTarget
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

    def own_start(
        self, target: AbstractTarget, key: Key, starts: int | None
    ) -> AbstractFamily | None:
        """The best of a few short runs from different starts."""
        return best_start(as_conjugate(target), key, starts)

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        check_elbo(self, objective)
        conjugate = as_conjugate(target)
        product = check_product("CoordinateAscent", conjugate, q)
        curved = curved_factors(to_device(conjugate), to_device(product), jr.key(0))
        if curved:
            raise PairingError(
                f"CoordinateAscent: the model is not conjugate in the factor {curved[0]!r}: its"
                " expected log joint is not affine in the mean parameters of that"
                f" {type(product[curved[0]]).__name__}"
                + (f" (nor in those of {', '.join(map(repr, curved[1:]))})" if curved[1:] else "")
                + ". Use tb.solvers.NaturalGradient(), or another family for that factor."
            )

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> AscentState:
        # `check` has refused every q but a product of the target's factors
        return AscentState(to_device(as_conjugate(target)), to_device(cast(Product, q)), tol)

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: AscentState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, AscentState, Info]:
        new, *numbers = swept(state.target, state.q)
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
    # Coordinate ascent converges linearly and may do so slowly: a small move alone is no arrival.
    ratio = change / state.change if np.isfinite(state.change) else 1.0
    return ratio < 1.0 and change * ratio / (1.0 - ratio) < OF_TOL * state.tol


__all__ = ["CoordinateAscent"]
