"""Pareto smoothed importance sampling: weights with a tail that can be trusted, and the k-hat that
says how far.

Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024 (JMLR 25), sections 2-3; generalised Pareto fit
of Zhang & Stephens 2009.
"""

import dataclasses

import numpy as np

from .._types import Array

_TINY = np.log(np.finfo(np.float64).tiny)
# share of effective draws from which on a tail that was fitted with k > 1 is no tail, but a pile-up
_NEARLY_EQUAL = 0.9


@dataclasses.dataclass(frozen=True)
class SmoothedWeights:
    """Normalised smoothed weights `[S]` (they sum to 1), the tail shape k-hat with its standard
    error, and the ESS.

    `unseen`: what the fitted tail holds beyond the largest weight, relative to the sum of all
    weights.
    """

    weights: np.ndarray
    khat: float
    khat_stderr: float
    ess: float
    unseen: float = 0.0


def smooth(log_weights: np.ndarray) -> SmoothedWeights:
    """Replace the largest min(0.2 S, 3 sqrt(S)) weights by the order statistics of a fitted
    generalised Pareto law.

    Weights of -inf (or NaN) count as zero. `khat` is -inf where all weights are equal, and +inf
    where fewer than five distinct weights are left to fit a tail to. Nearly equal weights can pile
    up at the cut (a skewed posterior in one dimension does that), and the fit takes the pile for a
    tail of k > 1: then they stay as they are.
    """
    weights, khat, stderr, ess, unseen = (
        column[0] for column in _smoothed(np.asarray(log_weights, np.float64)[None])
    )
    return SmoothedWeights(weights, float(khat), float(stderr), float(ess), float(unseen))


def smooth_many(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`smooth` of each row of `[B, S]`, all at once: (weights `[B, S]`, khat `[B]`, ESS `[B]`)."""
    weights, khat, _, ess, _ = _smoothed(log_weights)
    return weights, khat, ess


def _smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weights `[B, S]`, and khat, its standard error, ESS and unseen share `[B]`, of each row of
    `[B, S]`.
    """
    log_weights = np.where(np.isnan(log_weights), -np.inf, log_weights)
    top = log_weights.max(axis=1, keepdims=True)
    lost = ~np.isfinite(top[:, 0])
    shifted = np.where(
        lost[:, None], 0.0, np.maximum(log_weights - np.where(lost[:, None], 0.0, top), -1e300)
    )
    total, tail = np.exp(shifted).sum(axis=1), tail_size(shifted.shape[1])
    order = _largest(shifted, tail + 1)
    ranked = np.take_along_axis(shifted, order, axis=1)
    cut = np.exp(np.maximum(ranked[:, :1], _TINY))
    excess = np.exp(ranked[:, 1:]) - cut
    flat = excess[:, -1] <= 1e-12
    excess = np.maximum(excess, 0.0)
    sparse = (np.count_nonzero(excess > 0, axis=1) < 5) & ~flat
    as_is = flat | sparse
    k, sigma = fit_generalised_pareto(np.where(as_is[:, None], np.arange(1.0, tail + 1), excess).T)
    smoothed = np.minimum(np.log(_pareto_quantiles(k, sigma, tail) + cut), 0.0)
    raw_ess = total**2 / np.exp(2.0 * shifted).sum(axis=1)
    kept = as_is | ((k > 1.0) & (raw_ess > _NEARLY_EQUAL * shifted.shape[1]))
    np.put_along_axis(
        shifted, order[:, 1:], np.where(kept[:, None], ranked[:, 1:], smoothed), axis=1
    )
    weights = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    unseen = np.where(as_is, 0.0, _unseen(k, sigma, excess[:, -1]) / total)
    weights /= weights.sum(axis=1, keepdims=True)
    stderr = np.where(
        as_is, np.where(flat, 0.0, np.nan), (1.0 + np.maximum(k, 0.0)) / np.sqrt(tail)
    )
    khat = np.where(flat, -np.inf, np.where(sparse, np.inf, k))
    ess = np.where(lost, 0.0, 1.0 / np.sum(weights**2, axis=1))
    return weights, np.where(lost, np.inf, khat), np.where(lost, np.nan, stderr), ess, unseen


def _largest(x: np.ndarray, count: int) -> np.ndarray:
    """Indices `[B, count]` of the largest entries of each row, in ascending order of the entries."""
    index = np.argpartition(x, -count, axis=1)[:, -count:]
    return np.take_along_axis(
        index, np.argsort(np.take_along_axis(x, index, axis=1), axis=1), axis=1
    )


def _pareto_quantiles(k: Array, sigma: Array, count: int) -> Array:
    """Expected order statistics, about, of `count` draws of each generalised Pareto law.

    `[B, count]`.
    """
    log_survival = np.log1p(-(np.arange(1, count + 1) - 0.5) / count)
    light = np.abs(k) <= 1e-8
    safe = np.where(light, 1.0, k)[:, None]
    return sigma[:, None] * np.where(
        light[:, None], -log_survival, np.expm1(-safe * log_survival) / safe
    )


def _unseen(k: Array, sigma: Array, largest: Array) -> Array:
    """Expected excess of a generalised Pareto law over its largest order statistic: (sigma + k
    largest) / (1 - k).

    Of one draw, as a share 1/S of the draws lies beyond. The mean of importance weights is finite
    whatever k is fitted (it is the evidence), so k is held below 0.95.
    """
    k = np.minimum(k, 0.95)
    return np.maximum(sigma + k * largest, 0.0) / (1.0 - k)


def tail_size(draws: int) -> int:
    """M = min(0.2 S, 3 sqrt(S)), at least 5."""
    return max(5, int(min(0.2 * draws, 3.0 * np.sqrt(draws))))


def khat_threshold(draws: int) -> float:
    """min(1 - 1/log10(S), 0.7).

    Above it S draws are too few for a reliable estimate (Vehtari et al. 2024, eq. 13).
    """
    return min(1.0 - 1.0 / np.log10(draws), 0.7)


def khat_of(products: np.ndarray) -> np.ndarray:
    """Tail shape of |products| for each column of `[S, P]`: of weight times centred parameter, say.

    `[P]`.
    """
    tail = tail_size(len(products))
    largest = np.sort(np.abs(products), axis=0)[-tail - 1 :]
    top = largest[-1]
    scaled = largest / np.where(top > 0, top, 1.0)
    excess = np.maximum(scaled[1:] - scaled[0], 1e-15)
    k, _ = fit_generalised_pareto(excess)
    return np.where(top > 0, k, -np.inf)


def fit_generalised_pareto(excess: np.ndarray) -> tuple[Array, Array]:
    """(k, sigma) of ascending positive `excess` `[M]` or `[M, P]` (columns apart), with the weak
    prior k ~ 0.5 of 10 draws.

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
