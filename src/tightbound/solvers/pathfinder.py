"""Pathfinder.

The best of the Gaussians that an L-BFGS search builds on its way up, from one start or from
several.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from .._numerics import host_rng
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..families.mixture import Mixture
from ..objectives.base import AbstractObjective
from ..results import PairingError, Result
from ..search.lbfgs import Evaluate, Path, ascend
from ..targets.base import Density, require
from ..targets.batched import batched
from .base import AbstractSolver, Info

_MEMORY = 6  # curvature pairs behind each estimate, as in the paper
_MAX_DIMENSIONS = 2_000
_NEGLIGIBLE = 1e-6  # weight of a component that is left out of the mixture
_NUMBERS = 2**22  # draws x dim evaluated at once


@dataclasses.dataclass(frozen=True)
class InverseHessian:
    """H = A^(1/2) (I + Q diag(lam) Q') A^(1/2), A = diag(alpha): what L-BFGS believes the
    covariance to be; nothing d x d.

    Attributes:
        alpha: `[d]`, positive.
        basis: Q, `[d, r]`, orthonormal columns.
        excess: lam, `[r]`, each above -1.
    """

    alpha: np.ndarray
    basis: np.ndarray
    excess: np.ndarray

    @classmethod
    def of(cls, alpha: np.ndarray, s: np.ndarray, y: np.ndarray) -> "InverseHessian | None":
        """From pairs of moves and changes of the negative gradient, `[d, m]`, the oldest first.

        None if not positive.

        Source: Byrd, Nocedal & Schnabel 1994, eq. 3.1; Zhang et al. 2022, Algorithms 3 and 4.
        """
        if s.shape[1] == 0:
            return cls(alpha, np.zeros((len(alpha), 0)), np.zeros(0))
        products = s.T @ y
        r_inverse = np.linalg.inv(np.triu(products))
        scaled = alpha[:, None] * y
        corner = r_inverse.T @ (np.diag(np.diagonal(products)) + y.T @ scaled) @ r_inverse
        middle = np.block([[corner, -r_inverse.T], [-r_inverse, np.zeros_like(products)]])
        basis, triangle = np.linalg.qr(
            np.concatenate([s, scaled], axis=1) / np.sqrt(alpha)[:, None]
        )
        excess, vectors = np.linalg.eigh(triangle @ middle @ triangle.T)
        if not np.all(np.isfinite(excess)) or excess.min() <= -1.0 + 1e-12:
            return None
        return cls(alpha, basis @ vectors, excess)

    def times(self, v: np.ndarray) -> np.ndarray:
        """H v."""
        half = np.sqrt(self.alpha) * v
        return np.sqrt(self.alpha) * (half + self.basis @ (self.excess * (self.basis.T @ half)))

    def displace(self, noise: np.ndarray) -> np.ndarray:
        """Rows of standard normals `[n, d]` as rows with covariance H."""
        inner = noise + ((noise @ self.basis) * (np.sqrt(1.0 + self.excess) - 1.0)) @ self.basis.T
        return np.sqrt(self.alpha) * inner

    @property
    def half_log_det(self) -> float:
        return float(0.5 * np.log(self.alpha).sum() + 0.5 * np.log1p(self.excess).sum())


@dataclasses.dataclass(frozen=True)
class PathGaussian:
    """What one path came to: the Gaussian with the largest ELBO along it, and its status.

    Attributes:
        mean: `[d]`; `root`: `[d, d]`, a square root of the covariance.
        elbo: on the draws that chose it, nats: a little too high, as the largest of several.
        index: of the iterate; `length`: how many there are.
        converged: whether the search itself ended at an optimum.
    """

    mean: np.ndarray
    root: np.ndarray
    elbo: float
    index: int
    length: int
    converged: bool


def best_along(
    evaluate: Evaluate, path: Path, noise: np.ndarray, memory: int = _MEMORY
) -> PathGaussian | None:
    """The iterate of `path` whose Gaussian N(x + H g, H) has the largest ELBO on `noise [n, d]`.

    None if none is finite.
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


def inverse_hessians(
    points: np.ndarray, gradients: np.ndarray, memory: int
) -> list[InverseHessian | None]:
    """The estimate at each iterate `[T, d]` of a descent with these gradients (of -log p), from the
    pairs up to it.
    """
    alpha, kept, out = np.ones(points.shape[1]), [], []
    for t in range(len(points)):
        if t > 0:
            s, y = points[t] - points[t - 1], gradients[t] - gradients[t - 1]
            if np.all(np.isfinite(y)) and s @ y > 1e-12 * (y @ y):
                alpha = _updated_diagonal(alpha, s, y)
                kept = [*kept, (s, y)][-memory:]
        pairs = [np.stack(columns, axis=1) for columns in zip(*kept, strict=True)] or [
            np.zeros((len(alpha), 0))
        ] * 2
        out.append(InverseHessian.of(alpha, pairs[0], pairs[1]))
    return out


def _updated_diagonal(alpha: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Gilbert & Lemarechal 1989, eq. 4.9.

    Keeps y' alpha y and s' alpha^-1 s in step with the pair (s, y).
    """
    a, b, c = y @ (alpha * y), y @ s, s @ (s / alpha)
    new = 1.0 / (a / (b * alpha) + y**2 / b - (a * s**2) / (b * c * alpha**2))
    return np.where(np.isfinite(new) & (new > 0), new, alpha)


@dataclasses.dataclass(frozen=True)
class PathfinderState:
    """The paths, what became of those that were looked at, and the noise that judges them."""

    paths: list[Path]
    found: tuple[PathGaussian | None, ...]
    noise: np.ndarray
    result: Result | None = None


class Pathfinder(AbstractSolver):
    """The local Gaussian of largest ELBO along each of several L-BFGS paths.

    Several paths make a mixture.

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
        for name, least in (("paths", 1), ("draws", 2), ("max_iterations", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"Pathfinder: `{name}` must be at least {least}, got {getattr(self, name)}."
                )

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        require(self, target, Density)
        if objective is not None:
            raise PairingError(
                "Pathfinder chooses by the ELBO along its paths and takes no objective, got"
                f" {type(objective).__name__}."
            )
        if target.dim > _MAX_DIMENSIONS:
            raise PairingError(
                f"Pathfinder returns full covariances, too large for {target.dim} dimensions (2,000"
                " at most); use tb.solvers.FixedDraws with tb.families.Gaussian.low_rank(dim,"
                " rank)."
            )

    def own_start(self, target: Any, key: Any, starts: int | None) -> Gaussian:
        """N(0, I), whose draws the paths start at: no search is made for a start."""
        self.check(target, None, None)
        return Gaussian.full(target.dim)

    def init(
        self, target: Any, q: AbstractFamily, objective: Any, key: Any, tol: float
    ) -> PathfinderState:
        starts, _ = q.draw(self.paths + self.paths % 2, host_rng(key, "paths").integers(2**31))
        paths = ascend(
            batched(target),
            starts[: self.paths],
            max_iterations=self.max_iterations,
            memory=_MEMORY,
        )
        half = host_rng(key, "path draws").standard_normal((-(-self.draws // 2), target.dim))
        return PathfinderState(
            paths, (), np.concatenate([half, -half]), None if paths else Result.nonfinite
        )

    def step(
        self, target: Any, q: Any, objective: Any, state: PathfinderState, key: Any
    ) -> tuple[Any, Any, Any, Info]:
        before, path = batched(target).evaluations, state.paths[len(state.found)]
        new = best_along(batched(target), path, state.noise)
        state = dataclasses.replace(state, found=(*state.found, new))
        known = [g for g in state.found if g is not None]
        if len(state.found) == len(state.paths):
            state = dataclasses.replace(
                state, result=Result.converged if known else Result.nonfinite
            )
        loss, position = (np.nan, np.nan) if new is None else (-new.elbo, new.index / new.length)
        used = batched(target).evaluations - before
        return (
            target,
            _combined(known) if known else q,
            state,
            Info(np.float64(loss), np.float64(position), used),
        )

    def done(self, state: PathfinderState) -> Result | None:
        return state.result


def _combined(found: list[PathGaussian]) -> Gaussian | Mixture:
    """One Gaussian, or the mixture of all paths' weighted by exp(ELBO).

    Equal ends of several paths share their weight.
    """
    elbos = np.array([g.elbo for g in found])
    kept = [g for g in found if g.elbo > elbos.max() + np.log(_NEGLIGIBLE)]
    parts = [Gaussian.from_root(g.mean, g.root) for g in kept]
    logits = [g.elbo - np.log(sum(_same_optimum(g, other) for other in kept)) for g in kept]
    return parts[0] if len(parts) == 1 else Mixture(parts, np.array(logits))


def _same_optimum(a: PathGaussian, b: PathGaussian) -> bool:
    """Whether b's mean lies within one of a's sds of a's own (rms)."""
    return bool(np.mean(np.linalg.solve(a.root, b.mean - a.mean) ** 2) < 1.0)


__all__ = ["InverseHessian", "PathGaussian", "Pathfinder", "best_along", "inverse_hessians"]
