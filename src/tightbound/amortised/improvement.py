"""By how much could a better function than f still lower the expected loss? A correction, and what
it gains elsewhere.

With a loss that is convex in eta and r its gradient at f(x), L(f) - L(h) <= E <r, f - h> for any
function h. The h here is f minus a regression of r on x, whitened by the Fisher information: near
the optimum the whole gap is half of the first-order term E <r, f - h> at the best h, so that a
regression that finds more than half of g has a bound above the gap.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from .._numerics import host_rng
from .._types import Estimate
from ..certify.simulations import Simulated, features
from .residuals import Whitened, losses_at, whitened

_WIDTHS = (0.15, 0.3, 0.6, 1.2)  # of the Gaussian kernel, in median distances
_RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_LANDMARKS = 200
_PARTS = 5
_LARGEST_LINEAR = 200  # numbers in x that a linear regression takes
_STEPS = (0.25, 0.5, 1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Improvement:
    """What a correction h of f does, both in nats: 0 <= L(f) - L(h) <= bound, up to their standard
    errors.

    Attributes:
        gain: L(f) - L(h), on draws that h has not seen: at most the gap to the optimum.
        bound: E <r, f - h> on the same draws: for a convex head at least the gain, and near the
            optimum about twice the part of the gap that the regression sees.
    """

    gain: Estimate
    bound: Estimate


def improvement(q: Any, made: Simulated, key: Any = 0, seen: Whitened | None = None) -> Improvement:
    """The best correction of one network that ridge regressions on the draws `made` can find, and
    what it gains.

    The draws are cut in five: regressions of several kinds are fitted to three parts, one of them
    and its step are chosen on the fourth, and judged on the fifth; in turn. So noise gains nothing.

    Arguments:
        q: a Conditional.
        made: fresh draws.
        key: of landmarks and of draws of q.
        seen: `whitened(q, made, key)`, where it is known already.
    """
    n = len(made) // _PARTS * _PARTS
    eta, loss, root, w = (part[:n] for part in (whitened(q, made, key) if seen is None else seen))
    bases = list(_bases(features(q, made.x)[:n], key))
    parts = np.array_split(np.arange(n), _PARTS)
    gains, bounds = np.zeros(n), np.zeros(n)
    for i in range(_PARTS):
        choose, judge = parts[i - 1], parts[i]
        held = np.concatenate([choose, judge])
        found = np.concatenate(
            [_ridge_regressions(basis, w, np.delete(np.arange(n), held), held) for basis in bases]
        )
        first = slice(0, len(choose))
        best = found[
            np.argmax(np.sum(w[choose] * found[:, first] - 0.5 * found[:, first] ** 2, axis=(1, 2)))
        ]
        direction = np.einsum("nij,nj->ni", root[held], best)
        gained = {
            s: loss[held] - losses_at(q, eta[held] - s * direction, made.z[held]) for s in _STEPS
        }
        step = max(_STEPS, key=lambda s, gained=gained, first=first: np.mean(gained[s][first]))
        if np.mean(gained[step][first]) > 0:
            gains[judge] = gained[step][len(choose) :]
            bounds[judge] = step * np.sum(w[held] * best, axis=1)[len(choose) :]
    return Improvement(average(gains), average(bounds))


def _bases(x: np.ndarray, key: Any) -> Iterator[np.ndarray]:
    """Functions of x to regress on, `[n, m]`.

    Linear ones, and Gaussian bumps of several widths (Nystrom's features).
    """
    if x.shape[1] <= _LARGEST_LINEAR:
        yield np.concatenate([np.ones((len(x), 1)), x], axis=1)
    chosen = host_rng(key, "landmarks").choice(len(x), min(_LANDMARKS, len(x)), replace=False)
    square = squared_distances(x, x[chosen])
    middle = max(float(np.median(square)), 1e-12)
    for width in _WIDTHS:
        bumps = np.exp(-0.5 * square / (middle * width**2))
        values, vectors = np.linalg.eigh(bumps[chosen])
        keep = values > 1e-8 * values[-1]
        yield bumps @ (vectors[:, keep] / np.sqrt(values[keep]))


def _ridge_regressions(
    basis: np.ndarray, w: np.ndarray, fitted: np.ndarray, judged: np.ndarray
) -> np.ndarray:
    """Predictions `[ridges, judged, k]` of w, by regressions on the rows `fitted` with each ridge."""
    values, vectors = np.linalg.eigh(basis[fitted].T @ basis[fitted])
    turned, projected = basis[judged] @ vectors, vectors.T @ (basis[fitted].T @ w[fitted])
    return np.stack(
        [turned @ (projected / (np.maximum(values, 0.0) + ridge)[:, None]) for ridge in _RIDGES]
    )


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a_i - b_j|^2, `[n, m]`."""
    return np.maximum(
        np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)[None, :] - 2 * a @ b.T, 0.0
    )


def average(values: np.ndarray) -> Estimate:
    """The mean, with its standard error."""
    return Estimate(float(values.mean()), float(values.std() / np.sqrt(len(values))))


__all__ = ["Improvement", "average", "improvement", "squared_distances"]
