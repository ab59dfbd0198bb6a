"""Have chains mixed, and what are their draws worth? R-hat and effective sample sizes.

Source: Vehtari, Gelman, Simpson, Carpenter & Buerkner 2021 (Bayesian Analysis 16), sections 3 and
4; Geyer 1992, section 3.3.
"""

from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float

RHAT = 1.01
"""R-hat below which chains are taken to agree (Vehtari et al. 2021, section 4)."""

ESS_PER_CHAIN = 50
"""Effective draws per split chain that make R-hat itself reliable: 400 of four chains.

Source: Vehtari et al. 2021, section 4.
"""


class MixingLimits(NamedTuple):
    """When chains count as mixed.

    Attributes:
        rhat: that every value must be below.
        ess_per_chain: effective draws that every value must have, for each half of a chain.
    """

    rhat: float = RHAT
    ess_per_chain: float = ESS_PER_CHAIN

    def met(self, x: Float[np.ndarray, "chains n p"]) -> bool:
        """Whether the chains agree about every value, with enough effective draws of it."""
        enough = 2 * self.ess_per_chain * x.shape[0]
        return bool(np.all(rhat(x) < self.rhat) and np.all(ess_bulk(x) >= enough))


def rhat(x: Float[np.ndarray, "chains n p"]) -> Float[np.ndarray, "p"]:
    """Rank-normalised split R-hat of the values, or of their distance from the median if larger.

    1 where the halves of all chains look like one distribution, larger where they differ in
    location, or (by the second) in scale. NaN where a value never moves.
    """
    halves = _split(x)
    folded = np.abs(halves - np.median(halves, axis=(0, 1)))
    return np.maximum(_basic_rhat(_ranked(halves)), _basic_rhat(_ranked(folded)))


def ess_bulk(x: Float[np.ndarray, "chains n p"]) -> Float[np.ndarray, "p"]:
    """Effective sample size for the location: that of the rank-normalised draws."""
    return _ess(_ranked(_split(x)))


def ess_tail(x: Float[np.ndarray, "chains n p"]) -> Float[np.ndarray, "p"]:
    """Effective sample size for the 5 % and the 95 % quantile, the smaller of the two."""
    halves = _split(x)
    low, high = np.quantile(x, [0.05, 0.95], axis=(0, 1))
    return np.minimum(
        _ess((halves <= low).astype(np.float64)), _ess((halves <= high).astype(np.float64))
    )


def ess_mean(x: Float[np.ndarray, "chains n p"]) -> Float[np.ndarray, "p"]:
    """Effective sample size of the plain average: its standard error is sd / sqrt(ess)."""
    return _ess(_split(x))


def _split(x: Float[np.ndarray, "chains n p"]) -> Float[np.ndarray, "halves half p"]:
    """Each chain as two; the middle draw of an odd number is left out.

    A chain that drifts then disagrees with itself, and one chain alone can be judged.
    """
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]])


def _ranked(x: Float[np.ndarray, "chains n p"]) -> Float[np.ndarray, "chains n p"]:
    """Normal scores of the ranks over all chains, ties at their average rank (Blom 1958)."""
    flat = x.reshape(-1, x.shape[-1])
    count = len(flat)
    order = np.argsort(flat, axis=0, kind="stable")
    position = np.arange(1.0, count + 1.0)
    ranks = np.empty_like(flat)
    for j in range(flat.shape[1]):
        sorted_values = flat[order[:, j], j]
        ties = np.cumsum(np.concatenate([[0], sorted_values[1:] != sorted_values[:-1]]))
        average = np.bincount(ties, weights=position) / np.bincount(ties)
        ranks[order[:, j], j] = average[ties]
    return scipy.special.ndtri((ranks - 0.375) / (count + 0.25)).reshape(x.shape)


def _basic_rhat(x: Float[np.ndarray, "chains n p"]) -> Float[np.ndarray, "p"]:
    n = x.shape[1]
    within = x.var(axis=1, ddof=1).mean(axis=0)
    between = x.mean(axis=1).var(axis=0, ddof=1)  # of the means; times n it is the usual B
    with np.errstate(all="ignore"):
        return np.sqrt((n - 1) / n + between / within)


def _ess(x: Float[np.ndarray, "chains n p"]) -> Float[np.ndarray, "p"]:
    """Draws / tau, with autocorrelations cut off by Geyer's initial monotone sequence.

    They are relative to the variance over all chains, so that chains that disagree count as slow.
    """
    chains, n, _ = x.shape
    with np.errstate(all="ignore"):
        covariance = _autocovariance(x)
        within = covariance[:, 0].mean(axis=0) * n / (n - 1.0)
        total = within * (n - 1.0) / n + (x.mean(axis=1).var(axis=0, ddof=1) if chains > 1 else 0.0)
        correlation = 1.0 - (within - covariance.mean(axis=0)) / total
        correlation[0] = 1.0
        tau = np.array([_time(correlation[:, j]) for j in range(x.shape[-1])])
        # Antithetic chains have an effective size above their number of draws, and an estimate of
        # it that can be far too large: Stan's bound.
        most = chains * n * np.log10(chains * n)
        return np.where(total > 0, np.minimum(chains * n / tau, most), np.nan)


def _time(correlation: Float[np.ndarray, "n"]) -> float:
    """Integrated autocorrelation time: pairs rho_2k + rho_2k+1 while positive, made to fall.

    In a reversible chain these sums are positive and fall with k; where an estimate does not, it
    is noise.
    """
    count = len(correlation) // 2
    pairs = correlation[: 2 * count : 2] + correlation[1 : 2 * count : 2]
    negative = np.flatnonzero(~(pairs > 0))
    end = int(negative[0]) if len(negative) else count
    falling = np.minimum.accumulate(pairs[: max(end, 1)])
    # The even term after the cut, where positive, lowers the variance of an antithetic chain's
    # estimate (Stan)
    rest = max(float(correlation[2 * end]), 0.0) if 0 < end < count else 0.0
    return float(-1.0 + 2.0 * falling.sum() + rest)


def _autocovariance(x: Float[np.ndarray, "chains n p"]) -> Float[np.ndarray, "chains n p"]:
    """Of each chain at all lags, divided by n."""
    n = x.shape[1]
    # Zeros to twice the length, or the transform would join the end of a chain to its beginning
    size = 2 ** int(np.ceil(np.log2(2 * n)))
    spectrum = np.fft.rfft(x - x.mean(axis=1, keepdims=True), size, axis=1)
    return np.fft.irfft(np.abs(spectrum) ** 2, size, axis=1)[:, :n] / n


__all__ = [
    "ESS_PER_CHAIN",
    "RHAT",
    "MixingLimits",
    "ess_bulk",
    "ess_mean",
    "ess_tail",
    "rhat",
]
