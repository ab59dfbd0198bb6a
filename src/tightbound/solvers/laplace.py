"""Laplace's approximation: a Gaussian at the mode with the curvature there."""

import dataclasses
from typing import ClassVar, cast

import numpy as np
from jaxtyping import Float

from .._types import Key
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective
from ..results import Result
from ..search.lbfgs import ascend
from ..starts.paths import local_roots
from ..targets.base import AbstractTarget, Density, require
from ..targets.batched import BatchedDensity, batched
from .base import AbstractSolver, Info, check_full_rank, check_no_objective

_NEWTON_STEPS = 20  # Newton's method doubles the digits with each: more means that it is stuck
_RATES = (1.0, 0.3, 0.1, 0.01)  # of a Newton step: a smaller one is rounding
_ROUNDING = 1e-9  # of the log density: a step may lower it by as much
_FLATTEST = 1e-20  # curvature along one coordinate: an sd of 1e10 is still an sd at a mode
# Smallest eigenvalue of the curvature scaled to unit diagonal: what differences of scores can
# resolve
_FLOOR = 1e-9


@dataclasses.dataclass(frozen=True)
class LaplaceState:
    """Where the climb is.

    Attributes:
        point: now.
        root: of the inverse curvature there; None before it is known.
        value: log density there, nats.
        tol: accuracy asked for, in posterior sds.
        stage: 0 before the climb by L-BFGS, then the number of points with a known curvature.
        result: how the run has ended.
    """

    point: Float[np.ndarray, "dim"]
    root: Float[np.ndarray, "dim dim"] | None
    value: float
    tol: float
    stage: int = 0
    result: Result | None = None


class Laplace(AbstractSolver):
    """N(mode, (-hess log p(mode))^-1): the cheapest Gaussian.

    Exact where the posterior is Gaussian. Climbs by L-BFGS from q's mean, then by Newton steps with
    curvature from differences of scores (2 d of them each, so not above some hundreds of
    dimensions). Not for hierarchical models whose density has no mode, nor for skewed posteriors:
    the mode is not the mean there, and NaturalGradient costs little more.

    Source: Tierney & Kadane 1986, section 2; MacKay 2003, chapter 27.
    """

    compiled: ClassVar[bool] = False

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        require(self, target, Density)
        check_no_objective(self, objective, "matches the curvature at the mode")
        check_full_rank(self, q, "start it from tb.families.Gaussian.full(dim)")

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> LaplaceState:
        density = require(self, target, Density)
        start = np.array(cast(Gaussian, q).mean, dtype=np.float64)  # `check` refuses all else
        value = float(batched(density)(start[None])[0][0])
        return LaplaceState(
            start, None, value, tol, result=None if np.isfinite(value) else Result.nonfinite
        )

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: LaplaceState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, LaplaceState, Info]:
        evaluate = batched(require(self, target, Density))
        before = evaluate.evaluations
        new = self._climb(evaluate, state) if state.stage == 0 else self._newton(evaluate, state)
        change = (
            0.0
            if new.root is None
            else float(np.sqrt(np.mean(np.linalg.solve(new.root, new.point - state.point) ** 2)))
        )
        if new.root is not None:
            q = Gaussian.from_root(new.point, new.root)
        return (
            target,
            q,
            new,
            Info(np.float64(-new.value), np.float64(change), evaluate.evaluations - before),
        )

    def done(self, state: LaplaceState) -> Result | None:
        return state.result

    def _climb(self, evaluate: BatchedDensity, state: LaplaceState) -> LaplaceState:
        paths = ascend(evaluate, state.point[None])
        if not paths:
            return dataclasses.replace(state, result=Result.nonfinite)
        return self._with_curvature(
            evaluate,
            dataclasses.replace(
                state, point=paths[0].points[-1], value=float(paths[0].values[-1]), stage=1
            ),
        )

    def _newton(self, evaluate: BatchedDensity, state: LaplaceState) -> LaplaceState:
        """One backtracked Newton step; converged when it moves less than tol / 100 sds."""
        assert state.root is not None
        score = evaluate(state.point[None])[1][0]
        whitened = state.root.T @ score
        if np.sqrt(np.mean(whitened**2)) < 0.01 * state.tol:
            return dataclasses.replace(state, result=Result.converged)
        for rate in _RATES:
            point = state.point + rate * state.root @ whitened
            value = float(evaluate(point[None])[0][0])
            if value >= state.value - _ROUNDING * abs(state.value):
                new = dataclasses.replace(state, point=point, value=value, stage=state.stage + 1)
                if new.stage > _NEWTON_STEPS:
                    return dataclasses.replace(new, result=Result.stalled)
                return self._with_curvature(evaluate, new)
        return dataclasses.replace(state, result=Result.stalled)

    def _with_curvature(self, evaluate: BatchedDensity, state: LaplaceState) -> LaplaceState:
        # The last curvature knows the scales already, so that one pass of differences will do.
        scale = None if state.root is None else np.sqrt(np.sum(state.root**2, axis=1))[None]
        passes = 1 if scale is not None else 2
        (root,) = local_roots(
            evaluate, state.point[None], scale, passes, floor=_FLOOR, flattest=_FLATTEST
        )
        return dataclasses.replace(
            state, root=root, result=Result.nonfinite if root is None else None
        )


__all__ = ["Laplace", "LaplaceState"]
