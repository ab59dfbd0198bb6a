"""A start for many dimensions: an L-BFGS path and the diagonal of the curvature, nothing d x d."""

import numpy as np

from ..search.lbfgs import Evaluate, ascend

_PROBES = 8
_PASSES = 3


def find_start_large(
    evaluate: Evaluate, points: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """(mean, sd) at the highest end of the L-BFGS paths from `points [starts, d]`.

    None where none is finite.

    sd = 1 / sqrt(diagonal of -Hessian), each where that is positive and finite.
    """
    paths = ascend(evaluate, points, max_iterations=200, memory=8, keep_points=False)
    if not paths:
        return None
    best = max(paths, key=lambda p: (p.converged, p.values[-1]))
    mean = best.points[-1]
    scale = np.clip(np.sqrt(best.inverse_hessian_diagonal), 1e-6, 1e3)
    for _ in range(_PASSES):
        curvature = -hessian_diagonal(evaluate, mean, 1e-3 * scale, rng)
        good = np.isfinite(curvature) & (curvature > 0)
        # ten times wider at most: probes are noisy, and a wide start may leave the support
        least = 1e-2 / scale**2
        scale = np.where(
            good, 1.0 / np.sqrt(np.maximum(np.where(good, curvature, 1.0), least)), scale
        )
    return mean, scale


def hessian_diagonal(
    evaluate: Evaluate, point: np.ndarray, step: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """diag(hess log p) from differences of scores along random signs (Bekas, Kokiopoulou & Saad
    2007): `[d]`.
    """
    signs = rng.choice([-1.0, 1.0], size=(_PROBES, len(point)))
    moves = signs * step
    scores = evaluate(np.concatenate([point + moves, point - moves]))[1]
    change = (scores[:_PROBES] - scores[_PROBES:]) / 2
    return np.mean(change * signs, axis=0) / step
