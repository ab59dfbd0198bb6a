"""Quantiles, draws and expectations of weighted draws: what summaries print."""

import numpy as np
from jaxtyping import Float, Int

_QUANTILES = (0.05, 0.5, 0.95)  # what a summary prints, unless other levels are asked for
_TINY = 1e-300  # in the place of an sd of zero


def weighted_quantiles(
    x: Float[np.ndarray, "n p"],
    weights: Float[np.ndarray, "n"],
    levels: tuple[float, ...] = _QUANTILES,
) -> Float[np.ndarray, "levels p"]:
    """Quantiles of the columns of x under `weights`, interpolated between draws."""
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
    rng: np.random.Generator, weights: Float[np.ndarray, "n"], n: int, *, replace: bool = True
) -> Int[np.ndarray, "drawn"]:
    """`n` indices drawn with probability proportional to `weights`, by systematic resampling.

    That adds the least noise. `replace=False`: n different ones, drawn one after the other without
    replacement (the n largest of log w plus Gumbel noise): nearer to the target than the draws
    were, never twice the same point, but biased towards q as n grows.

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
    # Scaled by the sum of the weights, which rounding puts a little off 1
    index = np.searchsorted(np.cumsum(weights), positions * weights.sum(), side="right")
    return rng.permutation(np.minimum(index, len(weights) - 1))


def expectations(
    x: Float[np.ndarray, "n p"], weights: Float[np.ndarray, "n"]
) -> dict[str, Float[np.ndarray, "p"]]:
    """mean and sd of the columns of x under `weights`, each with its Monte Carlo standard error.

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
    sd_error = 0.5 * np.sqrt(weights**2 @ (squares - variance) ** 2) / np.maximum(sd, _TINY)
    return {"mean": mean, "sd": sd, "mean_error": mean_error, "sd_error": sd_error}


__all__ = ["expectations", "resample", "weighted_quantiles"]
