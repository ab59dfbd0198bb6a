"""Importance-corrected means, sds and quantiles, and the rule for when a correction is believed.

Weights repair what q gets wrong, but add noise to what it already has right; a summary is corrected
only where the correction exceeds its own Monte Carlo error.
"""

import dataclasses

import numpy as np

from .draws import FreshDraws

_CHUNK = 2_000_000  # numbers held at once: 16 MB an array
_NEGLIGIBLE = 1e-3
_BELIEVE = 2.0  # standard errors that a correction must exceed, at least
_QUANTILES = (0.05, 0.5, 0.95)


@dataclasses.dataclass(frozen=True)
class MomentTable:
    """Per value.

    Q's own mean and sd, the corrected ones, and the Monte Carlo errors of the corrections; all
    `[P]`.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    corrected_mean: np.ndarray
    corrected_sd: np.ndarray
    mean_stderr: np.ndarray
    log_sd_stderr: np.ndarray

    @property
    def shift(self) -> np.ndarray:
        """Corrected mean minus q's, in corrected posterior sds."""
        return (self.corrected_mean - self.mean) / _positive(self.corrected_sd)

    @property
    def shift_stderr(self) -> np.ndarray:
        return self.mean_stderr / _positive(self.corrected_sd)

    @property
    def log_sd_ratio(self) -> np.ndarray:
        """log of corrected sd over q's sd: positive where q is too narrow."""
        return np.log(_positive(self.corrected_sd) / _positive(self.sd))

    @property
    def believed(self) -> np.ndarray:
        """Where a correction exceeds its own error, and 0.001 sd, in the mean or in the sd: `[P]`
        booleans.

        Of 2 P noises the largest is some sqrt(2 log 2P) standard errors; smaller ones among many
        values are just that.
        """
        errors = max(_BELIEVE, float(np.sqrt(2.0 * np.log(2.0 * max(len(self.names), 1)))))
        mean = np.abs(self.shift) > np.maximum(errors * self.shift_stderr, _NEGLIGIBLE)
        return mean | (
            np.abs(self.log_sd_ratio) > np.maximum(errors * self.log_sd_stderr, _NEGLIGIBLE)
        )


def moment_table(names: tuple[str, ...], x: np.ndarray, weights: np.ndarray) -> MomentTable:
    """Moments of the columns of `x [S, P]` under q (equal weights) and under the target (`weights
    [S]`, sum 1).

    Standard errors are those of the DIFFERENCE between the weighted and the plain moment, by the
    delta method for self-normalised importance sampling: the plain moment's own error cancels to
    first order where weights are equal.
    """
    width = max(1, _CHUNK // len(x))
    parts = [_moments(x[:, i : i + width], weights) for i in range(0, x.shape[1], width)]
    return MomentTable(names, *(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _moments(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """The columns of a MomentTable for a few values at a time, so that temporaries stay small."""
    count = len(x)
    mean = x.mean(axis=0)
    centred = x - mean
    variance = np.mean(centred**2, axis=0)
    shift = weights @ centred
    second = weights @ (centred - shift) ** 2
    # influence of draw s on the weighted minus the plain moment
    influence = weights[:, None] * (centred - shift) - centred / count
    mean_stderr = np.sqrt(np.sum(influence**2, axis=0))
    influence = weights[:, None] * ((centred - shift) ** 2 / _positive(second) - 1.0)
    influence -= (centred**2 / _positive(variance) - 1.0) / count
    log_sd_stderr = 0.5 * np.sqrt(np.sum(influence**2, axis=0))
    return mean, np.sqrt(variance), mean + shift, np.sqrt(second), mean_stderr, log_sd_stderr


def coordinate_table(draws: FreshDraws) -> MomentTable:
    """The moment table of the unconstrained coordinates."""
    return moment_table(draws.target.coordinate_names, draws.z, draws.smoothed.weights)


def value_table(draws: FreshDraws) -> MomentTable:
    """The moment table of the user's (constrained and derived) values."""
    names, x = draws.values
    return moment_table(names, x, draws.smoothed.weights)


def weighted_quantiles(
    x: np.ndarray, weights: np.ndarray, levels: tuple[float, ...] = _QUANTILES
) -> np.ndarray:
    """Quantiles `[len(levels), P]` of the columns of `x [S, P]` under `weights [S]`, interpolated
    between draws.
    """
    order = np.argsort(x, axis=0)
    ranked = np.take_along_axis(x, order, axis=0)
    cumulative = np.cumsum(weights[order], axis=0) - 0.5 * weights[order]
    return np.stack(
        [
            np.array([np.interp(p, cumulative[:, j], ranked[:, j]) for j in range(x.shape[1])])
            for p in levels
        ]
    )


def resample(
    rng: np.random.Generator, weights: np.ndarray, n: int, *, replace: bool = True
) -> np.ndarray:
    """Indices `[n]` drawn with probability proportional to `weights`, by systematic resampling
    (least added noise).

    `replace=False`: n different ones, drawn one after the other without replacement (the n largest
    of log w plus Gumbel noise): nearer to the target than the draws were, never twice the same
    point, but biased towards q as n grows.

    Raises:
        ValueError: without replacement, when fewer than n weights are positive.
    """
    if not replace:
        if n > np.count_nonzero(weights > 0):
            raise ValueError(
                f"{n} different draws were asked for, but only {np.count_nonzero(weights > 0)} have"
                " weight."
            )
        with np.errstate(divide="ignore"):
            return np.argsort(-(np.log(weights) + rng.gumbel(size=len(weights))))[:n]
    positions = (rng.random() + np.arange(n)) / n
    index = np.searchsorted(np.cumsum(weights), positions * weights.sum(), side="right")
    return rng.permutation(np.minimum(index, len(weights) - 1))


def expectations(
    names: tuple[str, ...], x: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """mean and sd of the columns of `x [S, P]` under `weights [S]`, each with its Monte Carlo
    standard error.

    By the delta method for the ratio of sums that a weighted mean is: the influence of draw s on
    the mean is w_s (x_s - mean), on the variance w_s ((x_s - mean)^2 - variance), and half the
    relative error of the variance is that of the sd.

    Source: Owen 2013, Monte Carlo theory, methods and examples, eq. 9.8 (self-normalised importance
    sampling).
    """
    mean = weights @ x
    squares = (x - mean) ** 2
    variance = weights @ squares
    sd = np.sqrt(variance)
    mean_error = np.sqrt(weights**2 @ squares)
    sd_error = 0.5 * np.sqrt(weights**2 @ (squares - variance) ** 2) / _positive(sd)
    return {"mean": mean, "sd": sd, "mean_error": mean_error, "sd_error": sd_error}


def _positive(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 1e-300)
