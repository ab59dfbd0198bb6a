"""Gaussians fitted on a lattice of values of two coordinates: for two scales."""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar, cast

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from .._numerics import host_rng
from .._types import Key
from ..estimators.fixed_design import moment_matched
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..families.nested_pair import NestedGaussianPair
from ..objectives.base import AbstractObjective
from ..results import PairingError, Result
from ..search.conditionals import Knot, refit, regression, third_order_coupling
from ..targets.base import AbstractTarget, Density, require
from ..targets.batched import batched
from .base import AbstractSolver, Info, check_gaussian_start

# Nats below the best knot beyond which the lattice is not continued: a thousandth of the mass
_FALL = 6.5
_PLANE_FALL = 14.0  # in the plane, where a knot is one evaluation
_MOST = 25_000  # evaluations after which the lattice stays as it is
_COARSEN = 80  # knots at which the lattice is made twice as wide
_PLANE_KNOTS = 8_000  # the same in the plane, where a knot is one evaluation
_MOST_COARSENED = 3
_FARTHEST = 96.0  # sds from the centre, on either axis, at the first step
_REFINE = 8  # cells of the density between knots; the plane's knots are four times as close
# Share of the mass at knots that have next to nothing on both sides, along either axis
_ALONE = 1e-3
_DROP = 3.0  # nats per knot by which the profile is continued where no knot was fitted
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1))

Place = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class PairState:
    """The knots so far by their place on the lattice, which has the Gaussian's centre and axes."""

    coordinates: Int[np.ndarray, "2"]
    centre: Float[np.ndarray, "2"]
    axes: Float[np.ndarray, "2 2"]
    # Regression of the rest on t under the Gaussian that we start from
    slope: Float[np.ndarray, "rest 2"]
    design: Float[np.ndarray, "m rest"]
    knots: dict[Place, Knot]
    guesses: dict[Place, Knot]  # the free places that come next
    step: float  # of the lattice, in sds
    farthest: float
    fall: float
    coarsened: int = 0
    spent: int = 0
    result: Result | None = None

    @property
    def best(self) -> float:
        return max(knot.elbo for knot in self.knots.values())


class NestedPair(AbstractSolver):
    """From a Gaussian to a NestedGaussianPair: the rest is refitted on a lattice of two values.

    Natural gradient fits it at each knot. The two are the one with the strongest third-order
    coupling to the scores and the one with the strongest to what is left once that is held. The
    lattice stands on their axes under the Gaussian and grows from its centre until the conditional
    ELBO, the log density of t up to a constant, has fallen by 6.5 nats (14 in two dimensions);
    where that is far away, every other line is kept. Costs some 60-160 conditional fits:
    10,000-25,000 gradients in up to 34 dimensions, more above. In two dimensions it is the
    posterior on a grid, for some 3,000 evaluations. Not where `Nested`, with one coordinate, does,
    nor above 60 dimensions or so. Where the lattice does not hold the whole posterior (tails of a
    power law, a ridge thinner than a step), q stays the Gaussian and the result is `unenclosed`.

    Arguments:
        coordinates: indices of t; None chooses them.
        step_sds: distance of knots in sds of t; None is 1, or 1/4 in two dimensions.

    Source: Rue, Martino & Chopin 2009, section 3.1, with Gaussians fitted by the ELBO.
    """

    coordinates: tuple[int, int] | None = None
    step_sds: float | None = None
    compiled: ClassVar[bool] = False

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        check_gaussian_start(self, target, q, objective)
        if q.dim < 2:
            raise PairingError(
                "NestedPair needs two coordinates, and the target has one; use Nested."
            )
        pair = self.coordinates
        if pair is not None and (len(set(pair)) != 2 or not all(0 <= j < q.dim for j in pair)):
            raise PairingError(
                f"NestedPair: `coordinates` must be two different indices in 0..{q.dim - 1}, got"
                f" {pair}."
            )

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> PairState:
        start, density = cast(Gaussian, q), require(self, target, Density)  # by `check`
        mean, root = np.array(start.mean, np.float64), np.array(start.root, np.float64)
        evaluate, rng, dim = batched(density), host_rng(key, "nested pair"), q.dim
        if dim == 2:
            pair = np.arange(2)
        elif self.coordinates is None:
            pair = np.sort(strongest_pair(third_order_coupling(evaluate, mean, root, rng)))
        else:
            pair = np.array(self.coordinates)
        slope, conditional_root = regression(root, pair)
        axes = np.linalg.cholesky(root[pair] @ root[pair].T)
        design = moment_matched(rng, max(dim - 2, 32) if dim > 2 else 1, dim - 2)
        guess = Knot(mean[pair], np.delete(mean, pair), conditional_root, -np.inf)
        (start,) = refit(evaluate, pair, [guess], design)
        result = None if np.isfinite(start.elbo) else Result.nonfinite
        step, fall = (1.0, _FALL) if dim > 2 else (0.25, _PLANE_FALL)
        step = step if self.step_sds is None else self.step_sds
        state = PairState(
            pair,
            mean[pair],
            axes,
            slope,
            design,
            {(0, 0): start},
            {},
            step,
            _FARTHEST,
            fall,
            result=result,
        )
        return dataclasses.replace(state, guesses=_frontier(state, state.knots))

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: PairState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, PairState, Info]:
        """All free places next to knots that are not too far down, in the same batch."""
        evaluate = batched(require(self, target, Density))
        before = evaluate.evaluations
        new = dict(
            zip(
                state.guesses,
                refit(evaluate, state.coordinates, [*state.guesses.values()], state.design),
                strict=True,
            )
        )
        state.knots.update(new)  # in place: thousands of knots in the plane, in a hundred steps
        used = evaluate.evaluations - before
        state = dataclasses.replace(state, guesses=_frontier(state, new), spent=state.spent + used)
        if not state.guesses:
            ended = Result.converged if _closed(state) else Result.unenclosed
            state = dataclasses.replace(state, result=ended if _spans(state) else Result.nonfinite)
        elif len(state.knots) >= (_COARSEN if q.dim > 2 else _PLANE_KNOTS):
            state = _coarsened(state)
        if state.result is None and state.spent > _MOST:
            state = dataclasses.replace(state, result=Result.unenclosed)
        if state.result is Result.converged:
            q = _family(state)
        return target, q, state, Info(np.float64(-_elbo(state)), np.float64(1.0), used)

    def done(self, state: PairState) -> Result | None:
        return state.result


