"""The rung of other starts: where the first Gaussian looks lost."""

from ...families.gaussian import Gaussian
from ...solvers.natural import NaturalGradient
from .. import policy
from ..attempt import Attempt, Climber


def restart(attempt: Attempt, climber: Climber) -> Attempt:
    """The best of climbs from a few other starts, while the weights are beyond repair."""
    for other in climber.others[: policy.MOST_RESTARTS]:
        left = climber.left()
        if attempt.sample.smoothed.khat <= policy.LOST or left is None:
            break
        start = Gaussian.from_root(other.mean, other.root)
        run = climber.run("restart", start, NaturalGradient(), climber.shared(left))
        if run.result.usable:
            new = climber.nested(climber.attempted("Gaussian", run), climber)
            attempt = climber.better_of(attempt, new)
    return attempt
