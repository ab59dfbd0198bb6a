"""Gaussians given some coordinates: which to hold, and fits of the rest while they are held.

Which to hold is told by a regression of a Gaussian's own log weights, without a gradient. The fits
are the knots of the nested families.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float, Int

from .._types import Array
from ..estimators.base import Moments
from ..estimators.fixed_design import moment_matched, whitened_moments
from ..families.gaussian import Gaussian
from .lbfgs import Evaluate
from .natural_rule import RUNNING, Conduct
from .natural_search import START, begun, propose, tell

_CANDIDATES = 4  # of each of the two kinds of coupling
_FEW = 3  # in more than _MANY dimensions, where each regression has thousands of features
_MANY = 64
# Relative to the largest: what keeps near-singular directions of q, and of the features, solvable.
_RIDGE = 1e-9
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
class Explained:
    """The coordinate that explains most of the variance of log weights, and the best beside it.

    `one` and `both`: the shares that they explain, alone and together. `second` is None, and `both`
    that of one, where no pair was looked at.
    """

    first: int
    second: int | None
    one: float
    both: float


def explained(
    q: Gaussian,
    z: Float[np.ndarray, "n dim"],
    log_w: Float[np.ndarray, "n"],
    scores: Float[np.ndarray, "n dim"],
    *,
    pairs: bool,
) -> Explained:
    """The share of the variance of a Gaussian's log weights that one coordinate, or two, explain.

    They would explain it if the moments of the rest depended on them.

    Given the coordinates a that are held, log w is regressed on a cubic in a, and on each whitened
    coordinate of the rest and its square, times a quadratic and a line in a: what a mean that bends
    and a scale that changes with a contribute. Candidates are the coordinates with the strongest
    third-order coupling, to the scores as they are and to whitened ones.

    Arguments:
        q: the Gaussian.
        z: draws of q.
        log_w: their log weights, all finite.
        scores: gradients of log p at them.
        pairs: whether to look for a second coordinate.
    """
    mean, root, sd = np.asarray(q.mean), np.asarray(q.root), np.asarray(q.sd)
    u, unit = (z - mean) / sd, root / sd[:, None]
    candidates = _candidates(u, scores * sd, unit)
    alone = {j: _share(u, log_w, unit, [j]) for j in candidates}
    first = max(alone, key=lambda j: alone[j])
    together = (
        {j: _share(u, log_w, unit, [first, j]) for j in candidates if j != first} if pairs else {}
    )
    if not together:
        return Explained(first, None, alone[first], alone[first])
    second = max(together, key=lambda j: together[j])
    return Explained(first, second, alone[first], together[second])


def regression(
    root: Float[np.ndarray, "dim dim"], coordinates: Int[np.ndarray, "held"]
) -> tuple[Float[np.ndarray, "rest held"], Float[np.ndarray, "rest rest"]]:
    """Under N(0, root root'): slopes of the rest on those held, and a root of its covariance."""
    covariance, rest = root @ root.T, np.delete(np.arange(len(root)), coordinates)
    held = covariance[np.ix_(coordinates, coordinates)]
    slope = np.linalg.solve(held, covariance[np.ix_(coordinates, rest)]).T
    conditional = covariance[np.ix_(rest, rest)] - slope @ held @ slope.T
    return slope, np.linalg.cholesky(conditional + 1e-10 * np.diag(np.diag(conditional)))


def coupling_of(
    u: Float[np.ndarray, "n dim"],
    s: Float[np.ndarray, "n dim"],
    v: Float[np.ndarray, "n dim"] | None = None,
) -> Float[np.ndarray, "dim dim"]:
    """T[j, k], the mean of u_j s_k v_k over draws: zero for every Gaussian target.

    `u`, `v`: coordinates (v is u if left out). `s`: scores in v.
    """
    return u.T @ (s * (u if v is None else v)) / max(len(u), 1)


def _candidates(
    u: Float[np.ndarray, "n dim"],
    s: Float[np.ndarray, "n dim"],
    unit: Float[np.ndarray, "dim dim"],
) -> list[int]:
    """The most strongly coupled coordinates.

    Whitened scores see past directions in which q is long and thin.
    """
    values, vectors = np.linalg.eigh(unit @ unit.T)
    scale = np.sqrt(np.maximum(values, _RIDGE * values[-1]))
    white = coupling_of(u, s @ (vectors * scale) @ vectors.T, u @ (vectors / scale) @ vectors.T)
    count = _CANDIDATES if u.shape[1] <= _MANY else _FEW
    ranked = [np.argsort(-np.sum(c**2, axis=1))[:count] for c in (coupling_of(u, s), white)]
    return list(dict.fromkeys(int(j) for j in np.concatenate(ranked)))


def _share(
    u: Float[np.ndarray, "n dim"],
    log_w: Float[np.ndarray, "n"],
    unit: Float[np.ndarray, "dim dim"],
    held: list[int],
) -> float:
    """The share of the variance of log w, adjusted for the number of features."""
    a, rest = u[:, held], np.delete(np.arange(u.shape[1]), held)
    slope, root = regression(unit, np.array(held))
    w = np.linalg.solve(root, (u[:, rest] - a @ slope.T).T).T
    terms = [
        [
            np.prod(a[:, list(which)], axis=1)
            for which in itertools.combinations_with_replacement(range(len(held)), degree)
        ]
        for degree in (0, 1, 2, 3)
    ]
    line, quadratic = [*terms[0], *terms[1]], [*terms[0], *terms[1], *terms[2]]
    columns = [np.stack([*quadratic, *terms[3]], axis=1)]
    columns += [w * term[:, None] for term in quadratic] + [w**2 * term[:, None] for term in line]
    features = np.concatenate(columns, axis=1)
    freedom = len(u) - features.shape[1]
    # With hardly more draws than features the adjusted share is noise.
    if freedom < len(u) // 4:
        return 0.0
    gram = features.T @ features
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
    residual = log_w - features @ np.linalg.solve(gram, features.T @ log_w)
    return float(1.0 - np.var(residual) / max(np.var(log_w), 1e-300) * len(u) / freedom)


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


__all__ = [
    "Explained",
    "Knot",
    "coupling_of",
    "explained",
    "refit",
    "regression",
    "third_order_coupling",
]
