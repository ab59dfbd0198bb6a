"""The Student-t rung: where a Gaussian's weights show heavy tails and nothing else."""

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float

from ...families.gaussian import Gaussian
from ...families.student import StudentT
from ...solvers.fixed_noise import FixedNoise
from .. import policy
from ..attempt import Attempt, Climber


def student(attempt: Attempt, climber: Climber) -> Attempt:
    """A t fitted to the Gaussian's own weights, polished, and kept where it is better.

    Also tried where the Gaussian passes with weights that are not nearly equal: in a few thousand
    draws the tails of a t can look like those of a Gaussian.
    """
    left, gaussian, sample = climber.left(), attempt.gaussian, attempt.sample
    nearly_equal = sample.smoothed.ess > policy.NEARLY_EQUAL * len(sample.z)
    if (attempt.settled and nearly_equal) or left is None or gaussian is None:
        return attempt
    start = heavy_tailed_start(gaussian, sample.z, sample.log_w, sample.smoothed.weights)
    if start is None:
        return attempt
    return climber.tried(attempt, "StudentT", start, FixedNoise(), left)


def heavy_tailed_start(
    q: Gaussian,
    z: Float[np.ndarray, "n dim"],
    log_w: Float[np.ndarray, "n"],
    weights: Float[np.ndarray, "n"],
) -> StudentT | None:
    """The t, of q's centre and shape, that fits q's weighted draws best.

    None where tails are not what q misses.

    Log weights of an elliptical posterior are a function of r^2 = |root^-1 (z - mean)|^2 alone, the
    same at mirror images. Where both hold, roughly, and large r are too rare in q, the scale c and
    df maximise

        sum_i w_i log t(r_i / c; d, df) - d log c.

    Arguments:
        q: the Gaussian.
        z: draws of q, i and i + S/2 mirror images.
        log_w: their log importance weights, all finite.
        weights: the smoothed, normalised ones.

    Source: the weighted likelihood of Cappe, Douc, Guillin, Marin & Robert 2008, section 3, with
    two parameters.
    """
    white = np.linalg.solve(np.asarray(q.root), (z - np.asarray(q.mean)).T)
    squared, dim = np.sum(white**2, axis=0), q.dim
    if not _is_radial(squared, log_w):
        return None

    def loss(parameters: Float[np.ndarray, "2"]) -> float:
        log_c, df = parameters[0], np.exp(parameters[1])
        constant = (
            scipy.special.gammaln(0.5 * (df + dim))
            - scipy.special.gammaln(0.5 * df)
            - 0.5 * dim * np.log(df)
        )
        shape = np.log1p(squared * np.exp(-2.0 * log_c) / df)
        return dim * log_c - constant + 0.5 * (df + dim) * float(weights @ shape)

    # A little narrower than q, five degrees of freedom.
    start = np.array([-0.1, np.log(5.0)])
    log_c, log_df = scipy.optimize.minimize(loss, start, method="Nelder-Mead").x
    if log_df > np.log(policy.ALMOST_GAUSSIAN):
        return None
    return StudentT.around(
        Gaussian.from_root(np.asarray(q.mean), np.asarray(q.root) * np.exp(log_c)),
        float(np.exp(log_df)),
    )


def _is_radial(squared: Float[np.ndarray, "n"], log_w: Float[np.ndarray, "n"]) -> bool:
    """Whether the log weights are a function of the distance from the centre, roughly."""
    if not (np.all(np.isfinite(log_w)) and np.ptp(log_w) > 0):
        return False
    half, spread = len(log_w) // 2, np.var(log_w)
    odd = np.var(log_w[:half] - log_w[half : 2 * half]) / (4.0 * spread)
    basis = np.stack([np.ones_like(squared), squared, np.log1p(squared)], axis=1)
    residual = log_w - basis @ np.linalg.lstsq(basis, log_w, rcond=None)[0]
    return bool(odd < policy.MOST_ODD and np.var(residual) < (1.0 - policy.LEAST_RADIAL) * spread)
