"""The rungs of warped Gaussians: skewed coordinates, then heavy tails, each from the Gaussian."""

from collections.abc import Callable

from ...families.base import AbstractFamily
from ...families.gaussian import Gaussian
from ...families.student import StudentT
from ...families.warped import Warped
from ...solvers.fixed_noise import FixedNoise
from .. import policy
from ..attempt import Attempt, Climber

_FAMILIES: dict[str, Callable[[Gaussian], AbstractFamily]] = {
    "Warped": Warped.around,
    "StudentT": StudentT.around,
}


def warped(attempt: Attempt, climber: Climber) -> Attempt:
    """A warped Gaussian and a t, while nothing is settled and there is room to judge one more."""
    for name, around in _FAMILIES.items():
        left, gaussian = climber.left(), attempt.gaussian
        room = climber.has_room(policy.TO_JUDGE)
        if attempt.settled or left is None or gaussian is None or not room:
            break
        if name == attempt.name:  # a t that was found before
            continue
        share = climber.shared(left, policy.TO_JUDGE)
        attempt = climber.tried(attempt, name, around(gaussian), FixedNoise(), share)
    return attempt
