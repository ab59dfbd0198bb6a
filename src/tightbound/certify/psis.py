"""Pareto smoothed importance sampling: weights with a tail that can be trusted, and their k-hat.

Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024 (JMLR 25), sections 2-3; generalised Pareto fit
of Zhang & Stephens 2009.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from .standards import STANDARDS, Standards

# exp of anything lower is no normal number: weights below it count as this
_TINY = np.log(np.finfo(np.float64).tiny)
# Share of effective draws from which on a tail that was fitted with k > 1 is no tail, but a pile-up
# of nearly equal weights at the cut.
_NEARLY_EQUAL = 0.9
# Both as published, for the tail: the share of the draws, and the factor of their square root.
_TAIL_SHARE, _TAIL_ROOT = 0.2, 3.0
_FEWEST = 5  # distinct weights that a two-parameter law is fitted to
# Zhang & Stephens 2009: points of the grid beside sqrt(n) of them, and the prior k ~ .5 that is
# worth ten draws (Vehtari et al. 2024, appendix G).
_GRID, _PRIOR_SHAPE, _PRIOR_DRAWS = 30, 0.5, 10


@dataclasses.dataclass(frozen=True)
class SmoothedWeights:
    """Normalised smoothed weights (they sum to 1), with the shape of their tail.

    Attributes:
        weights: of the draws.
        khat: Pareto shape of the tail, with `khat_stderr`.
        ess: effective sample size.
        unseen: what the fitted tail holds beyond the largest weight, relative to the sum of all
            weights.
    """

    weights: Float[np.ndarray, "n"]
    khat: float
    khat_stderr: float
    ess: float
    unseen: float = 0.0


def smooth(log_weights: Float[np.ndarray, "n"]) -> SmoothedWeights:
    """Replace the largest weights by the order statistics of a fitted generalised Pareto law.

    The largest are min(0.2 n, 3 sqrt(n)). Weights of -inf (or NaN) count as zero. `khat` is -inf
    where all weights are equal, and +inf where fewer than five distinct weights are left to fit a
    tail to. Nearly equal weights can pile up at the cut (a skewed posterior in one dimension does
    that), and the fit takes the pile for a tail of k > 1: then they stay as they are.
    """
    weights, khat, stderr, ess, unseen = (
        column[0] for column in _smoothed(np.asarray(log_weights, np.float64)[None])
    )
    return SmoothedWeights(weights, float(khat), float(stderr), float(ess), float(unseen))


def smooth_many(
    log_weights: Float[np.ndarray, "batch n"],
) -> tuple[Float[np.ndarray, "batch n"], Float[np.ndarray, "batch"], Float[np.ndarray, "batch"]]:
    """`smooth` of each row, all at once: weights, k-hat and effective sample size."""
    weights, khat, _, ess, _ = _smoothed(log_weights)
    return weights, khat, ess


def _smoothed(
    log_weights: Float[np.ndarray, "batch n"],
) -> tuple[Float[np.ndarray, "batch n"], *tuple[Float[np.ndarray, "batch"], ...]]:
    """Weights, and khat, its standard error, ESS and unseen share, of each row."""
    log_weights = np.where(np.isnan(log_weights), -np.inf, log_weights)
    top = log_weights.max(axis=1, keepdims=True)
    lost = ~np.isfinite(top[:, 0])
    # -1e300 in the place of -inf: a difference of two of these is zero, not NaN
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
    sparse = (np.count_nonzero(excess > 0, axis=1) < _FEWEST) & ~flat
    as_is = flat | sparse
    # Rows without a tail get one that can be fitted, and the fit is thrown away below
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
    error = khat_error(k, shifted.shape[1])
    stderr = np.where(as_is, np.where(flat, 0.0, np.nan), error)
    khat = np.where(flat, -np.inf, np.where(sparse, np.inf, k))
    ess = np.where(lost, 0.0, 1.0 / np.sum(weights**2, axis=1))
    return weights, np.where(lost, np.inf, khat), np.where(lost, np.nan, stderr), ess, unseen


def _largest(x: Float[np.ndarray, "batch n"], count: int) -> Int[np.ndarray, "batch _"]:
    """Indices of the `count` largest entries of each row, in ascending order of the entries."""
    index = np.argpartition(x, -count, axis=1)[:, -count:]
    return np.take_along_axis(
        index, np.argsort(np.take_along_axis(x, index, axis=1), axis=1), axis=1
    )


def _pareto_quantiles(
    k: Float[np.ndarray, "batch"], sigma: Float[np.ndarray, "batch"], count: int
) -> Float[np.ndarray, "batch _"]:
    """Expected order statistics, about, of `count` draws of each generalised Pareto law."""
    log_survival = np.log1p(-(np.arange(1, count + 1) - 0.5) / count)
    light = np.abs(k) <= 1e-8  # expm1(k x) / k is 0 / 0 there, and its limit is x
    safe = np.where(light, 1.0, k)[:, None]
    return sigma[:, None] * np.where(
        light[:, None], -log_survival, np.expm1(-safe * log_survival) / safe
    )


def _unseen(
    k: Float[np.ndarray, "batch"],
    sigma: Float[np.ndarray, "batch"],
    largest: Float[np.ndarray, "batch"],
) -> Float[np.ndarray, "batch"]:
    """Expected excess of a generalised Pareto law over its largest order statistic.

    It is (sigma + k largest) / (1 - k), of one draw: a share 1/n of the draws lies beyond. The mean
    of importance weights is finite whatever k is fitted (it is the evidence), so k is held below
    0.95.
    """
    k = np.minimum(k, 0.95)
    return np.maximum(sigma + k * largest, 0.0) / (1.0 - k)


def tail_size(draws: int) -> int:
    """min(0.2 n, 3 sqrt(n)), at least 5: the weights that the tail is fitted to."""
    return max(_FEWEST, int(min(_TAIL_SHARE * draws, _TAIL_ROOT * np.sqrt(draws))))


def khat_error(k: Float[np.ndarray, "batch"], draws: int) -> Float[np.ndarray, "batch"]:
    """Standard error of tail shapes that were fitted to `draws` weights: (1 + k) / sqrt(tail)."""
    return (1.0 + np.maximum(k, 0.0)) / np.sqrt(tail_size(draws))


def khat_threshold(draws: int, standards: Standards = STANDARDS) -> float:
    """min(1 - 1/log10(n), 0.7): above it n draws are too few for a reliable estimate.

    Source: Vehtari et al. 2024, eq. 13.
    """
    return min(1.0 - 1.0 / np.log10(draws), standards.khat)


def khat_of(products: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "p"]:
    """Tail shape of |products| for each column: of weight times centred parameter, say."""
    tail = tail_size(len(products))
    largest = np.sort(np.abs(products), axis=0)[-tail - 1 :]
    top = largest[-1]
    scaled = largest / np.where(top > 0, top, 1.0)
    excess = np.maximum(scaled[1:] - scaled[0], 1e-15)
    k, _ = fit_generalised_pareto(excess)
    return np.where(top > 0, k, -np.inf)


def fit_generalised_pareto(
    x: Float[np.ndarray, "m p"],
) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """(k, sigma) of each column of excesses over a cut, positive and ascending.

    With the weak prior k ~ 0.5 of 10 draws. Positive k is a heavy tail: the law has finite moments
    of order below 1/k.
    """
    n = len(x)
    count = _GRID + int(np.sqrt(n))
    grid = 1.0 - np.sqrt(count / (np.arange(1, count + 1) - 0.5))
    quartile = np.maximum(x[int(n / 4 + 0.5) - 1], 1e-15)
    b = grid[:, None] / (3.0 * quartile) + 1.0 / x[-1]
    # A row of the grid at a time: all at once would hold grid x n x p numbers
    k = np.stack([np.log1p(-row * x).mean(axis=0) for row in b])
    log_likelihood = n * (np.log(-b / k) - k - 1.0)
    weight = np.exp(log_likelihood - log_likelihood.max(axis=0))
    weight /= weight.sum(axis=0)
    b_mean = (b * weight).sum(axis=0)
    k_mean = np.log1p(-b_mean * x).mean(axis=0)
    sigma = -k_mean / b_mean
    return (n * k_mean + _PRIOR_DRAWS * _PRIOR_SHAPE) / (n + _PRIOR_DRAWS), sigma


__all__ = [
    "SmoothedWeights",
    "fit_generalised_pareto",
    "khat_error",
    "khat_of",
    "khat_threshold",
    "smooth",
    "smooth_many",
    "tail_size",
]
