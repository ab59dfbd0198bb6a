"""Deterministic variational inference: L-BFGS on the ELBO over draws that never change (DADVI), any scale of Gaussian."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from .._numerics import host_rng
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError, Result
from ..targets.base import Density, require
from ..targets.batched import batched
from .base import AbstractSolver, Info
from .lbfgs import Evaluate, LockstepSearch

_ADVANCES = 10  # evaluations of the design per step of the loop
_MEMORY = 8
_FIRST_PAIRS = 32
_WIDEST = 40.0  # |log of the change of a scale|: a trial step beyond it would overflow


@dataclasses.dataclass(frozen=True)
class _Coordinates:
    """Search variables as one vector: mean = mean0 + sd0 a, log D = log D0 + b, U = sd0 V. Whitened by the start's sds."""

    mean: np.ndarray
    sd: np.ndarray
    rank: int

    @property
    def dim(self) -> int:
        return len(self.mean)

    def split(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(mean, D, U) of the search vector."""
        a, b, v = np.split(x, [self.dim, 2 * self.dim])
        return self.mean + self.sd * a, self.sd * np.exp(b), self.sd[:, None] * v.reshape(self.dim, self.rank)

    def join(self, mean: np.ndarray, diagonal: np.ndarray, factor: np.ndarray) -> np.ndarray:
        a, b, v = (mean - self.mean) / self.sd, np.log(diagonal / self.sd), factor / self.sd[:, None]
        return np.concatenate([a, b, v.ravel()])


def fixed_draw_elbo(
    evaluate: Evaluate, at: _Coordinates, x: np.ndarray, noise: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """(ELBO, its gradient in x, scores `[n, d]`) over the draws mean + D noise[:, :d] + U noise[:, d:].

    d ELBO / d mean = E g; / d log D = E[g D e] + D^2 diag(S^-1); / d U = E[g e'] + S^-1 U, with S = D^2 + U U'.
    """
    if not np.all(np.abs(x[at.dim : 2 * at.dim]) < _WIDEST):
        return -np.inf, np.zeros_like(x), np.empty((0, at.dim))
    mean, diagonal, factor = at.split(x)
    own, shared = noise[:, : at.dim], noise[:, at.dim :]
    values, scores = evaluate(mean + diagonal * own + shared @ factor.T)
    if not (np.all(np.isfinite(values)) and np.all(np.isfinite(scores))):
        return -np.inf, np.zeros_like(x), scores
    w = factor / diagonal[:, None]
    capacitance = np.eye(at.rank) + w.T @ w
    pulled = np.linalg.solve(capacitance, w.T).T  # D S^-1 U, `[d, r]`
    entropy = np.log(diagonal).sum() + 0.5 * np.linalg.slogdet(capacitance)[1] + 0.5 * at.dim * (1 + np.log(2 * np.pi))
    count = len(values)
    d_mean = scores.mean(axis=0)
    d_log = np.einsum("ij,ij->j", scores, own) / count * diagonal + 1.0 - np.sum(pulled * w, axis=1)
    d_factor = scores.T @ shared / count + pulled / diagonal[:, None]
    gradient = np.concatenate([at.sd * d_mean, d_log, (at.sd[:, None] * d_factor).ravel()])
    return float(values.mean() + entropy), gradient, scores


def matched_noise(rng: np.random.Generator, pairs: int, dim: int, rank: int) -> np.ndarray:
    """Normals `[pairs, dim + rank]`: unit second moments, the last `rank` columns orthogonal to each other and to the rest.

    Without this the factor learns to cancel the diagonal part's noise on these draws, and q comes out too wide. With enough
    pairs all columns are orthogonal: then the ELBO of every quadratic log density is exact.
    """
    if pairs >= dim + rank:
        return np.linalg.qr(rng.standard_normal((pairs, dim + rank)))[0] * np.sqrt(pairs)
    own, shared = rng.standard_normal((pairs, dim)), rng.standard_normal((pairs, rank))
    shared = np.linalg.qr(shared)[0] * np.sqrt(pairs) if rank else shared
    own -= shared @ (shared.T @ own) / pairs
    own /= np.sqrt(np.mean(own**2, axis=0))
    return np.concatenate([own, shared], axis=1)


@dataclasses.dataclass(frozen=True)
class FixedDrawsState:
    """The search on the current draws, and how many evaluations it has made."""

    at: _Coordinates
    noise: np.ndarray
    search: LockstepSearch
    evaluations: list[int]
    tol: float
    rng: np.random.Generator
    result: Result | None = None


class FixedDraws(AbstractSolver):
    """Maximise the ELBO over fixed antithetic draws by L-BFGS: deterministic, so it knows when it has arrived.

    The default above 300 dimensions (low rank), and a good choice for mean-field fits at any dimension. The number of
    draws is doubled until the sampling error of the means is below `tol` sds, or `max_pairs` is reached. Memory: about 20
    copies of the search vector (2 + rank) d, and the draws. Not for full-rank scales (NaturalGradient needs far fewer
    gradients), nor for noisy densities.

    Arguments:
        max_pairs: most antithetic pairs of draws.

    Source: Giordano, Ingram & Broderick 2023; Burroni, Domke & Sheldon 2024 (batched sample-average approximation).
    """

    max_pairs: int = 128
    compiled: ClassVar[bool] = False

    def default_objective(self) -> AbstractObjective:
        return ELBO()

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        require(self, target, Density)
        if not isinstance(objective, ELBO):
            raise PairingError(
                f"FixedDraws maximises the ELBO and nothing else, got {type(objective).__name__}; leave it out."
            )
        if getattr(getattr(q, "scale", None), "structure", None) not in ("diagonal", "low_rank"):
            raise PairingError(
                "FixedDraws moves a Gaussian with a diagonal or low-rank scale; use tb.families.Gaussian.diagonal(dim) or "
                ".low_rank(dim, rank), or the solver NaturalGradient for a full one."
            )

    def init(self, target: Any, q: Any, objective: Any, key: Any, tol: float) -> FixedDrawsState:
        diagonal, factor = q.scale.parts()
        at = _Coordinates(np.array(q.mean), np.array(q.sd), factor.shape[1])
        rng = host_rng(key, "fixed draws")
        x = at.join(at.mean, np.asarray(diagonal), np.asarray(factor))
        state = self._on_draws(target, at, x, rng, max(min(_FIRST_PAIRS, self.max_pairs), 2 * at.rank), tol)
        return state if len(state.search.x) else dataclasses.replace(state, result=Result.nonfinite)

    def _on_draws(self, target: Any, at: _Coordinates, x: np.ndarray, rng: Any, pairs: int, tol: float) -> FixedDrawsState:
        half = matched_noise(rng, pairs, at.dim, at.rank)
        noise = np.concatenate([half, -half])
        counter = [0]

        def evaluate(points):
            counter[0] += len(points) * len(noise)
            parts = [fixed_draw_elbo(batched(target), at, point, noise)[:2] for point in points]
            return np.array([v for v, _ in parts]), np.stack([g for _, g in parts])

        return FixedDrawsState(at, noise, LockstepSearch(evaluate, x[None], _MEMORY, 0.1 * tol), counter, tol, rng)

    def step(self, target: Any, q: Any, objective: Any, state: FixedDrawsState, key: Any) -> tuple[Any, Any, Any, Info]:
        before, search = state.evaluations[0], state.search
        x0 = search.x[0].copy()
        running = True
        for _ in range(_ADVANCES):
            running = search.advance(10_000)
            if not running:
                break
        used = state.evaluations[0] - before
        x, loss = search.x[0], search.f[0]
        if not running:
            state, extra = self._settle(target, state, x)
            used += extra
        change = float(np.sqrt(np.mean((x - x0)[: state.at.dim] ** 2)))
        return target, _gaussian(q, *state.at.split(x)), state, Info(np.float64(loss), np.float64(change), used)

    def done(self, state: FixedDrawsState) -> Result | None:
        return state.result

    def _settle(self, target: Any, state: FixedDrawsState, x: np.ndarray) -> tuple[FixedDrawsState, int]:
        """The search has arrived on these draws: finish when their own error is small, else draw twice as many."""
        _, _, scores = fixed_draw_elbo(batched(target), state.at, x, state.noise)
        pairs, extra = len(state.noise) // 2, len(state.noise)
        if _sampling_error(state.at, x, scores) < state.tol:
            return dataclasses.replace(state, result=Result.converged), extra
        if 2 * pairs > self.max_pairs:
            return dataclasses.replace(state, result=Result.noisy), extra
        return self._on_draws(target, state.at, x, state.rng, 2 * pairs, state.tol), extra


def _sampling_error(at: _Coordinates, x: np.ndarray, scores: np.ndarray) -> float:
    """Root-mean-square standard error of the means in posterior sds: spread of S g over pairs, as a Newton step moves."""
    _, diagonal, factor = at.split(x)
    pairs = len(scores) // 2
    even = 0.5 * (scores[:pairs] + scores[pairs:])
    even = even - even.mean(axis=0)
    moves = even * diagonal**2 + (even @ factor) @ factor.T
    sd = np.sqrt(diagonal**2 + np.sum(factor**2, axis=1))
    return float(np.sqrt(np.mean(np.mean(moves**2, axis=0) / sd**2) / max(pairs - 1, 1)))


def _gaussian(q: Any, mean: np.ndarray, diagonal: np.ndarray, factor: np.ndarray) -> Gaussian:
    scale = type(q.scale)
    return Gaussian(mean, scale(np.log(diagonal)) if q.scale.structure == "diagonal" else scale(factor, np.log(diagonal)))
