"""Fresh draws of q, which all findings share, and the moments that their weights correct.

Weights repair what q gets wrong, but add noise to what it already has right: a correction is
believed only where it exceeds its own Monte Carlo error.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
from jaxtyping import Bool, Float

from .._numerics import key_words
from .._types import Estimate, Key, PyTree
from ..account import CERTIFICATE, Account, Budget, open_account
from ..search.lbfgs import Evaluate
from ..targets.base import AbstractTarget, Density
from ..targets.batched import batched, constrain_batch, evaluations_of
from ..targets.layout import flatten_values
from .fitted import Fitted
from .psis import SmoothedWeights, smooth
from .standards import EFFORT, STANDARDS, Standards

_CHUNK = 2_000_000  # numbers held at once: 16 MB an array
_TINY = 1e-300  # in the place of an sd of zero, so that a constant value has no correction
WHITENED_UP_TO = 500  # dimensions in which a covariance is taken from draws
_MATRIX_UP_TO = 2000  # dimensions in which a diagonal root is still kept as a matrix: 32 MB
_OWN_STREAM = 77  # mixed into the key of a check, which may be that of the fit


class Meter:
    """Counts what a target evaluates, against an allowance (None: no limit)."""

    def __init__(self, target: AbstractTarget, allowance: int | None = None):
        self.target, self.allowance = target, allowance
        self._before = evaluations_of(target)

    @property
    def used(self) -> int:
        """Evaluations since this meter was made."""
        return evaluations_of(self.target) - self._before

    @property
    def left(self) -> int | None:
        """Evaluations that may still be used."""
        return None if self.allowance is None else max(self.allowance - self.used, 0)

    @contextlib.contextmanager
    def rationed(self) -> Iterator[None]:
        """What is evaluated inside may not exceed what is left.

        An account of its own, so that every evaluator enforces it; the account of a fit that is
        open gets the sum.

        Raises:
            BudgetSpent: before an evaluation that would.
        """
        if self.left is None:
            yield
            return
        # A budget of 0 is refused; one evaluation is less than any finding asks for.
        outer, inner = open_account(), Account(Budget(evaluations=max(self.left, 1)))
        try:
            with inner.stage(CERTIFICATE):
                yield
        finally:
            if outer is not None:
                outer.add(inner.total.evaluations)


@dataclasses.dataclass(frozen=True)
class MomentTable:
    """Moments of p values under q and under the target, with the errors of the difference.

    Attributes:
        names: of the values.
        mean: under q, and `sd`.
        corrected_mean: by the importance weights, and `corrected_sd`.
        mean_stderr: Monte Carlo error of the correction of the mean.
        log_sd_stderr: the same of the log of the sd.
    """

    names: tuple[str, ...]
    mean: Float[np.ndarray, "p"]
    sd: Float[np.ndarray, "p"]
    corrected_mean: Float[np.ndarray, "p"]
    corrected_sd: Float[np.ndarray, "p"]
    mean_stderr: Float[np.ndarray, "p"]
    log_sd_stderr: Float[np.ndarray, "p"]

    @property
    def shift(self) -> Float[np.ndarray, "p"]:
        """Corrected mean minus q's, in corrected posterior sds."""
        return (self.corrected_mean - self.mean) / np.maximum(self.corrected_sd, _TINY)

    @property
    def shift_stderr(self) -> Float[np.ndarray, "p"]:
        """Monte Carlo error of `shift`."""
        return self.mean_stderr / np.maximum(self.corrected_sd, _TINY)

    @property
    def log_sd_ratio(self) -> Float[np.ndarray, "p"]:
        """log of corrected sd over q's sd: positive where q is too narrow."""
        return np.log(np.maximum(self.corrected_sd, _TINY) / np.maximum(self.sd, _TINY))

    def believed(self, standards: Standards = STANDARDS) -> Bool[np.ndarray, "p"]:
        """Where a correction of the mean or of the sd exceeds its own error, and is not negligible.

        Of 2 p noises the largest is some sqrt(2 log 2p) standard errors; smaller ones among many
        values are just that.
        """
        largest = float(np.sqrt(2.0 * np.log(2.0 * max(len(self.names), 1))))
        errors, least = max(standards.errors, largest), standards.negligible
        mean = np.abs(self.shift) > np.maximum(errors * self.shift_stderr, least)
        return mean | (np.abs(self.log_sd_ratio) > np.maximum(errors * self.log_sd_stderr, least))


