"""Very many rows.

A Gaussian fitted to a sample of the rows whose gradient is corrected by that of all rows.
"""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import numpy as np

from .._numerics import host_rng
from .._types import Array, PyTree
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError, Result
from ..starts.paths import dispersed_points, find_start
from ..targets.base import Density, Rows, require
from ..targets.batched import batched
from .base import AbstractSolver, Info
from .natural import NaturalGradient

_SHARE, _PER_DIMENSION, _LEAST = 100, 50, 2_000
_START_PAIRS = 32
_MOST_CENTRES = 15
_DIVERGED = 2.0  # how many times farther than the move before a move may go


class Tilted(Density):
    """log p_sample(z) + tilt' (z - centre): the density of a sample of rows with the gradient of
    all rows at `centre`.

    What is left of the error is (hessian of all rows - that of the sample) (z - centre), so
    centring again where the fit moved shrinks it by the relative error of the sample's curvature.

    Attributes:
        sample: the target on some of the rows, each counted N/B times.
        centre: `[d]`.
        tilt: gradient of all rows minus that of the sample, at the centre, `[d]`.
    """

    sample: Rows
    centre: Array
    tilt: Array

    @property
    def dim(self) -> int:
        return self.sample.dim

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return self.sample.coordinate_names

    def constrain(self, z: Array) -> PyTree:
        return self.sample.constrain(z)

    def unconstrain(self, values: PyTree) -> Array:
        return self.sample.unconstrain(values)

    def log_density(self, z: Array) -> Array:
        return self.sample.log_density(z) + self.tilt @ (z - self.centre)


@dataclasses.dataclass(frozen=True)
class SubsampledState:
    """The tilted sample, how far the last fit moved its mean (in sds, rms), and what has been done."""

    tilted: Tilted
    tol: float
    key: Any
    moved: float = np.inf
    centres: int = 0
    # gradients of the sample that the target's counter does not know yet, in gradients of all rows
    sampled: float = 0.0
    result: Result | None = None


class Subsampled(AbstractSolver):
    """A full-rank Gaussian from a few gradients on all rows: each step is one of them, and a fit to
    a tilted sample of rows.

    The first fit is to `rows` of the N rows, each counted N / rows times. Then, until the mean
    stays where it is to within `tol` sds: the gradient of all rows at the mean, a linear term that
    makes the sample's gradient there equal to it, and a natural-gradient fit of that. The error of
    the mean shrinks at each step by the relative error of the sample's curvature, about sqrt(d /
    rows). For N in the hundred thousands and more, and d up to some hundreds. Not where rows are
    few, or of a rare kind that a sample misses (the covariance is that of the sample's rows); not
    for posteriors far from Gaussian, which N rows of the kind that a sample represents do not have.

    `fit.evaluations` counts a gradient of the sample as rows / N of one.

    Arguments:
        rows: in the sample; None is max(N / 100, 50 d, 2,000).
        solver: for the fits to the sample.

    Source: control variates in the gradient as in Johnson & Zhang 2013 (SVRG), on a fixed sample.
    """

    rows: int | None = None
    solver: Any = eqx.field(default_factory=NaturalGradient)
    compiled: ClassVar[bool] = False

    def default_objective(self) -> AbstractObjective:
        return ELBO()

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        require(self, target, Rows)
        self.solver.check(target, q, objective)
        if self._size(target) >= target.num_rows:
            raise PairingError(
                f"Subsampled wants many more rows than it samples, {self._size(target)} of"
                f" {target.num_rows}; use {type(self.solver).__name__} on all of them."
            )

    def own_start(self, target: Any, key: Any, starts: int | None) -> Any:
        """A Gaussian at zero: the first step looks for a start on the sample."""
        require(self, target, Rows)
        return Gaussian.full(target.dim)

    def init(self, target: Any, q: Any, objective: Any, key: Any, tol: float) -> SubsampledState:
        index = host_rng(key, "rows").choice(target.num_rows, self._size(target), replace=False)
        sample = target.take(np.sort(index))
        return SubsampledState(Tilted(sample, np.zeros(target.dim), np.zeros(target.dim)), tol, key)

    def step(
        self, target: Any, q: Any, objective: Any, state: SubsampledState, key: Any
    ) -> tuple[Any, Any, Any, Info]:
        everything, before = batched(target), batched(target).evaluations
        if state.centres == 0:
            new, tilted, result = self._first(state, q), state.tilted, None
        else:
            tilted = self._tilted(everything, state.tilted, q)
            new, result = self._fitted(tilted, q, objective, state)
        if new is None or result is Result.nonfinite:
            return (
                target,
                q,
                dataclasses.replace(state, result=Result.nonfinite),
                Info(np.nan, np.nan, 1),
            )
        moved = float(np.sqrt(np.mean(q.whiten(new.mean) ** 2))) if state.centres else np.inf
        shrunk = moved <= _DIVERGED * state.moved
        ended = self._ended(state, moved, shrunk)
        used = batched(tilted).evaluations + batched(tilted.sample).evaluations
        everything.evaluations += int(np.ceil(used * self._size(target) / target.num_rows))
        state = dataclasses.replace(
            state, tilted=tilted, moved=moved, centres=state.centres + 1, result=ended
        )
        return (
            target,
            new if shrunk else q,
            state,
            Info(np.nan, np.float64(moved), everything.evaluations - before),
        )

    def done(self, state: SubsampledState) -> Result | None:
        return state.result

    def _ended(self, state: SubsampledState, moved: float, shrunk: bool) -> Result | None:
        if moved < state.tol:
            return Result.converged
        return Result.stalled if not shrunk or state.centres + 1 >= _MOST_CENTRES else None

    def _first(self, state: SubsampledState, q: Any) -> Any:
        """Where the fits begin.

        The best local Gaussian of the sample, or q's own law where q was given and is near.
        """
        evaluate, dim = batched(state.tilted), state.tilted.dim
        points = np.concatenate(
            [q.mean[None], dispersed_points(host_rng(state.key, "starts"), 3, dim)]
        )
        found = find_start(
            evaluate,
            points,
            host_rng(state.key, "start design").standard_normal((_START_PAIRS, dim)),
        )
        return Gaussian.from_root(found[0].mean, found[0].root) if found else None

    def _fitted(
        self, tilted: Tilted, q: Any, objective: Any, state: SubsampledState
    ) -> tuple[Any, Result]:
        inner = self.solver.init(tilted, q, objective, state.key, state.tol)
        while (result := self.solver.done(inner)) is None:
            tilted, q, inner, _ = self.solver.step(tilted, q, objective, inner, state.key)
        return q, result

    def _tilted(self, everything: Any, old: Tilted, q: Any) -> Tilted:
        """The sample, tilted to the gradient of all rows at q's mean."""
        mean = np.array(q.mean)
        score, of_tilted = everything(mean[None])[1][0], batched(old)(mean[None])[1][0]
        return Tilted(old.sample, mean, old.tilt + score - of_tilted)

    def _size(self, target: Any) -> int:
        return self.rows or max(target.num_rows // _SHARE, _PER_DIMENSION * target.dim, _LEAST)


__all__ = ["Subsampled"]
