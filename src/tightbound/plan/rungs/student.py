"""The Student-t rung: where a Gaussian's weights show heavy tails and nothing else."""

from ...solvers.fixed_noise import FixedNoise
from ...starts.student import heavy_tailed_start
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
