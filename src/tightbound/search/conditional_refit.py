"""Gaussians fitted to some coordinates while others are held: the knots of the nested families."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from .._types import Array
from ..estimators.base import Moments
from ..estimators.fixed_design import moment_matched, whitened_moments
from .explained import coupling_of
from .lbfgs import Evaluate
from .natural_rule import RUNNING, Conduct
from .natural_search import START, begun, propose, tell

# Designs that the coupling is averaged over: with one, the strongest of many coordinates is noise.
_REPEATS = 4
_MOST_ROUNDS = 16  # proposals of a knot; those that are left then are as good as they get
# A knot is one of some forty, between which q interpolates: it needs no extrapolation and no long
# steps, its guess may be the answer, and it is done at a move of .03 sds and at sds that are 2.5 %
# off.
_CONDUCT = Conduct(
    least_gain=1e-3,
    sufficient=0.0,
    rounding=0.0,
    stride=None,
    lengthens=False,
    looks_first=True,
    move=0.03,
    wrong=0.05,
)
_UNUSED_TOL = 0.0  # the bounds above are fixed


@dataclasses.dataclass(frozen=True)
class Knot:
    """The Gaussian N(mean, root root') of the rest, given the coordinates held.

    Attributes:
        t: the value of the one coordinate that is held, or the values of several.
        mean, root: of the rest.
        elbo: nats.
    """

    t: float | Float[np.ndarray, "held"]
    mean: Float[Array, "rest"]
    root: Float[Array, "rest rest"]
    elbo: float


def refit(
    evaluate: Evaluate,
    coordinates: int | Int[np.ndarray, "held"],
    guesses: list[Knot],
    design: Float[np.ndarray, "m rest"],
) -> list[Knot]:
    """Natural-gradient fits of the rest, `coordinates` held at each guess's t.

    One batch of all designs per round. A guess too wide for where the density is finite is
    narrowed; a knot with no finite density anywhere has the ELBO -inf.
    """
    if not guesses:
        return []
    if not design.shape[1]:  # nothing is left to fit
        points = np.array([np.atleast_1d(g.t) for g in guesses])
        values, _ = evaluate(points[:, np.argsort(np.atleast_1d(coordinates))])
        return [
            dataclasses.replace(g, elbo=float(v) if np.isfinite(v) else -np.inf)
            for g, v in zip(guesses, values, strict=True)
        ]
    searches = [begun(g.mean, g.root, np.linalg.slogdet(g.root)[1]) for g in guesses]
    rounds = [_MOST_ROUNDS] * len(guesses)
    while True:
        active = [i for i, s in enumerate(searches) if s.status == RUNNING and rounds[i]]
        if not active:
            break
        for i in active:
            rounds[i] -= int(searches[i].kind != START)
            searches[i] = propose(searches[i], _CONDUCT)
        trials = [
            Knot(guesses[i].t, searches[i].proposed_mean, searches[i].proposed_root, -np.inf)
            for i in active
        ]
        for i, moments in zip(active, _moments(evaluate, coordinates, trials, design), strict=True):
            searches[i] = tell(searches[i], moments, _CONDUCT, _UNUSED_TOL)
    return [
        dataclasses.replace(g, mean=s.mean, root=s.root, elbo=float(s.elbo))
        for g, s in zip(guesses, searches, strict=True)
    ]


def _moments(
    evaluate: Evaluate,
    coordinates: int | Int[np.ndarray, "held"],
    knots: list[Knot],
    design: Float[np.ndarray, "m rest"],
) -> list[Moments]:
    """Whitened moments of the target at each knot, over the design."""
    size, dim = 2 * len(design), design.shape[1] + np.size(coordinates)
    rest = np.delete(np.arange(dim), coordinates)
    points = np.empty((len(knots) * size, dim))
    for i, knot in enumerate(knots):
        moves, part = design @ knot.root.T, points[i * size : (i + 1) * size]
        part[:, rest] = np.concatenate([knot.mean + moves, knot.mean - moves])
        part[:, coordinates] = knot.t
    values, scores = evaluate(points)
    out = []
    for i, knot in enumerate(knots):
        pick = slice(i * size, (i + 1) * size)
        inner = scores[pick][:, rest] @ knot.root
        out.append(
            whitened_moments(design, values[pick], inner, float(np.linalg.slogdet(knot.root)[1]))
        )
    return out


def third_order_coupling(
    evaluate: Evaluate,
    mean: Float[np.ndarray, "dim"],
    root: Float[np.ndarray, "dim dim"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "dim dim"]:
    """T[j, k] = E_q[s_k u_j u_k] with standardised coordinates u and scores s.

    Zero for every Gaussian target.
    """
    dim = len(mean)
    sd = np.sqrt(np.sum(root**2, axis=1))
    total = np.zeros((dim, dim))
    for _ in range(_REPEATS):
        moves = moment_matched(rng, max(dim, 64), dim) @ root.T
        values, scores = evaluate(np.concatenate([mean + moves, mean - moves]))
        good = np.isfinite(values) & np.all(np.isfinite(scores), axis=1)
        total += coupling_of(np.concatenate([moves, -moves])[good] / sd, scores[good] * sd)
    return total / _REPEATS
