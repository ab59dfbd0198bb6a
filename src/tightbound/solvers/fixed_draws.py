"""Deterministic variational inference for diagonal and low-rank Gaussians (DADVI).

The ELBO over draws that never change.
"""

import dataclasses
from typing import ClassVar, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from .._numerics import host_rng
from .._types import Key
from ..estimators.fixed_design import matched_noise
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..families.low_rank import LowRank
from ..families.scales import Diagonal
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError, Result
from ..search.low_rank import Coordinates, LowRankSearch
from ..search.mean_field import MeanFieldSearch
from ..search.natural_rule import OF_PRECISIONS
from ..targets.base import AbstractTarget, Density, require
from ..targets.batched import batched
from .base import AbstractSolver, Info, check_elbo

_FIRST_PAIRS = 32  # enough for the first digit of an sd; more come when the search has settled
_TIGHT = 0.1  # of tol: the square root of the nats that a search may leave on the table
# Gradient in a whitened mean or a log sd from which a low-rank start is rescaled first
_FAR_OFF = 2.0


class Parts(NamedTuple):
    """N(mean, D^2 + U U'); U has no columns where q is mean-field."""

    mean: Float[np.ndarray, "dim"]
    diagonal: Float[np.ndarray, "dim"]
    factor: Float[np.ndarray, "dim rank"]

    @staticmethod
    def of(q: Gaussian) -> "Parts":
        """Those of a Gaussian, as float64 on the host."""
        diagonal, factor = (np.array(part) for part in q.scale.parts())
        return Parts(np.array(q.mean, dtype=np.float64), diagonal, factor)

    @property
    def sd(self) -> Float[np.ndarray, "dim"]:
        """Marginal standard deviations."""
        return np.sqrt(self.diagonal**2 + np.sum(self.factor**2, axis=1))

    def gaussian(self) -> Gaussian:
        """The Gaussian, in the form without a factor where there is none."""
        log_diagonal = np.log(self.diagonal)
        if self.factor.shape[1] == 0:
            return Gaussian(self.mean, Diagonal(log_diagonal))
        return Gaussian(self.mean, LowRank(self.factor, log_diagonal))


@dataclasses.dataclass(frozen=True)
class FixedDrawsState:
    """The search on the current draws.

    Attributes:
        search: for the scale of q.
        noise: standard normals of the draws, the second half minus the first.
        tol: accuracy asked for, in posterior sds.
        rng: of more draws.
        rescaling: whether the mean and the sds alone are sought, for a low-rank q.
        result: how the run has ended.
    """

    search: MeanFieldSearch | LowRankSearch
    noise: Float[np.ndarray, "n noise"]
    tol: float
    rng: np.random.Generator
    rescaling: bool = False
    result: Result | None = None


