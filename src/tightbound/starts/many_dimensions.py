"""A start for many dimensions: an L-BFGS path and the diagonal of the curvature, nothing d x d."""

import numpy as np
from jaxtyping import Float

from ..search.lbfgs import Evaluate, ascend

_PROBES = 8  # random signs, two evaluations each; what stands off the diagonal leaves 1/sqrt(8)
_PASSES = 3  # each with differences over a better scale than the last
_MAX_ITERATIONS = 200  # of L-BFGS
_MEMORY = 8  # curvature pairs: each is two vectors as large as a point


def find_start_large(
    evaluate: Evaluate, points: Float[np.ndarray, "starts dim"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"]] | None:
    """(mean, sd) at the highest end of the L-BFGS paths; None where none is finite.

    sd = 1 / sqrt(diagonal of -Hessian), each where that is positive and finite.

    Arguments:
        evaluate: the log density.
        points: where the paths begin.
        rng: of the probes of the curvature.
    """
    paths = ascend(
        evaluate, points, max_iterations=_MAX_ITERATIONS, memory=_MEMORY, keep_points=False
    )
    if not paths:
        return None
    best = max(paths, key=lambda p: (p.converged, p.values[-1]))
    mean = best.points[-1]
    scale = np.clip(np.sqrt(best.inverse_hessian_diagonal), 1e-6, 1e3)
    for _ in range(_PASSES):
        curvature = -hessian_diagonal(evaluate, mean, 1e-3 * scale, rng)
        good = np.isfinite(curvature) & (curvature > 0)
        # Ten times wider at most: probes are noisy, and a wide start may leave the support
        least = 1e-2 / scale**2
        scale = np.where(
            good, 1.0 / np.sqrt(np.maximum(np.where(good, curvature, 1.0), least)), scale
        )
    return mean, scale


def hessian_diagonal(
    evaluate: Evaluate,
    point: Float[np.ndarray, "dim"],
    step: Float[np.ndarray, "dim"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "dim"]:
    """diag(hess log p), estimated from differences of scores along random signs.

    Source: Bekas, Kokiopoulou & Saad 2007.

    Arguments:
        evaluate: the log density.
        point: where.
        step: length of the differences, by coordinate.
        rng: of the signs.
    """
    signs = rng.choice([-1.0, 1.0], size=(_PROBES, len(point)))
    moves = signs * step
    scores = evaluate(np.concatenate([point + moves, point - moves]))[1]
    change = (scores[:_PROBES] - scores[_PROBES:]) / 2
    return np.mean(change * signs, axis=0) / step


__all__ = ["find_start_large", "hessian_diagonal"]