def moment_table(
    names: tuple[str, ...], x: Float[np.ndarray, "n p"], weights: Float[np.ndarray, "n"]
) -> MomentTable:
    """Moments of the columns of x under q (equal weights) and under the target (`weights`, sum 1).

    Standard errors are those of the DIFFERENCE between the weighted and the plain moment, by the
    delta method for self-normalised importance sampling: the plain moment's own error cancels to
    first order where weights are equal.
    """
    width = max(1, _CHUNK // len(x))
    parts = [_moments(x[:, i : i + width], weights) for i in range(0, x.shape[1], width)]
    return MomentTable(names, *(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _moments(
    x: Float[np.ndarray, "n p"], weights: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "p"], ...]:
    """The columns of a MomentTable for a few values at a time, so that temporaries stay small."""
    count = len(x)
    mean = x.mean(axis=0)
    centred = x - mean
    variance = np.mean(centred**2, axis=0)
    shift = weights @ centred
    second = weights @ (centred - shift) ** 2
    # Influence of draw s on the weighted minus the plain moment
    influence = weights[:, None] * (centred - shift) - centred / count
    mean_stderr = np.sqrt(np.sum(influence**2, axis=0))
    influence = weights[:, None] * ((centred - shift) ** 2 / np.maximum(second, _TINY) - 1.0)
    influence -= (centred**2 / np.maximum(variance, _TINY) - 1.0) / count
    log_sd_stderr = 0.5 * np.sqrt(np.sum(influence**2, axis=0))
    return mean, np.sqrt(variance), mean + shift, np.sqrt(second), mean_stderr, log_sd_stderr


@dataclasses.dataclass(frozen=True)
class FreshDraws:
    """n draws of q with their log densities under q and under the target, nats.

    Draw i and draw i + n/2 may be mirror images: standard errors are taken over such pairs.

    Attributes:
        scores: gradients of log p at the draws.
        evaluations: gradients used.
    """

    target: AbstractTarget
    z: Float[np.ndarray, "n dim"]
    log_q: Float[np.ndarray, "n"]
    log_p: Float[np.ndarray, "n"]
    scores: Float[np.ndarray, "n dim"]
    evaluations: int = 0

    @property
    def density(self) -> Evaluate:
        """The target's log density and score at other points; for a target that has one."""
        return batched(cast(Density, self.target))

    @functools.cached_property
    def finite(self) -> Bool[np.ndarray, "n"]:
        """Which draws have a finite log density and score."""
        return np.isfinite(self.log_p) & np.all(np.isfinite(self.scores), axis=1)

    @functools.cached_property
    def log_w(self) -> Float[np.ndarray, "n"]:
        """Log importance weights; -inf where the log density is not finite."""
        return np.where(np.isfinite(self.log_p), self.log_p - self.log_q, -np.inf)

    @functools.cached_property
    def smoothed(self) -> SmoothedWeights:
        """The weights, Pareto smoothed."""
        return smooth(self.log_w)

    @functools.cached_property
    def named(self) -> PyTree:
        """The user's values at the draws, a pytree with leading axis n."""
        return constrain_batch(self.target, self.z)

    @functools.cached_property
    def values(self) -> tuple[tuple[str, ...], Float[np.ndarray, "n p"]]:
        """Names and columns of the user's values."""
        return flatten_values(self.named)

    @functools.cached_property
    def coordinate_table(self) -> MomentTable:
        """The moments of the unconstrained coordinates."""
        return moment_table(self.target.coordinate_names, self.z, self.smoothed.weights)

    @functools.cached_property
    def value_table(self) -> MomentTable:
        """The moments of the user's (constrained and derived) values."""
        names, x = self.values
        return moment_table(names, x, self.smoothed.weights)

    @functools.cached_property
    def tables(self) -> tuple[tuple[MomentTable, Float[np.ndarray, "n _"]], ...]:
        """The moments that are judged, with their columns: coordinates, and the user's values.

        The values only where they are few enough, and there: a log scale has long tails of its own.
        """
        coordinates = (self.coordinate_table, self.z)
        if self.z.size >= EFFORT.most_numbers // 2:
            return (coordinates,)
        _, x = self.values
        if not (0 < x.size <= 2 * EFFORT.most_numbers and np.all(np.isfinite(x))):
            return (coordinates,)
        return coordinates, (self.value_table, x)

    @functools.cached_property
    def elbo(self) -> Estimate:
        """Mean of log p - log q over the draws; -inf where a draw has zero density."""
        if not np.all(np.isfinite(self.log_w)):
            return Estimate(-np.inf, np.nan)
        pairs = 0.5 * (self.log_w[: len(self.z) // 2] + self.log_w[len(self.z) // 2 :])
        return Estimate(float(self.log_w.mean()), float(pairs.std() / np.sqrt(len(pairs))))


@dataclasses.dataclass(frozen=True)
class Whitening:
    """z = mean + root u, so that draws of q have mean 0 and covariance I in u.

    `root` has one axis where only the scales are known.
    """

    mean: Float[np.ndarray, "dim"]
    root: Float[np.ndarray, "dim dim"] | Float[np.ndarray, "dim"]

    @classmethod
    def of(cls, z: Float[np.ndarray, "n dim"]) -> "Whitening":
        """From draws; only the scales where there are too few draws for a covariance."""
        mean, dim = z.mean(axis=0), z.shape[1]
        sd = np.maximum(z.std(axis=0), 1e-300)
        if len(z) < 4 * dim or dim > WHITENED_UP_TO:
            return cls(mean, np.diag(sd) if dim <= _MATRIX_UP_TO else sd)
        u = (z - mean) / sd
        # A little is added so that draws on a plane have a Cholesky factor
        return cls(mean, sd[:, None] * np.linalg.cholesky(u.T @ u / len(u) + 1e-12 * np.eye(dim)))

    def evaluate(self, density: Evaluate) -> Evaluate:
        """The log density and its score as functions of u."""

        def of_u(
            u: Float[np.ndarray, "n dim"],
        ) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n dim"]]:
            if self.root.ndim == 1:
                values, scores = density(self.mean + u * self.root)
                return values, scores * self.root
            values, scores = density(self.mean + u @ self.root.T)
            return values, scores @ self.root

        return of_u

    def to_u(self, z: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
        """The points u of points z."""
        if self.root.ndim == 1:
            return (z - self.mean) / self.root
        return np.linalg.solve(self.root, (z - self.mean).T).T

    def move(self, u: Float[np.ndarray, "dim"]) -> Float[np.ndarray, "dim"]:
        """root u: the move in z that a move in u is."""
        return self.root * u if self.root.ndim == 1 else self.root @ u

    @property
    def log_det(self) -> float:
        """log |root|."""
        return float(
            np.log(self.root).sum() if self.root.ndim == 1 else np.linalg.slogdet(self.root)[1]
        )


def fresh_draws(fitted: Fitted, key: Key, draws: int) -> FreshDraws:
    """Draw from `fitted.q` and evaluate the target there: `draws` gradients of the log density."""
    if not isinstance(fitted.target, Density):
        return unweighed_draws(fitted, key, draws)
    z, log_q = fitted.q.draw(draws, key)
    log_p, scores = batched(fitted.target)(z)
    return FreshDraws(fitted.target, z, log_q, log_p, scores, draws)


def unweighed_draws(fitted: Fitted, key: Key, draws: int) -> FreshDraws:
    """Draws of `fitted.q` that nothing weighs: all weights are equal, and nothing is evaluated."""
    z, log_q = fitted.q.draw(draws, key)
    return FreshDraws(fitted.target, z, log_q, log_q.copy(), np.zeros_like(z))


def fresh_sample(
    fitted: Fitted,
    key: Key,
    draws: int = EFFORT.draws,
    *,
    extend: bool = True,
    allowance: int | None = None,
    reserve: int = 0,
    standards: Standards = STANDARDS,
) -> FreshDraws:
    """The draws that the findings and the summaries share.

    Arguments:
        fitted: the q that is drawn from, and its target.
        key: of the fit or of a check; the draws get one of their own.
        draws: how many, an even number.
        extend: whether to make four times as many where few of them are effective.
        allowance: most gradients that may be used, 200 excepted; None: no limit.
        reserve: gradients of the allowance that are kept for the findings, where enough is left to
            make draws of: a few draws less harm a verdict less than a mode that is not looked for.
        standards: beyond what k-hat more draws would not help.
    """
    fitted = viewed(fitted)
    own_key, most = check_key(key), EFFORT.most_numbers // fitted.q.dim // 2 * 2
    # Nothing is weighed: a few hundred draws show what q is
    if not isinstance(fitted.target, Density):
        draws = min(draws, 2 * EFFORT.least_draws)
    more = min(EFFORT.most_draws, most)
    extend = extend and EFFORT.extended_from <= draws < more
    if allowance is not None:
        extend = extend and draws + more + reserve <= allowance
        spare = allowance - reserve
        spare = spare if spare >= EFFORT.worthwhile_draws else allowance // 2
        draws = min(draws, spare // 2 * 2)
    sample = fresh_draws(fitted, own_key, max(EFFORT.least_draws, min(draws, most)))
    if extend and wants_more(sample, standards):
        return dataclasses.replace(fresh_draws(fitted, own_key, more), evaluations=draws + more)
    return sample


def wants_more(sample: FreshDraws, standards: Standards = STANDARDS) -> bool:
    """Whether more draws would help: few are effective, and the weights not beyond repair."""
    enough = EFFORT.hopeless < sample.smoothed.ess < EFFORT.enough_effective
    return enough and sample.smoothed.khat < standards.khat_fail


NATIVE_VIEWS: list[Callable[[Fitted], Fitted]] = []
"""How a q on native values is seen from R^d; `factors.py`, which knows products, enters it."""


def viewed(fitted: Fitted) -> Fitted:
    """`fitted` itself, or the view of its shown factors where q is a product on native values."""
    if fitted.q.space != "native":
        return fitted
    # Products are the only approximations on native values that a fit returns
    (view,) = NATIVE_VIEWS
    return view(fitted)


def check_key(key: Key) -> int:
    """A key of the check's own, so that passing the fit's key does not reuse the fit's draws."""
    seeds = np.random.SeedSequence([*key_words(key), _OWN_STREAM])
    return int(seeds.generate_state(1)[0])


__all__ = [
    "WHITENED_UP_TO",
    "FreshDraws",
    "Meter",
    "MomentTable",
    "Whitening",
    "check_key",
    "fresh_draws",
    "fresh_sample",
    "moment_table",
    "unweighed_draws",
    "viewed",
    "wants_more",
]
