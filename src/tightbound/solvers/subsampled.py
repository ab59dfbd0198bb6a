"""Very many rows: a Gaussian fitted to a sample of them.

The gradient of the sample is corrected by that of all rows.
"""

import dataclasses
from typing import ClassVar, cast

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._numerics import host_rng
from .._types import Array, Key, PyTree
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError, Result
from ..starts.paths import dispersed_points, find_start
from ..targets.base import AbstractTarget, Density, Rows, require
from ..targets.batched import BatchedDensity, batched
from .base import AbstractSolver, Info
from .natural import NaturalGradient

# Rows in the sample: a hundredth of all, but so many that its curvature is right to a tenth or so
# in every direction, or centring again would not shrink the error.
_SHARE, _PER_DIMENSION, _LEAST = 100, 50, 2_000
_START_PAIRS = 32  # of the design that judges local Gaussians
_MOST_STARTS = 3  # dispersed ones, besides the mean of q
_MOST_CENTRES = 15  # each takes a gradient of all rows
_DIVERGED = 2.0  # how many times farther than the move before a move may go


class Tilted(Density):
    """log p_sample(z) + tilt' (z - centre): a sample of rows, with the gradient of all rows.

    At `centre` it has that gradient. What is left of the error is (hessian of all rows - that of
    the sample) (z - centre), so centring again where the fit moved shrinks it by the relative error
    of the sample's curvature.

    Attributes:
        sample: the target on some of the rows, each counted N/B times.
        centre: where the gradients agree.
        tilt: gradient of all rows minus that of the sample, at the centre.
    """

    sample: Rows
    centre: Float[Array, "dim"]
    tilt: Float[Array, "dim"]

    @property
    def dim(self) -> int:
        return self.sample.dim

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return self.sample.coordinate_names

    def constrain(self, z: Float[Array, "dim"]) -> PyTree:
        return self.sample.constrain(z)

    def unconstrain(self, values: PyTree) -> Float[Array, "dim"]:
        return self.sample.unconstrain(values)

    def log_density(self, z: Float[Array, "dim"]) -> Float[Array, ""]:
        return self.sample.log_density(z) + self.tilt @ (z - self.centre)


@dataclasses.dataclass(frozen=True)
class SubsampledState:
    """The tilted sample, and what has been done with it.

    Attributes:
        tilted: now.
        tol: accuracy asked for, in posterior sds.
        key: of the fit.
        moved: how far the last fit moved its mean, in sds, rms.
        centres: fits so far.
        result: how the run has ended.
    """

    tilted: Tilted
    tol: float
    key: Key
    moved: float = np.inf
    centres: int = 0
    result: Result | None = None


