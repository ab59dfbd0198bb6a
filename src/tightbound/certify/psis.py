"""Pareto smoothed importance sampling: weights with a tail that can be trusted, and the k-hat that says how far.

Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024 (JMLR 25), sections 2-3; generalised Pareto fit of Zhang & Stephens 2009.
"""

import dataclasses

import numpy as np

from .._types import Array

_TINY = np.log(np.finfo(np.float64).tiny)


@dataclasses.dataclass(frozen=True)
class SmoothedWeights:
    """Normalised smoothed weights `[S]` (they sum to 1), the tail shape k-hat with its standard error, and the ESS.

    `unseen`: what the fitted tail holds beyond the largest weight, relative to the sum of all weights.
    """

    weights: np.ndarray
    khat: float
    khat_stderr: float
    ess: float
    unseen: float = 0.0


def smooth(log_weights: np.ndarray) -> SmoothedWeights:
    """Replace the largest min(0.2 S, 3 sqrt(S)) weights by the order statistics of a fitted generalised Pareto law.

    Weights of -inf (or NaN) count as zero. `khat` is -inf where all weights are equal, and +inf where fewer than five
    distinct weights are left to fit a tail to.
    """
    log_weights = np.where(np.isnan(log_weights), -np.inf, np.asarray(log_weights, dtype=np.float64))
    if not np.any(np.isfinite(log_weights)):
        return SmoothedWeights(np.full(len(log_weights), 1 / len(log_weights)), np.inf, np.nan, 0.0)
    shifted = np.maximum(log_weights - log_weights.max(), -1e300)
    order, tail = np.argsort(shifted), tail_size(len(shifted))
    cut = max(shifted[order[-tail - 1]], _TINY)
    excess = np.exp(shifted[order[-tail:]]) - np.exp(cut)
    if excess[-1] <= 1e-12:
        return _normalised(shifted, -np.inf, 0.0)
    excess = np.maximum(excess, 0.0)
    if np.count_nonzero(excess > 0) < 5:
        return _normalised(shifted, np.inf, np.nan)
    k, sigma = (float(parameter) for parameter in fit_generalised_pareto(excess))
    probability = (np.arange(1, tail + 1) - 0.5) / tail
    quantile = sigma / k * np.expm1(-k * np.log1p(-probability)) if abs(k) > 1e-8 else -sigma * np.log1p(-probability)
    smoothed = shifted.copy()
    smoothed[order[-tail:]] = np.minimum(np.log(quantile + np.exp(cut)), 0.0)
    unseen = _unseen(float(k), float(sigma), float(excess[-1])) / np.exp(shifted).sum()
    return _normalised(smoothed, float(k), (1.0 + max(float(k), 0.0)) / np.sqrt(tail), unseen)


def _unseen(k: float, sigma: float, largest: float) -> float:
    """Expected excess of a generalised Pareto law over its largest order statistic: (sigma + k largest) / (1 - k).

    Of one draw, as a share 1/S of the draws lies beyond. The mean of importance weights is finite whatever k is fitted
    (it is the evidence), so k is held below 0.95.
    """
    k = min(k, 0.95)
    return max(sigma + k * largest, 0.0) / (1.0 - k)


def tail_size(draws: int) -> int:
    """M = min(0.2 S, 3 sqrt(S)), at least 5."""
    return max(5, int(min(0.2 * draws, 3.0 * np.sqrt(draws))))


def khat_threshold(draws: int) -> float:
    """min(1 - 1/log10(S), 0.7): above it S draws are too few for a reliable estimate (Vehtari et al. 2024, eq. 13)."""
    return min(1.0 - 1.0 / np.log10(draws), 0.7)


def khat_of(products: np.ndarray) -> np.ndarray:
    """Tail shape of |products| for each column of `[S, P]`: of weight times centred parameter, say. `[P]`."""
    tail = tail_size(len(products))
    largest = np.sort(np.abs(products), axis=0)[-tail - 1 :]
    top = largest[-1]
    scaled = largest / np.where(top > 0, top, 1.0)
    excess = np.maximum(scaled[1:] - scaled[0], 1e-15)
    k, _ = fit_generalised_pareto(excess)
    return np.where(top > 0, k, -np.inf)


def fit_generalised_pareto(excess: np.ndarray) -> tuple[Array, Array]:
    """(k, sigma) of ascending positive `excess` `[M]` or `[M, P]` (columns apart), with the weak prior k ~ 0.5 of 10 draws.

    Positive k is a heavy tail: the law has finite moments of order below 1/k.
    """
    x = excess if excess.ndim == 2 else excess[:, None]
    n = len(x)
    count = 30 + int(np.sqrt(n))
    grid = 1.0 - np.sqrt(count / (np.arange(1, count + 1) - 0.5))
    quartile = np.maximum(x[int(n / 4 + 0.5) - 1], 1e-15)
    b = grid[:, None] / (3.0 * quartile) + 1.0 / x[-1]
    k = np.stack([np.log1p(-row * x).mean(axis=0) for row in b])
    log_likelihood = n * (np.log(-b / k) - k - 1.0)
    weight = np.exp(log_likelihood - log_likelihood.max(axis=0))
    weight /= weight.sum(axis=0)
    b_mean = (b * weight).sum(axis=0)
    k_mean = np.log1p(-b_mean * x).mean(axis=0)
    sigma = -k_mean / b_mean
    k_mean = (n * k_mean + 10 * 0.5) / (n + 10)
    return (k_mean, sigma) if excess.ndim == 2 else (k_mean[0], sigma[0])


def _normalised(log_weights: np.ndarray, khat: float, stderr: float, unseen: float = 0.0) -> SmoothedWeights:
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    return SmoothedWeights(weights, khat, stderr, float(1.0 / np.sum(weights**2)), unseen)
