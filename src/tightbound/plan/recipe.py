"""What `fit()` chooses when you choose nothing: an ordered table, ability -> recipe.

The first row that fits is used. Nothing is run here: a recipe says how its start is found, and
`plan/climb.py` carries it out.
"""

from collections.abc import Callable

from .._types import Key
from ..amortised.head_ladder import climb_heads
from ..amortised.start import amortised
from ..families.base import AbstractFamily
from ..results import TargetError
from ..solvers.held_out import HeldOut
from ..targets.base import AbstractTarget, Conjugate, Density, Rows, Simulator
from ..targets.sites import Contaminated, Reweighted
from . import policy
from .attempt import Begin, Beginning, Recipe
from .rungs.contaminated import contaminated, regression
from .rungs.factors import factor_solver, factors
from .rungs.start import gaussian, many_rows, mover, of_moments

_FACTORS = "{solver}: chosen for a product of exponential-family factors"
_TRAINED = "amortised: trained on simulations until those held out gained no more"
_CHOSEN = "{family}: the family that you chose; tb.fit(target) without `q` climbs to richer ones"
_ANEW = "fitted anew from the moments of the q that you gave, whose family no solver moves"


def choose(
    target: AbstractTarget, q: AbstractFamily | None = None, *, with_factors: bool = True
) -> Recipe:
    """The first row of the table whose ability the target has; with a `q`, how it is moved.

    `with_factors`: whether a product of factors will do (not for a solver or an objective that
    wants a law on R^d).

    Raises:
        TargetError: the target has none of the abilities.
    """
    if q is not None:
        return _moving(q)
    rows = [(ability, recipe) for ability, recipe in TABLE if isinstance(target, ability)]
    for ability, recipe in rows:
        if with_factors or ability is not Conjugate:
            return recipe(target)
    # The target has factors and nothing else: a solver that takes them has its own start.
    for _, recipe in rows:
        return recipe(target)
    offered = "; ".join(ability.ability for ability, _ in TABLE)
    raise TargetError(
        f"There is no default for {type(target).__name__}: it needs one of the abilities {offered}."
    )


def _moving(q: AbstractFamily) -> Recipe:
    """The recipe that stays in the family of a given q.

    A q whose draws are not smooth in its parameters (nested, mixture) is moved by no solver: it is
    fitted and climbed to anew, from the Gaussian of its moments.
    """
    if q.space == "native":
        return Recipe(lambda target, *_: Beginning(q, factor_solver(target, q)), _FACTORS)
    if q.conditional:
        return Recipe(lambda *_: Beginning(q, HeldOut()), _TRAINED)
    if q.reparameterised:
        return Recipe(lambda *_: Beginning(q, mover(q)), _CHOSEN)

    def anew(*_: object) -> Beginning:
        start = of_moments(q)
        return Beginning(start, mover(start))

    return Recipe(anew, note=_ANEW)


def _full_rank(target: Density, begin: Begin) -> Begin:
    """A start that makes full-rank Gaussians; above some hundred dimensions the ordinary one."""
    return begin if target.dim <= policy.FULL_RANK_UP_TO else gaussian


def _simulator(target: Simulator) -> Recipe:
    """A conditional Gaussian (von Mises in angles) in convex coordinates, by expected forward KL.

    Richer heads stand above it where fresh simulations can judge them; stored ones were trained on.
    """

    def begin(target: Simulator, key: Key, starts: int | None) -> Beginning:
        return Beginning(amortised(target, key=key, seeds=starts or 1), HeldOut())

    settled = "" if target.num_simulations is None else _TRAINED
    return Recipe(begin, settled, climb_heads)


# Ordered: contaminated data and conjugate models may have rows as well, but each knows more.
TABLE: list[tuple[type[AbstractTarget], Callable[..., Recipe]]] = [
    (Simulator, _simulator),
    (Contaminated, lambda target: Recipe(_full_rank(target, contaminated))),
    (Reweighted, lambda target: Recipe(_full_rank(target, regression))),
    (Conjugate, lambda _: Recipe(factors, _FACTORS)),
    (Rows, lambda _: Recipe(many_rows)),
    (Density, lambda _: Recipe(gaussian)),
]
