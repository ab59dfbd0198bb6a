"""Gaussians fitted on a grid of values of one coordinate: for hierarchical scales."""

import dataclasses
from typing import ClassVar, cast

import numpy as np
from jaxtyping import Float

from .._numerics import host_rng
from .._types import Array, Key
from ..estimators.fixed_design import moment_matched
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..families.nested import NestedGaussian
from ..objectives.base import AbstractObjective
from ..results import PairingError, Result
from ..search.conditionals import Knot, refit, regression, third_order_coupling
from ..targets.base import AbstractTarget, Density, require
from ..targets.batched import batched
from .base import AbstractSolver, Info, check_gaussian_start

_FALL = 8.0  # nats below the best knot at which a side of the grid ends
_FLAT = 0.5  # nats per knot below which the next one is set farther out
_MAX_KNOTS = 48  # a grid that has not ended by then follows a tail that goes on


@dataclasses.dataclass(frozen=True)
class NestedState:
    """The knots so far, and which sides of the grid are still open."""

    coordinate: int
    design: Float[np.ndarray, "m rest"]
    # Of the next knot on the left and on the right; grows where the profile is flat
    spacing: tuple[float, float]
    # Regression of the rest on t under the Gaussian that we start from
    slope: Float[np.ndarray, "rest"]
    knots: tuple[Knot, ...]  # ascending in t
    open_left: bool
    open_right: bool
    result: Result | None = None

    @property
    def best(self) -> float:
        return max(k.elbo for k in self.knots)


class Nested(AbstractSolver):
    """From a Gaussian to a NestedGaussian: the rest is refitted on a grid of one coordinate.

    Natural gradient fits it at each value. The coordinate is the one with the strongest third-order
    coupling to the scores (`third_order_coupling`), in practice the log scale of a hierarchical
    model (in one dimension q becomes the posterior on a grid). The grid walks outwards in steps of
    `step_sds` sds until the conditional ELBO, the log density of t up to a constant, has fallen by
    8 nats. Costs some 3,000-15,000 gradients. Not for targets that the Gaussian already fits: it
    gains nothing there and adds grid noise.

    Arguments:
        coordinate: index of t; None chooses it.
        choice: which coordinate to choose, in order of coupling: 0 is the strongest.
        step_sds: distance of knots in sds of t.

    Source: the grid of Rue, Martino & Chopin 2009, section 3, with Gaussians fitted by the ELBO.
    """

    coordinate: int | None = None
    choice: int = 0
    step_sds: float = 0.7
    compiled: ClassVar[bool] = False

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        check_gaussian_start(self, target, q, objective)
        if self.coordinate is not None and not 0 <= self.coordinate < q.dim:
            raise PairingError(
                f"Nested: `coordinate` must lie in 0..{q.dim - 1}, got {self.coordinate}."
            )

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> NestedState:
        start, density = cast(Gaussian, q), require(self, target, Density)  # by `check`
        mean, root = np.array(start.mean, np.float64), np.array(start.root, np.float64)
        evaluate, rng, dim = batched(density), host_rng(key, "nested"), q.dim
        j = self.coordinate
        if j is None:
            coupling = (
                third_order_coupling(evaluate, mean, root, rng) if dim > 1 else np.zeros((1, 1))
            )
            j = int(np.argsort(-np.sum(coupling**2, axis=1))[min(self.choice, dim - 1)])
        slope, conditional_root = regression(root, np.array([j]))
        design = moment_matched(rng, max(dim - 1, 32) if dim > 1 else 1, dim - 1)
        guess = Knot(float(mean[j]), np.delete(mean, j), conditional_root, -np.inf)
        (start,) = refit(evaluate, j, [guess], design)
        spacing = self.step_sds * float(np.linalg.norm(root[j]))
        result = None if np.isfinite(start.elbo) else Result.nonfinite
        return NestedState(j, design, (spacing, spacing), slope[:, 0], (start,), True, True, result)

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: NestedState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, NestedState, Info]:
        """One knot further on each open side, both in the same batch."""
        evaluate = batched(require(self, target, Density))
        before = evaluate.evaluations
        sides = [s for s, is_open in ((-1, state.open_left), (1, state.open_right)) if is_open]
        guesses = [_predict(state, side) for side in sides]
        knots = refit(evaluate, state.coordinate, guesses, state.design)
        used = evaluate.evaluations - before
        for side, knot in zip(sides, knots, strict=True):
            state = _extended(state, side, knot)
        if not (state.open_left or state.open_right):
            state = dataclasses.replace(
                state, result=Result.converged if len(state.knots) >= 4 else Result.nonfinite
            )
        elif len(state.knots) >= _MAX_KNOTS:
            state = dataclasses.replace(state, result=Result.max_steps)
        if len(state.knots) >= 4:
            q = _family(state)
        return target, q, state, Info(np.float64(-_elbo(state)), np.float64(1.0), used)

    def done(self, state: NestedState) -> Result | None:
        return state.result


def _extended(state: NestedState, side: int, knot: Knot) -> NestedState:
    """The state with one more knot on a side.

    The side is closed once it has fallen far enough, and spaced wider if flat.
    """
    if np.isfinite(knot.elbo):
        edge = state.knots[0 if side < 0 else -1]
        knots = (knot, *state.knots) if side < 0 else (*state.knots, knot)
        spacing = list(state.spacing)
        if abs(knot.elbo - edge.elbo) < _FLAT and knot.elbo < state.best:
            spacing[side > 0] *= 1.5
        state = dataclasses.replace(state, knots=knots, spacing=(spacing[0], spacing[1]))
    if not np.isfinite(knot.elbo) or knot.elbo < state.best - _FALL:
        state = dataclasses.replace(state, **{"open_left" if side < 0 else "open_right": False})
    return state


def _predict(state: NestedState, side: int) -> Knot:
    """The next knot outwards, its mean extrapolated from the last two, or by regression."""
    last, step = state.knots[0 if side < 0 else -1], side * state.spacing[side > 0]
    slope: Float[Array, "rest"] = state.slope
    if len(state.knots) > 1:
        inner = state.knots[1 if side < 0 else -2]
        slope = (last.mean - inner.mean) / (last.t - inner.t)
    return Knot(last.t + step, last.mean + step * slope, last.root, -np.inf)


def _elbo(state: NestedState) -> float:
    """log of the integral of exp(profile).

    The ELBO of the nested family, by the trapezoidal rule over its knots.
    """
    t, profile = np.array([k.t for k in state.knots]), np.array([k.elbo for k in state.knots])
    mass = np.trapezoid(np.exp(profile - state.best), t) if len(t) > 1 else 1.0
    return float(state.best + np.log(mass))


def _family(state: NestedState) -> NestedGaussian:
    t = np.array([k.t for k in state.knots])
    profile = np.array([k.elbo for k in state.knots])
    means, roots = np.stack([k.mean for k in state.knots]), np.stack([k.root for k in state.knots])
    return NestedGaussian.through(state.coordinate, t, profile, means, roots)
