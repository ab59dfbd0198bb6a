"""Deterministic variational inference for diagonal and low-rank Gaussians.

The ELBO over draws that never change (DADVI).
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from .._numerics import host_rng
from ..estimators.fixed_design import matched_noise
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError, Result
from ..search.lbfgs import Evaluate, LockstepSearch
from ..search.mean_field import MeanFieldSearch
from ..targets.base import Density, require
from ..targets.batched import batched
from .base import AbstractSolver, Info

_ADVANCES = 10  # evaluations of the design per step of the loop
_MEMORY = 8
_FIRST_PAIRS = 32
_TIGHT = 0.1  # of tol: the square root of the nats that a search may leave on the table
# gradient in a whitened mean or a log sd from which a low-rank start is rescaled first
_FAR_OFF = 2.0
_WIDEST = 40.0  # |log of the change of a scale|: a trial step beyond it would overflow


@dataclasses.dataclass(frozen=True)
class _Coordinates:
    """Search variables as one vector: mean = mean0 + sd0 a, log D = log D0 + b, U = sd0 V.

    Whitened by the start's sds.
    """

    mean: np.ndarray
    sd: np.ndarray
    rank: int

    @property
    def dim(self) -> int:
        return len(self.mean)

    def split(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(mean, D, U) of the search vector."""
        a, b, v = np.split(x, [self.dim, 2 * self.dim])
        return (
            self.mean + self.sd * a,
            self.sd * np.exp(b),
            self.sd[:, None] * v.reshape(self.dim, self.rank),
        )

    def join(self, mean: np.ndarray, diagonal: np.ndarray, factor: np.ndarray) -> np.ndarray:
        a, b, v = (
            (mean - self.mean) / self.sd,
            np.log(diagonal / self.sd),
            factor / self.sd[:, None],
        )
        return np.concatenate([a, b, v.ravel()])


