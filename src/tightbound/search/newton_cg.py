"""Trust-region Newton by truncated conjugate gradients: products with the Hessian, never itself.

SciPy's `trust-ncg` runs to its end in one call; the loop of this library looks at budget,
interruption and progress between steps, so the step stands here on its own.

Source: Steihaug 1983; Nocedal & Wright 2006, Algorithms 4.1 and 7.2.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

_ACCEPT, _POOR, _GOOD = 1e-4, 0.25, 0.75  # ratios of actual to predicted decrease
_SHRINK, _GROW = 0.25, 2.0  # of the step that was poor, and of the radius that was too small
_WIDEST = 1e6  # sds: the largest radius
_LEAST_CURVATURE = 1e-14  # relative to |direction|^2: less is rounding

Product: TypeAlias = Callable[[Float[np.ndarray, "vector"]], Float[np.ndarray, "vector"]]
"""H v, of a vector v."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A step and the decrease that the quadratic model predicts.

    Attributes:
        move: the step.
        predicted: decrease of the model.
        inside: whether the trust region did not cut it short.
        products: with the Hessian that it took.
    """

    move: Float[np.ndarray, "vector"]
    predicted: float
    inside: bool
    products: int


def steihaug(
    gradient: Float[np.ndarray, "vector"],
    product: Product,
    radius: float,
    tolerance: float,
    most: int,
) -> Step:
    """Minimise g's + s'Hs/2 within |s| <= radius.

    It ends where the residual is small, at the edge of the region, or along a direction of negative
    curvature, at its edge.

    Arguments:
        gradient: g.
        product: H v.
        radius: of the trust region.
        tolerance: norm of the residual at which it ends.
        most: products with H.
    """
    step, residual = np.zeros_like(gradient), gradient.copy()
    direction, model = -residual, 0.0
    for count in range(1, most + 1):
        curved = product(direction)
        curvature, slope = float(direction @ curved), float(residual @ residual)
        # Along negative curvature the model falls without end, so the edge is the best point there.
        is_convex = curvature > _LEAST_CURVATURE * float(direction @ direction)
        length = slope / curvature if is_convex else np.inf
        if not is_convex or np.linalg.norm(step + length * direction) >= radius:
            edge = _to_edge(step, direction, radius)
            predicted = -_change(model, residual, direction, curvature, edge)
            return Step(step + edge * direction, predicted, False, count)
        model = _change(model, residual, direction, curvature, length)
        step = step + length * direction
        residual = residual + length * curved
        if np.linalg.norm(residual) <= tolerance:
            return Step(step, -model, True, count)
        direction = -residual + (float(residual @ residual) / slope) * direction
    return Step(step, -model, True, most)


def next_radius(radius: float, step: Step, decrease: float) -> tuple[float, bool]:
    """The new radius, and whether the step is taken.

    Arguments:
        radius: that the step was taken within.
        step: with the decrease that was predicted.
        decrease: that came true; NaN or -inf at a point without a finite density.
    """
    ratio = decrease / step.predicted if step.predicted > 0 and np.isfinite(decrease) else -np.inf
    length = float(np.linalg.norm(step.move))
    if ratio < _POOR:
        radius = _SHRINK * length
    elif ratio > _GOOD and not step.inside:
        radius = min(_GROW * radius, _WIDEST)
    return radius, bool(ratio > _ACCEPT)


def _to_edge(
    step: Float[np.ndarray, "vector"], direction: Float[np.ndarray, "vector"], radius: float
) -> float:
    """The positive t with |step + t direction| = radius."""
    a, b, c = float(direction @ direction), float(step @ direction), float(step @ step) - radius**2
    return (-b + np.sqrt(max(b * b - a * c, 0.0))) / a


def _change(
    model: float,
    residual: Float[np.ndarray, "vector"],
    direction: Float[np.ndarray, "vector"],
    curvature: float,
    length: float,
) -> float:
    """The model's value after `length` along `direction`, with `residual` its gradient before."""
    return model + length * float(residual @ direction) + 0.5 * length**2 * curvature


__all__ = ["Product", "Step", "next_radius", "steihaug"]