class Subsampled(AbstractSolver):
    """A full-rank Gaussian from a few gradients on all rows.

    Each step is one of them, and a fit to a tilted sample of rows. The first fit is to `rows` of
    the N rows, each counted N / rows times. Then, until the mean stays where it is to within `tol`
    sds: the gradient of all rows at the mean, a linear term that makes the sample's gradient there
    equal to it, and a natural-gradient fit of that. The error of the mean shrinks at each step by
    the relative error of the sample's curvature, about sqrt(d / rows). For N in the hundred
    thousands and more, and d up to some hundreds. Not where rows are few, or of a rare kind that a
    sample misses (the covariance is that of the sample's rows); not for posteriors far from
    Gaussian, which N rows of the kind that a sample represents do not have.

    `fit.evaluations` counts a gradient of the sample as rows / N of one.

    Arguments:
        rows: in the sample; None is max(N / 100, 50 d, 2,000).
        solver: for the fits to the sample.

    Source: control variates in the gradient as in Johnson & Zhang 2013 (SVRG), on a fixed sample.
    """

    rows: int | None = None
    solver: AbstractSolver = eqx.field(default_factory=NaturalGradient)
    compiled: ClassVar[bool] = False

    def default_objective(self) -> AbstractObjective:
        return ELBO()

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        data = require(self, target, Rows)
        self.solver.check(target, q, objective)
        if self._size(data) >= data.num_rows:
            raise PairingError(
                f"Subsampled wants many more rows than it samples, {self._size(data)} of"
                f" {data.num_rows}; use {type(self.solver).__name__} on all of them."
            )

    def own_start(
        self, target: AbstractTarget, key: Key, starts: int | None
    ) -> AbstractFamily | None:
        """A Gaussian at zero: the first step looks for a start on the sample."""
        return Gaussian.full(require(self, target, Rows).dim)

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> SubsampledState:
        data = require(self, target, Rows)
        index = host_rng(key, "rows").choice(data.num_rows, self._size(data), replace=False)
        sample = data.take(np.sort(index))
        return SubsampledState(Tilted(sample, np.zeros(data.dim), np.zeros(data.dim)), tol, key)

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: SubsampledState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, SubsampledState, Info]:
        data, old = require(self, target, Rows), cast(Gaussian, q)  # the inner solver's check
        everything, of_sample = batched(data), self._evaluator(data, state.tilted)
        before, sampled = everything.evaluations, -of_sample.evaluations
        if state.centres == 0:
            new, tilted, result = self._first(state, old), state.tilted, None
        else:
            tilted = self._tilted(everything, state.tilted, old)
            fresh = self._evaluator(data, tilted)
            new, result = self._fitted(tilted, old, objective, state)
            sampled += fresh.evaluations
        sampled += of_sample.evaluations
        used = everything.evaluations - before + of_sample.share * sampled
        if new is None or result is Result.nonfinite:
            failed = dataclasses.replace(state, result=Result.nonfinite)
            return target, q, failed, Info(np.nan, np.nan, used)
        moved = float(np.sqrt(np.mean(old.whiten(new.mean) ** 2))) if state.centres else np.inf
        # A move that grows says that the sample's curvature is too far off to correct with.
        shrunk = moved <= _DIVERGED * state.moved
        ended = self._ended(state, moved, shrunk)
        state = dataclasses.replace(
            state, tilted=tilted, moved=moved, centres=state.centres + 1, result=ended
        )
        return target, new if shrunk else q, state, Info(np.nan, np.float64(moved), used)

    def done(self, state: SubsampledState) -> Result | None:
        return state.result

    def _ended(self, state: SubsampledState, moved: float, shrunk: bool) -> Result | None:
        if moved < state.tol:
            return Result.converged
        return Result.stalled if not shrunk or state.centres + 1 >= _MOST_CENTRES else None

    def _first(self, state: SubsampledState, q: Gaussian) -> Gaussian | None:
        """Where the fits begin: the best local Gaussian of the sample.

        Searched for from the mean of q and from dispersed points; None where none is usable.
        """
        evaluate, dim = batched(state.tilted), state.tilted.dim
        dispersed = dispersed_points(host_rng(state.key, "starts"), _MOST_STARTS, dim)
        points = np.concatenate([np.asarray(q.mean)[None], dispersed])
        design = host_rng(state.key, "start design").standard_normal((_START_PAIRS, dim))
        found = find_start(evaluate, points, design)
        return Gaussian.from_root(found[0].mean, found[0].root) if found else None

    def _fitted(
        self,
        tilted: Tilted,
        q: Gaussian,
        objective: AbstractObjective | None,
        state: SubsampledState,
    ) -> tuple[Gaussian, Result]:
        """The fit to the tilted sample, from q, and how it ended."""
        target, moving = cast(AbstractTarget, tilted), cast(AbstractFamily, q)
        inner = self.solver.init(target, moving, objective, state.key, state.tol)
        while (result := self.solver.done(inner)) is None:
            target, moving, inner, _ = self.solver.step(target, moving, objective, inner, state.key)
        return cast(Gaussian, moving), result  # solvers of Gaussians return them

    def _tilted(self, everything: BatchedDensity, old: Tilted, q: Gaussian) -> Tilted:
        """The sample, tilted to the gradient of all rows at q's mean."""
        mean = np.array(q.mean)
        score, of_tilted = everything(mean[None])[1][0], batched(old)(mean[None])[1][0]
        return Tilted(old.sample, mean, old.tilt + score - of_tilted)

    def _evaluator(self, target: Rows, tilted: Tilted) -> BatchedDensity:
        """Of the sample; a gradient of it counts as rows / N of one."""
        evaluator = batched(tilted)
        evaluator.share = self._size(target) / target.num_rows
        return evaluator

    def _size(self, target: Rows) -> int:
        return self.rows or max(target.num_rows // _SHARE, _PER_DIMENSION * target.dim, _LEAST)


__all__ = ["Subsampled", "SubsampledState", "Tilted"]