def fixed_draw_elbo(
    evaluate: Evaluate, at: _Coordinates, x: np.ndarray, noise: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """(ELBO, its gradient in x, scores `[n, d]`) over the draws mean + D noise[:, :d] + U noise[:,
    d:].

    d ELBO / d mean = E g; / d log D = E[g D e] + D^2 diag(S^-1); / d U = E[g e'] + S^-1 U, with S =
    D^2 + U U'.
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
    entropy = (
        np.log(diagonal).sum()
        + 0.5 * np.linalg.slogdet(capacitance)[1]
        + 0.5 * at.dim * (1 + np.log(2 * np.pi))
    )
    count = len(values)
    d_mean = scores.mean(axis=0)
    d_log = np.einsum("ij,ij->j", scores, own) / count * diagonal + 1.0 - np.sum(pulled * w, axis=1)
    d_factor = scores.T @ shared / count + pulled / diagonal[:, None]
    gradient = np.concatenate([at.sd * d_mean, d_log, (at.sd[:, None] * d_factor).ravel()])
    return float(values.mean() + entropy), gradient, scores


class LowRankSearch:
    """L-BFGS on mean, diagonal and factor of a low-rank q over fixed draws `[n, d + rank]`."""

    def __init__(
        self, evaluate: Evaluate, at: _Coordinates, x: np.ndarray, noise: np.ndarray, gtol: float
    ):
        self.at, self.noise, self.density = at, noise, evaluate
        self._search = LockstepSearch(self._evaluated, x[None], _MEMORY, gtol)
        self.usable = len(self._search.x) == 1
        self._start = x

    @property
    def loss(self) -> float:
        return float(self._search.f[0]) if self.usable else np.inf

    @property
    def mean(self) -> np.ndarray:
        return self.parts()[0]

    @property
    def scores(self) -> np.ndarray:
        return fixed_draw_elbo(self.density, self.at, self._search.x[0], self.noise)[2]

    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(mean, D, U) of q."""
        return self.at.split(self._search.x[0] if self.usable else self._start)

    def advance(self) -> bool:
        """A few evaluations; False when the search has ended."""
        return all(self._search.advance(10_000) for _ in range(_ADVANCES))

    def _evaluated(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [fixed_draw_elbo(self.density, self.at, point, self.noise)[:2] for point in points]
        return np.array([v for v, _ in parts]), np.stack([g for _, g in parts])


@dataclasses.dataclass(frozen=True)
class FixedDrawsState:
    """The search on the current draws.

    `rescaling` while the mean and the sds alone are sought for a low-rank q.
    """

    search: MeanFieldSearch | LowRankSearch
    noise: np.ndarray  # [2 pairs, dim + rank]
    tol: float
    rng: np.random.Generator
    rescaling: bool = False
    result: Result | None = None


class FixedDraws(AbstractSolver):
    """Maximise the ELBO over fixed antithetic draws: deterministic, so it knows when it has
    arrived.

    The default above 300 dimensions (low rank), and a good choice for mean-field fits at any
    dimension. A diagonal scale is found by trust-region Newton with truncated conjugate gradients
    (DADVI), a low-rank one by L-BFGS, after the sds alone where the start's are far off. The number
    of draws is doubled until the sampling error of the means is below `tol` sds, or `max_pairs` is
    reached. Memory: the draws and their scores, and for a low-rank scale about 20 copies of the
    search vector (2 + rank) d. Not for full-rank scales (NaturalGradient needs far fewer
    gradients), nor for noisy densities.

    Arguments:
        max_pairs: most antithetic pairs of draws.

    Source: Giordano, Ingram & Broderick 2024 (DADVI); Burroni, Domke & Sheldon 2024 (sample-average
    approximation).
    """

    max_pairs: int = 128
    compiled: ClassVar[bool] = False

    def default_objective(self) -> AbstractObjective:
        return ELBO()

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        require(self, target, Density)
        if not isinstance(objective, ELBO):
            raise PairingError(
                f"FixedDraws maximises the ELBO and nothing else, got {type(objective).__name__};"
                " leave it out."
            )
        if q.covariance_structure not in ("diagonal", "low_rank"):
            raise PairingError(
                "FixedDraws moves a Gaussian with a diagonal or low-rank scale; use"
                " tb.families.Gaussian.diagonal(dim) or .low_rank(dim, rank), or the solver"
                " NaturalGradient for a full one."
            )

    def init(self, target: Any, q: Any, objective: Any, key: Any, tol: float) -> FixedDrawsState:
        diagonal, factor = (np.asarray(part) for part in q.scale.parts())
        rank, rng = factor.shape[1], host_rng(key, "fixed draws")
        parts = (np.array(q.mean, dtype=np.float64), np.array(diagonal), factor)
        pairs = max(min(_FIRST_PAIRS, self.max_pairs), 2 * rank)
        state = self._on_draws(target, parts, np.array(q.sd), rng, pairs, tol)
        if not state.search.usable:
            return dataclasses.replace(state, result=Result.nonfinite)
        return self._rescaled_first(target, state, np.array(q.sd)) if rank else state

    def _on_draws(
        self,
        target: Any,
        parts: tuple[np.ndarray, ...],
        sd: np.ndarray,
        rng: Any,
        pairs: int,
        tol: float,
    ) -> FixedDrawsState:
        mean, _, factor = parts
        half = matched_noise(rng, pairs, len(mean), factor.shape[1])
        noise = np.concatenate([half, -half])
        return FixedDrawsState(_search_from(target, parts, sd, noise, tol), noise, tol, rng)

    def _rescaled_first(
        self, target: Any, state: FixedDrawsState, sd: np.ndarray
    ) -> FixedDrawsState:
        """The same state, or one that looks for mean and sds alone where they are far off.

        L-BFGS needs them.
        """
        search = MeanFieldSearch(
            batched(target), state.search.mean, sd, state.noise[:, : len(sd)], _TIGHT * state.tol
        )
        if not search.usable or np.abs(search.at.gradient).max() < _FAR_OFF:
            return state
        return dataclasses.replace(state, search=search, rescaling=True)

    def step(
        self, target: Any, q: Any, objective: Any, state: FixedDrawsState, key: Any
    ) -> tuple[Any, Any, Any, Info]:
        before, old = batched(target).evaluations, state.search.mean
        running = state.search.advance()
        mean, diagonal, factor = state.search.parts()
        moved = float(
            np.sqrt(np.mean(((mean - old) / np.sqrt(diagonal**2 + np.sum(factor**2, axis=1))) ** 2))
        )
        loss = state.search.loss
        if state.rescaling:
            stretch = diagonal / np.asarray(q.sd)
            own, shared = q.scale.parts()
            diagonal, factor = stretch * own, stretch[:, None] * shared
        q = _gaussian(q, mean, diagonal, factor)
        if not running:
            state = self._settle(target, state, q)
        return (
            target,
            q,
            state,
            Info(np.float64(loss), np.float64(moved), batched(target).evaluations - before),
        )

    def done(self, state: FixedDrawsState) -> Result | None:
        return state.result

    def _settle(self, target: Any, state: FixedDrawsState, q: Any) -> FixedDrawsState:
        """The search has arrived on these draws.

        Finish when their own error is small, else draw twice as many.
        """
        parts = (np.asarray(q.mean), *(np.asarray(part) for part in q.scale.parts()))
        if state.rescaling:
            search = _search_from(target, parts, np.asarray(q.sd), state.noise, state.tol)
            return dataclasses.replace(state, search=search, rescaling=False)
        pairs = len(state.noise) // 2
        if _sampling_error(parts, state.search.scores, state.noise) < state.tol:
            return dataclasses.replace(state, result=Result.converged)
        if 2 * pairs > self.max_pairs:
            return dataclasses.replace(state, result=Result.noisy)
        return self._on_draws(target, parts, np.asarray(q.sd), state.rng, 2 * pairs, state.tol)


def _search_from(
    target: Any, parts: tuple[np.ndarray, ...], sd: np.ndarray, noise: np.ndarray, tol: float
) -> MeanFieldSearch | LowRankSearch:
    """The search for this structure, from (mean, D, U) with marginal sds `sd`."""
    mean, diagonal, factor = parts
    if factor.shape[1] == 0:
        return MeanFieldSearch(batched(target), mean, diagonal, noise, _TIGHT * tol)
    at = _Coordinates(mean, sd, factor.shape[1])
    return LowRankSearch(batched(target), at, at.join(mean, diagonal, factor), noise, _TIGHT * tol)


def _sampling_error(parts: tuple[np.ndarray, ...], scores: np.ndarray, noise: np.ndarray) -> float:
    """Root-mean-square standard error of the means in posterior sds: spread of S g over pairs, as a
    Newton step moves.

    Of a mean-field q at least a fifth of the precisions' relative error, as in `NaturalGradient`: a
    posterior without skew has no error in the means on antithetic draws, however wrong the sds are.
    """
    _, diagonal, factor = parts
    pairs = len(scores) // 2
    even = 0.5 * (scores[:pairs] + scores[pairs:])
    even = even - even.mean(axis=0)
    moves = even * diagonal**2 + (even @ factor) @ factor.T
    sd = np.sqrt(diagonal**2 + np.sum(factor**2, axis=1))
    of_means = float(np.sqrt(np.mean(np.mean(moves**2, axis=0) / sd**2) / max(pairs - 1, 1)))
    return (
        of_means
        if factor.shape[1]
        else max(of_means, 0.2 * _precision_error(diagonal, scores, noise))
    )


def _precision_error(sd: np.ndarray, scores: np.ndarray, noise: np.ndarray) -> float:
    """Root-mean-square relative standard error of -E[g e] / sd, which the precisions of a
    mean-field q equal.

    What the matched moments of the draws explain has no error: all of the linear part with as many
    pairs as dimensions, each coordinate's own with fewer.
    """
    pairs, dim = len(noise) // 2, len(sd)
    odd, own = 0.5 * (scores[:pairs] - scores[pairs:]) * sd, noise[:pairs]
    explained = own @ (own.T @ odd / pairs) if pairs >= dim else own * np.mean(own * odd, axis=0)
    return float(np.sqrt(np.sum((own * (odd - explained)) ** 2) / (pairs**2 * dim)))


def _gaussian(q: Any, mean: np.ndarray, diagonal: np.ndarray, factor: np.ndarray) -> Gaussian:
    scale = type(q.scale)
    return Gaussian(
        mean,
        (
            scale(np.log(diagonal))
            if q.scale.structure == "diagonal"
            else scale(factor, np.log(diagonal))
        ),
    )