def strongest_pair(coupling: Float[np.ndarray, "dim dim"]) -> Int[np.ndarray, "2"]:
    """The most strongly coupled coordinate, and the one most strongly coupled once that is held."""
    first = int(np.argmax(np.sum(coupling**2, axis=1)))
    left = np.sum(np.delete(coupling, first, axis=1) ** 2, axis=1)
    left[first] = -np.inf
    return np.array([first, int(np.argmax(left))])


def _frontier(state: PairState, new: Iterable[Place]) -> dict[Place, Knot]:
    """Guesses at the free places next to the `new` knots.

    The mean is extrapolated from the knot before it, or by regression.
    """
    guesses: dict[Place, Knot] = {}
    least = state.best - state.fall
    for i, j in new:
        knot = state.knots[i, j]
        if not knot.elbo > least:
            continue
        for a, b in _SIDES:
            place = (i + a, j + b)
            if (
                place in state.knots
                or place in guesses
                or max(map(abs, place)) * state.step > state.farthest
            ):
                continue
            before = state.knots.get((i - a, j - b))
            ahead = state.step * state.axes @ np.array([a, b])
            move = state.slope @ ahead
            if before is not None and np.isfinite(before.elbo):
                move = knot.mean - before.mean
            guesses[place] = Knot(knot.t + ahead, knot.mean + move, knot.root, -np.inf)
    return guesses


def _coarsened(state: PairState) -> PairState:
    """The state with every other line of its lattice, or ended where that was done before."""
    if state.coarsened == _MOST_COARSENED:
        return dataclasses.replace(state, result=Result.unenclosed)
    kept = {
        (i // 2, j // 2): knot for (i, j), knot in state.knots.items() if i % 2 == 0 and j % 2 == 0
    }
    farther = {
        "step": 2.0 * state.step,
        "farthest": 2.0 * state.farthest,
        "coarsened": state.coarsened + 1,
    }
    state = dataclasses.replace(state, knots=kept, **farther)
    return dataclasses.replace(state, guesses=_frontier(state, kept))


def _closed(state: PairState) -> bool:
    """Whether the lattice has the whole posterior.

    No knot at its end is still high, and hardly any stands alone. A law of heavy tails goes on
    beyond the farthest knot; a ridge thinner than a step is lost between two of them.
    """
    knots, gone, alone, total = state.knots, state.best - state.fall, 0.0, 0.0
    for (i, j), knot in knots.items():
        around = [knots.get((i + a, j + b)) for a, b in _SIDES]
        if knot.elbo > gone and any(k is None for k in around):
            return False
        low = [k is not None and not k.elbo > gone for k in around]
        mass = np.exp(knot.elbo - state.best)
        total += mass
        alone += mass * ((low[0] and low[1]) or (low[2] and low[3]))
    return bool(alone <= _ALONE * total)


def _spans(state: PairState) -> bool:
    """Whether the finite knots span four by four places, as a cubic spline needs."""
    places = np.array([place for place, knot in state.knots.items() if np.isfinite(knot.elbo)])
    return bool(len(places)) and bool(np.all(np.ptp(places, axis=0) >= 3))


def _elbo(state: PairState) -> float:
    """The ELBO of the family: log of the integral of exp(profile), by the trapezoidal rule."""
    profile = np.array([knot.elbo for knot in state.knots.values() if np.isfinite(knot.elbo)])
    area = 2.0 * np.log(state.step) + np.log(np.prod(np.diag(state.axes)))
    return float(state.best + np.log(np.sum(np.exp(profile - state.best))) + area)


def _family(state: PairState) -> NestedGaussianPair:
    """The family through the knots.

    Places in the rectangle around them without one are continued from the nearest.
    """
    fitted = {place: knot for place, knot in state.knots.items() if np.isfinite(knot.elbo)}
    places, knots = np.array(list(fitted)), list(fitted.values())
    low = places.min(axis=0)
    shape = np.ptp(places, axis=0) + 1
    free, number = np.ones(shape, dtype=bool), np.zeros(shape, dtype=int)
    rows, columns = (places - low).T
    free[rows, columns], number[rows, columns] = False, np.arange(len(knots))
    # SciPy's types do not know that indices come too where they are asked for.
    measured = cast(
        tuple[Float[np.ndarray, "i j"], Int[np.ndarray, "2 i j"]],
        ndimage.distance_transform_edt(free, return_indices=True),
    )
    distance, nearest = measured[0], number[tuple(measured[1])]
    profile = np.array([knot.elbo for knot in knots])[nearest] - _DROP * distance
    means = np.stack([k.mean for k in knots])[nearest]
    roots = np.stack([k.root for k in knots])[nearest]
    first, second = (int(j) for j in state.coordinates)
    origin = state.step * low.astype(np.float64)
    refine = _REFINE if len(state.slope) else _REFINE // 4
    return NestedGaussianPair.through(
        (first, second),
        state.centre,
        state.axes,
        origin,
        state.step,
        profile,
        means,
        roots,
        refine=refine,
    )


__all__ = ["NestedPair", "strongest_pair"]
