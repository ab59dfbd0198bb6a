"""The nested rungs: a Gaussian refitted at values of the coordinate, or two, that explain it."""

from ...families.gaussian import Gaussian
from ...search.conditionals import Explained
from ...solvers.base import AbstractSolver
from ...solvers.nested import Nested
from ...solvers.nested_pair import NestedPair
from .. import policy
from ..attempt import Attempt, Climber


def nested(attempt: Attempt, climber: Climber, *, again: bool = False) -> Attempt:
    """Nested families, where the rung below does not pass and is a full-rank Gaussian.

    `again`: not the first Gaussian, so only where there is room.
    """
    gaussian = attempt.gaussian
    if gaussian is None:
        return attempt
    for i, solver in enumerate(_solvers(gaussian, attempt.explained)):
        left, second_thought = climber.left(), i > 0 or again
        room = climber.has_room(policy.NESTED_COST * gaussian.dim)
        if attempt.settled or left is None or (second_thought and not room):
            break
        attempt = climber.tried(attempt, type(solver).__name__, gaussian, solver, left)
    return attempt


def _solvers(gaussian: Gaussian, found: Explained | None) -> list[AbstractSolver]:
    """One coordinate, then two together where they explain more; none where neither explains much.

    Two come first in up to 30 dimensions where one explains little; in up to 8, each alone comes
    before both. In the plane both at once are a grid, which fits anything.
    """
    if gaussian.dim == 2:
        return [NestedPair(), Nested()]
    if found is None:
        return [Nested()]
    if found.both < policy.HOPELESS:
        return []
    one: list[AbstractSolver] = [Nested(found.first)]
    if found.second is None or found.both < found.one + policy.LITTLE_MORE:
        return one
    both = NestedPair((min(found.first, found.second), max(found.first, found.second)))
    if gaussian.dim <= policy.SMALL:
        return [*one, Nested(found.second), both]
    much_more = found.both > found.one + policy.MUCH_MORE
    at_once = gaussian.dim <= policy.LARGE and found.one < policy.PROMISING and much_more
    return [both, *one] if at_once else [*one, both]