class FixedDraws(AbstractSolver):
    """Maximise the ELBO over fixed antithetic draws.

    Deterministic, so it knows when it has arrived. The default above 300 dimensions (low rank), and
    a good choice for mean-field fits at any dimension. A diagonal scale is found by trust-region
    Newton with truncated conjugate gradients (DADVI), a low-rank one by L-BFGS, after the sds alone
    where the start's are far off. The number of draws is doubled until the sampling error of the
    means is below `tol` sds, or `max_pairs` is reached. Memory: the draws and their scores, and for
    a low-rank scale about 20 copies of the search vector (2 + rank) d. Not for full-rank scales
    (NaturalGradient needs far fewer gradients), nor for noisy densities.

    Arguments:
        max_pairs: most antithetic pairs of draws.

    Source: Giordano, Ingram & Broderick 2024 (DADVI); Burroni, Domke & Sheldon 2024 (sample-average
    approximation).
    """

    max_pairs: int = 128
    compiled: ClassVar[bool] = False

    def default_objective(self) -> AbstractObjective:
        return ELBO()

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        require(self, target, Density)
        check_elbo(self, objective)
        if q.covariance_structure not in ("diagonal", "low_rank"):
            raise PairingError(
                "FixedDraws moves a Gaussian with a diagonal or low-rank scale; use"
                " tb.families.Gaussian.diagonal(dim) or .low_rank(dim, rank), or the solver"
                " NaturalGradient for a full one."
            )

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> FixedDrawsState:
        density, start = require(self, target, Density), cast(Gaussian, q)  # by `check`
        parts, sd, rng = Parts.of(start), np.array(start.sd), host_rng(key, "fixed draws")
        rank = parts.factor.shape[1]
        pairs = max(min(_FIRST_PAIRS, self.max_pairs), 2 * rank)
        state = self._on_draws(density, parts, sd, rng, pairs, tol)
        if not state.search.usable:
            return dataclasses.replace(state, result=Result.nonfinite)
        return self._rescaled_first(density, state, sd) if rank else state

    def _on_draws(
        self,
        target: Density,
        parts: Parts,
        sd: Float[np.ndarray, "dim"],
        rng: np.random.Generator,
        pairs: int,
        tol: float,
    ) -> FixedDrawsState:
        """The state on this many new pairs of draws."""
        half = matched_noise(rng, pairs, len(parts.mean), parts.factor.shape[1])
        noise = np.concatenate([half, -half])
        return FixedDrawsState(_search_from(target, parts, sd, noise, tol), noise, tol, rng)

    def _rescaled_first(
        self, target: Density, state: FixedDrawsState, sd: Float[np.ndarray, "dim"]
    ) -> FixedDrawsState:
        """The same state, or one that looks for mean and sds alone where they are far off.

        L-BFGS needs them: it has no idea of scale of its own.
        """
        search = MeanFieldSearch(
            batched(target), state.search.mean, sd, state.noise[:, : len(sd)], _TIGHT * state.tol
        )
        if not search.usable or np.abs(search.at.gradient).max() < _FAR_OFF:
            return state
        return dataclasses.replace(state, search=search, rescaling=True)

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: FixedDrawsState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, FixedDrawsState, Info]:
        density, old = require(self, target, Density), cast(Gaussian, q)  # by `check`
        before, old_mean = batched(density).evaluations, state.search.mean
        running = state.search.advance()
        parts = Parts(*state.search.parts())
        moved = float(np.sqrt(np.mean(((parts.mean - old_mean) / parts.sd) ** 2)))
        loss = state.search.loss
        if state.rescaling:
            # The search knows sds alone: the shape of q is kept, and stretched to them.
            stretch = parts.diagonal / np.asarray(old.sd)
            own, shared = old.scale.parts()
            parts = Parts(
                parts.mean,
                stretch * np.asarray(own),
                stretch[:, None] * np.asarray(shared),
            )
        new = parts.gaussian()
        if not running:
            state = self._settle(density, state, new)
        used = batched(density).evaluations - before
        return target, new, state, Info(np.float64(loss), np.float64(moved), used)

    def done(self, state: FixedDrawsState) -> Result | None:
        return state.result

    def _settle(self, target: Density, state: FixedDrawsState, q: Gaussian) -> FixedDrawsState:
        """The search has arrived on these draws.

        Finish when their own error is small, else draw twice as many.
        """
        parts = Parts.of(q)
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
    target: Density,
    parts: Parts,
    sd: Float[np.ndarray, "dim"],
    noise: Float[np.ndarray, "n noise"],
    tol: float,
) -> MeanFieldSearch | LowRankSearch:
    """The search for this structure, from these parts with marginal sds `sd`."""
    mean, diagonal, factor = parts
    if factor.shape[1] == 0:
        return MeanFieldSearch(batched(target), mean, diagonal, noise, _TIGHT * tol)
    at = Coordinates(mean, sd, factor.shape[1])
    return LowRankSearch(batched(target), at, at.join(mean, diagonal, factor), noise, _TIGHT * tol)


def _sampling_error(
    parts: Parts, scores: Float[np.ndarray, "n dim"], noise: Float[np.ndarray, "n noise"]
) -> float:
    """Standard error of the means in posterior sds, rms: the spread of S g over pairs.

    S g is how a Newton step moves. Of a mean-field q at least a fifth of the precisions' relative
    error, as in `NaturalGradient`: a posterior without skew has no error in the means on antithetic
    draws, however wrong the sds are.
    """
    _, diagonal, factor = parts
    pairs = len(scores) // 2
    # Mirror images see the same odd terms with opposite signs, so only the even part is noise.
    even = 0.5 * (scores[:pairs] + scores[pairs:])
    even = even - even.mean(axis=0)
    moves = even * diagonal**2 + (even @ factor) @ factor.T
    of_means = float(np.sqrt(np.mean(np.mean(moves**2, axis=0) / parts.sd**2) / max(pairs - 1, 1)))
    if factor.shape[1]:
        return of_means
    return max(of_means, OF_PRECISIONS * _precision_error(diagonal, scores, noise))


def _precision_error(
    sd: Float[np.ndarray, "dim"],
    scores: Float[np.ndarray, "n dim"],
    noise: Float[np.ndarray, "n dim"],
) -> float:
    """Relative standard error of -E[g e] / sd, which the precisions of a mean-field q equal, rms.

    What the matched moments of the draws explain has no error: all of the linear part with as many
    pairs as dimensions, each coordinate's own with fewer.
    """
    pairs, dim = len(noise) // 2, len(sd)
    odd, own = 0.5 * (scores[:pairs] - scores[pairs:]) * sd, noise[:pairs]
    explained = own @ (own.T @ odd / pairs) if pairs >= dim else own * np.mean(own * odd, axis=0)
    return float(np.sqrt(np.sum((own * (odd - explained)) ** 2) / (pairs**2 * dim)))


__all__ = ["FixedDraws", "FixedDrawsState"]
