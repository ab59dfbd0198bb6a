"""Trust-region Newton by truncated conjugate gradients: needs products with the Hessian and never
the Hessian.

SciPy's `trust-ncg` runs to its end in one call; the loop of this library looks at budget,
interruption and progress between steps, so the step stands here on its own.

Source: Steihaug 1983; Nocedal & Wright 2006, Algorithms 4.1 and 7.2.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

_ACCEPT, _POOR, _GOOD = 1e-4, 0.25, 0.75  # ratios of actual to predicted decrease
_WIDEST = 1e6

Product = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Step:
    """A step and the decrease that the quadratic model predicts.

    `inside` where the trust region did not cut it short.
    """

    move: np.ndarray
    predicted: float
    inside: bool
    products: int


def steihaug(
    gradient: np.ndarray, product: Product, radius: float, tolerance: float, most: int
) -> Step:
    """Minimise g's + s'Hs/2 within |s| <= radius until the residual is below `tolerance`, or
    curvature turns negative.
    """
    step, residual = np.zeros_like(gradient), gradient.copy()
    direction, model = -residual, 0.0
    for count in range(1, most + 1):
        curved = product(direction)
        curvature, slope = float(direction @ curved), float(residual @ residual)
        if curvature <= 1e-14 * float(direction @ direction):
            edge = _to_edge(step, direction, radius)
            return Step(
                step + edge * direction,
                -_change(model, residual, direction, curvature, edge),
                False,
                count,
            )
        length = slope / curvature
        if np.linalg.norm(step + length * direction) >= radius:
            edge = _to_edge(step, direction, radius)
            return Step(
                step + edge * direction,
                -_change(model, residual, direction, curvature, edge),
                False,
                count,
            )
        model = _change(model, residual, direction, curvature, length)
        step = step + length * direction
        residual = residual + length * curved
        if np.linalg.norm(residual) <= tolerance:
            return Step(step, -model, True, count)
        direction = -residual + (float(residual @ residual) / slope) * direction
    return Step(step, -model, True, most)


def next_radius(radius: float, step: Step, decrease: float) -> tuple[float, bool]:
    """(the new radius, whether the step is taken), from the decrease that came true (NaN or -inf.

    A point out of bounds).
    """
    ratio = decrease / step.predicted if step.predicted > 0 and np.isfinite(decrease) else -np.inf
    length = float(np.linalg.norm(step.move))
    if ratio < _POOR:
        radius = 0.25 * length
    elif ratio > _GOOD and not step.inside:
        radius = min(2.0 * radius, _WIDEST)
    return radius, bool(ratio > _ACCEPT)


def _to_edge(step: np.ndarray, direction: np.ndarray, radius: float) -> float:
    """The positive t with |step + t direction| = radius."""
    a, b, c = float(direction @ direction), float(step @ direction), float(step @ step) - radius**2
    return (-b + np.sqrt(max(b * b - a * c, 0.0))) / a


def _change(
    model: float, residual: np.ndarray, direction: np.ndarray, curvature: float, length: float
) -> float:
    """The model's value after `length` along `direction`, with `residual` its gradient before."""
    return model + length * float(residual @ direction) + 0.5 * length**2 * curvature


__all__ = ["Step", "next_radius", "steihaug"]
