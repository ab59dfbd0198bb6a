"""Which coordinates explain what a Gaussian misses.

A regression of its own log weights, without any gradient.
"""

import dataclasses
import itertools

import numpy as np

from ..families.gaussian import Gaussian
from .conditional_refit import regression

_CANDIDATES = 4  # of each of the two kinds of coupling
_FEW = 3  # where each regression has thousands of features
_MANY = 64  # dimensions
_RIDGE = 1e-9


@dataclasses.dataclass(frozen=True)
class Explained:
    """The coordinate that explains most of the variance of log weights, the best one to hold with
    it, and the shares.

    `second` is None, and `both` that of one, where no pair was looked at.
    """

    first: int
    second: int | None
    one: float
    both: float


def explained(
    q: Gaussian, z: np.ndarray, log_w: np.ndarray, scores: np.ndarray, *, pairs: bool
) -> Explained:
    """How much of the variance of log weights a Gaussian whose moments depend on one coordinate, or
    on two, would remove.

    Given the coordinates a that are held, log w is regressed on a cubic in a, and on each whitened
    coordinate of the rest and its square, times a quadratic and a line in a: what a mean that bends
    and a scale that changes with a contribute. Candidates are the coordinates with the strongest
    third-order coupling, to the scores as they are and to whitened ones.

    Arguments:
        q: the Gaussian.
        z: `[S, d]` draws of q.
        log_w: `[S]` their log weights, all finite.
        scores: `[S, d]` gradients of log p at them.
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


def coupling_of(u: np.ndarray, s: np.ndarray, v: np.ndarray | None = None) -> np.ndarray:
    """T[j, k], the mean of u_j s_k v_k over draws.

    Coordinates `u` and `v [S, d]` (u if left out), scores `s` in v.
    """
    return u.T @ (s * (u if v is None else v)) / max(len(u), 1)


def _candidates(u: np.ndarray, s: np.ndarray, unit: np.ndarray) -> list[int]:
    """The most strongly coupled coordinates.

    Whitened scores see past directions in which q is long and thin.
    """
    values, vectors = np.linalg.eigh(unit @ unit.T)
    scale = np.sqrt(np.maximum(values, _RIDGE * values[-1]))
    white = coupling_of(u, s @ (vectors * scale) @ vectors.T, u @ (vectors / scale) @ vectors.T)
    count = _CANDIDATES if u.shape[1] <= _MANY else _FEW
    ranked = [np.argsort(-np.sum(c**2, axis=1))[:count] for c in (coupling_of(u, s), white)]
    return list(dict.fromkeys(int(j) for j in np.concatenate(ranked)))


def _share(u: np.ndarray, log_w: np.ndarray, unit: np.ndarray, held: list[int]) -> float:
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
    if freedom < len(u) // 4:
        return 0.0
    gram = features.T @ features
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
    residual = log_w - features @ np.linalg.solve(gram, features.T @ log_w)
    return float(1.0 - np.var(residual) / max(np.var(log_w), 1e-300) * len(u) / freedom)


__all__ = ["Explained", "coupling_of", "explained"]
