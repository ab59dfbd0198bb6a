"""Pathfinder: the best of the Gaussians that an L-BFGS search builds on its way up.

From one start or from several.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from .._numerics import host_rng
from .._types import Key
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..families.mixture import Mixture
from ..objectives.base import AbstractObjective
from ..results import PairingError, Result
from ..search.inverse_hessian import inverse_hessians
from ..search.lbfgs import Evaluate, Path, ascend
from ..targets.base import AbstractTarget, Density, require
from ..targets.batched import batched
from .base import AbstractSolver, Info, check_no_objective

_MEMORY = 6  # curvature pairs behind each estimate, as in the paper
_MAX_DIMENSIONS = 2_000  # of a covariance: 32 MB of doubles
_NEGLIGIBLE = 1e-6  # weight of a component that is left out of the mixture
_NUMBERS = 2**22  # draws x dim evaluated at once: 32 MB of doubles


@dataclasses.dataclass(frozen=True)
class PathGaussian:
    """What one path came to: the Gaussian with the largest ELBO along it, and its status.

    Attributes:
        mean: of the Gaussian.
        root: a square root of the covariance.
        elbo: on the draws that chose it, nats: a little too high, as the largest of several.
        index: of the iterate.
        length: how many iterates there are.
        converged: whether the search itself ended at an optimum.
    """

    mean: Float[np.ndarray, "dim"]
    root: Float[np.ndarray, "dim dim"]
    elbo: float
    index: int
    length: int
    converged: bool


def best_along(
    evaluate: Evaluate, path: Path, noise: Float[np.ndarray, "n dim"], memory: int = _MEMORY
) -> PathGaussian | None:
    """The iterate whose Gaussian N(x + H g, H) has the largest ELBO; None if none is finite.

    Arguments:
        evaluate: the log density.
        path: the iterates x, with scores g.
        noise: standard normals of the draws, the same for each iterate.
        memory: curvature pairs behind each H.
    """
    points = path.points
    scores = evaluate(points)[1]
    found = [
        (t, points[t] + h.times(scores[t]), h)
        for t, h in enumerate(inverse_hessians(points, -scores, memory))
        if h is not None and np.all(np.isfinite(scores[t]))
    ]
    if not found:
        return None
    half_squares = 0.5 * np.mean(np.sum(noise**2, axis=1))
    constant = 0.5 * points.shape[1] * np.log(2 * np.pi) + half_squares
    elbos = []
    for block in np.array_split(np.arange(len(found)), max(1, len(found) * noise.size // _NUMBERS)):
        draws = np.concatenate([found[i][1] + found[i][2].displace(noise) for i in block])
        values = evaluate(draws)[0].reshape(len(block), len(noise))
        elbos += [
            v.mean() + found[i][2].half_log_det + constant
            for i, v in zip(block, values, strict=True)
        ]
    elbos = np.where(np.isfinite(elbos), elbos, -np.inf)
    best = int(np.argmax(elbos))
    if not np.isfinite(elbos[best]):
        return None
    index, mean, h = found[best]
    return PathGaussian(
        mean,
        h.displace(np.eye(len(mean))).T,
        float(elbos[best]),
        index,
        len(points),
        path.converged,
    )


@dataclasses.dataclass(frozen=True)
class PathfinderState:
    """The paths, what became of those that were looked at, and the noise that judges them."""

    paths: list[Path]
    found: tuple[PathGaussian | None, ...]
    noise: Float[np.ndarray, "n dim"]
    result: Result | None = None


class Pathfinder(AbstractSolver):
    """The local Gaussian of largest ELBO along each of several L-BFGS paths: a mixture of them.

    A quick approximation, and a start for samplers: a few hundred gradients per path and no tuning,
    also where the mode does not exist. Components are weighted by their ELBOs, so that several
    modes count by their mass, and `fit.sample(key, n, corrected=True, replace=False)` resamples
    across paths by importance. Each path is one step of `fit.trace`: its loss is minus the best
    ELBO, NaN where no iterate was usable. Paths start at draws of `q`, N(0, I) on the unconstrained
    scale unless given. Not where accuracy counts: the covariance is that of a few curvature pairs,
    and NaturalGradient from the same start costs little more. Not above 2,000 dimensions.

    Arguments:
        paths: searches; 1 returns a Gaussian.
        draws: for the ELBO of each iterate, an even number: mirrored pairs, the same for all.
        max_iterations: of each search.

    Source: Zhang, Carpenter, Gelman & Vehtari 2022, Algorithms 1 and 2.
    """

    paths: int = 4
    draws: int = 32
    max_iterations: int = 200
    compiled: ClassVar[bool] = False

    def __check_init__(self):
        for name, value, least in (
            ("paths", self.paths, 1),
            ("draws", self.draws, 2),
            ("max_iterations", self.max_iterations, 1),
        ):
            if value < least:
                raise ValueError(f"Pathfinder: `{name}` must be at least {least}, got {value}.")

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        density = require(self, target, Density)
        check_no_objective(self, objective, "chooses by the ELBO along its paths")
        _refuse_many_dimensions(density)

    def own_start(
        self, target: AbstractTarget, key: Key, starts: int | None
    ) -> AbstractFamily | None:
        """N(0, I), whose draws the paths start at: no search is made for a start."""
        density = require(self, target, Density)
        _refuse_many_dimensions(density)  # before a covariance of that size is made
        return Gaussian.full(density.dim)

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> PathfinderState:
        density = require(self, target, Density)
        # Draws come in mirrored pairs: of an odd number of paths one is left out
        starts, _ = q.draw(self.paths + self.paths % 2, host_rng(key, "paths").integers(2**31))
        paths = ascend(
            batched(density),
            starts[: self.paths],
            max_iterations=self.max_iterations,
            memory=_MEMORY,
        )
        half = host_rng(key, "path draws").standard_normal((-(-self.draws // 2), density.dim))
        return PathfinderState(
            paths, (), np.concatenate([half, -half]), None if paths else Result.nonfinite
        )

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: PathfinderState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, PathfinderState, Info]:
        evaluate = batched(require(self, target, Density))
        before, path = evaluate.evaluations, state.paths[len(state.found)]
        new = best_along(evaluate, path, state.noise)
        state = dataclasses.replace(state, found=(*state.found, new))
        known = [g for g in state.found if g is not None]
        if len(state.found) == len(state.paths):
            state = dataclasses.replace(
                state, result=Result.converged if known else Result.nonfinite
            )
        loss, position = (np.nan, np.nan) if new is None else (-new.elbo, new.index / new.length)
        used = evaluate.evaluations - before
        return (
            target,
            _combined(known) if known else q,
            state,
            Info(np.float64(loss), np.float64(position), used),
        )

    def done(self, state: PathfinderState) -> Result | None:
        return state.result


def _refuse_many_dimensions(target: Density) -> None:
    if target.dim > _MAX_DIMENSIONS:
        raise PairingError(
            f"Pathfinder returns full covariances, too large for {target.dim} dimensions (2,000"
            " at most); use tb.solvers.FixedDraws with tb.families.Gaussian.low_rank(dim,"
            " rank)."
        )


def _combined(found: list[PathGaussian]) -> Gaussian | Mixture:
    """One Gaussian, or the mixture of all paths' Gaussians weighted by exp(ELBO).

    exp(ELBO) is about the mass of a mode, which several paths to the same mode must not count
    several times: equal ends share their weight.
    """
    elbos = np.array([g.elbo for g in found])
    kept = [g for g in found if g.elbo > elbos.max() + np.log(_NEGLIGIBLE)]
    parts = [Gaussian.from_root(g.mean, g.root) for g in kept]
    logits = [g.elbo - np.log(sum(_same_optimum(g, other) for other in kept)) for g in kept]
    return parts[0] if len(parts) == 1 else Mixture(parts, np.array(logits))


def _same_optimum(a: PathGaussian, b: PathGaussian) -> bool:
    """Whether b's mean lies within one of a's sds of a's own (rms)."""
    return bool(np.mean(np.linalg.solve(a.root, b.mean - a.mean) ** 2) < 1.0)


__all__ = ["PathGaussian", "Pathfinder", "PathfinderState", "best_along"]
