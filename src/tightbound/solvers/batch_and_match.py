"""Batch and match: a Gaussian whose scores match the posterior's, by updates in closed form."""

import dataclasses
from typing import ClassVar, cast

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._numerics import host_algebra
from .._types import Key
from ..families.base import AbstractFamily, standard_normals
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective
from ..results import Result
from ..targets.base import AbstractTarget, Density, require
from ..targets.batched import batched
from .base import AbstractSolver, Info, check_full_rank, check_no_objective

_FIRST_WINDOW = 64  # steps before the first look at the path: two halves of 16 to compare
_MOST_SKIPPED = 50  # batches in a row without two finite scores


@dataclasses.dataclass(frozen=True)
class BatchState:
    """What the next step needs.

    Attributes:
        tol: accuracy asked for, in posterior sds.
        steps: so far; `skipped` those in a row without finite scores.
        window: at this number of steps the run is judged next.
        path: means and log sds of the steps since half the window, side by side.
        result: how the run has ended.
    """

    tol: float
    steps: int = 0
    skipped: int = 0
    window: int = _FIRST_WINDOW
    path: tuple[Float[np.ndarray, "values"], ...] = ()
    result: Result | None = None


class BatchAndMatch(AbstractSolver):
    """Full-rank Gaussian VI that matches scores: grad log q to grad log p.

    q minimises E_q |grad log p - grad log q|^2 in the norm of its own covariance. Each step draws a
    batch from q and jumps to the exact minimiser of the batch's divergence plus (2 / lambda)
    KL(q_old || q), lambda = batch x dim / step: no learning rate, no derivative through draws,
    invariant under affine maps. On a Gaussian target it arrives exactly and says so; elsewhere it
    settles near, but not at, the q of the best ELBO. Not for the smallest KL: continue with
    tb.fit(target, fit.q). Not above some hundreds of dimensions: d^3 per step.

    It has its own objective and takes none. `Info.loss` is the batch's divergence, without units.

    Source: Cai, Modi, Pillaud-Vivien, Margossian, Gower, Blei & Saul 2024, algorithm 1.

    Attributes:
        batch: draws per step, each one gradient of the log density; None is 32, or 2 dim where that
            is more.
    """

    batch: int | None = eqx.field(default=None, static=True)
    compiled: ClassVar[bool] = False

    def __check_init__(self):
        if self.batch is not None and self.batch < 2:
            raise ValueError(f"BatchAndMatch: `batch` must be at least 2, got {self.batch}.")

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        require(self, target, Density)
        check_no_objective(
            self, objective, "matches scores", "leave it out, or use tb.solvers.StochasticGradient"
        )
        check_full_rank(self, q, "pass q=tb.families.Gaussian.full(dim)")

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> BatchState:
        return BatchState(tol)

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: BatchState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, BatchState, Info]:
        density, q = require(self, target, Density), cast(Gaussian, q)  # by `check`
        count = max(32, 2 * q.dim) if self.batch is None else self.batch
        white = standard_normals(count, q.dim, key, f"batch and match {state.steps}")
        root = np.asarray(q.root)
        values, scores = batched(density)(q.mean + white @ root.T)
        good = np.isfinite(values) & np.all(np.isfinite(scores), axis=1)
        if good.sum() < 2:
            return target, q, _without_scores(state), Info(np.nan, np.nan, count)
        # In coordinates in which q is N(0, I), so that its scores are minus the draws.
        with host_algebra():
            scores = scores[good] @ root
            weight = good.sum() * q.dim / (state.steps + 1)
            mean, new_root = match(white[good], scores, weight)
            divergence = float(np.mean(np.sum((scores + white[good]) ** 2, axis=1)))
            moved = Gaussian.from_root(q.mean + root @ mean, root @ new_root)
        change = float(np.sqrt(np.mean(mean**2)))
        return (
            target,
            moved,
            _judged(state, moved, divergence),
            Info(np.float64(divergence), np.float64(change), count),
        )

    def done(self, state: BatchState) -> Result | None:
        return state.result


def match(
    z: Float[np.ndarray, "n dim"], scores: Float[np.ndarray, "n dim"], weight: float
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
    """The closed-form update from q = N(0, I): mean and a root of the covariance S of the new q.

    With means and covariances (zbar, C) of the draws and (gbar, G) of their scores, and l =
    `weight`,

        U = l G + l/(1+l) gbar gbar',   V = I + l C + l/(1+l) zbar zbar'.

    S solves S U S + S = V: with V = R R' it is S = 2 R (I + (I + 4 R'U R)^(1/2))^-1 R'. The mean is
    l/(1+l) (S gbar + zbar).

    Source: Cai et al. 2024, algorithm 1, in coordinates in which the old q is standard normal.
    """
    share = weight / (1 + weight)
    z_bar, g_bar = z.mean(0), scores.mean(0)
    u = weight * (scores - g_bar).T @ (scores - g_bar) / len(z) + share * np.outer(g_bar, g_bar)
    v = (
        np.eye(z.shape[1])
        + weight * (z - z_bar).T @ (z - z_bar) / len(z)
        + share * np.outer(z_bar, z_bar)
    )
    # Symmetric in R'UR, whose square root is that of its eigenvalues: no matrix is inverted.
    root = np.linalg.cholesky(v)
    eigenvalues, vectors = np.linalg.eigh(root.T @ u @ root)
    half = np.sqrt(2 / (1 + np.sqrt(1 + 4 * np.maximum(eigenvalues, 0.0))))
    new_root = root @ (vectors * half)
    return share * (new_root @ (new_root.T @ g_bar) + z_bar), new_root


def _without_scores(state: BatchState) -> BatchState:
    skipped = state.skipped + 1
    result = Result.nonfinite if skipped >= _MOST_SKIPPED else None
    return dataclasses.replace(state, steps=state.steps + 1, skipped=skipped, result=result)


def _judged(state: BatchState, q: Gaussian, divergence: float) -> BatchState:
    """The state after a step, and whether the run is over.

    Converged where the batch's scores are those of q; stationary where the averages over the two
    halves of the path agree to within tol. The step falls as 1 / steps, so that a window must grow
    with the run for its halves to be worth comparing.
    """
    steps = state.steps + 1
    path = (*state.path, np.concatenate([q.mean, np.log(q.sd)])) if 2 * steps > state.window else ()
    new = dataclasses.replace(state, steps=steps, skipped=0, path=path)
    if divergence < (0.01 * state.tol) ** 2:
        return dataclasses.replace(new, result=Result.converged)
    if steps < state.window:
        return new
    first, second = (np.mean(half, axis=0) for half in np.array_split(np.stack(path), 2))
    gap = np.abs(first - second) / np.concatenate([q.sd, np.ones(q.dim)])
    if np.max(gap) < state.tol:
        return dataclasses.replace(new, result=Result.stationary)
    return dataclasses.replace(new, window=2 * state.window, path=())


__all__ = ["BatchAndMatch", "BatchState", "match"]
