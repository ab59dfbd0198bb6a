"""The variance of one-draw gradient estimators, by quadrature and in closed form.

d/dtheta E f(x) under N(mu, s^2), theta in {mu, s}, for the cost functions of Mohamed, Rosca,
Figurnov & Mnih 2020 ("Monte Carlo gradient estimation in machine learning"), section 3. With
u = (x - mu) / s, the gradients in mu and in s of one draw are

    score             f(x) u / s                               f(x) (u^2 - 1) / s
    pathwise          f'(x)                                    f'(x) u
    measure-valued    (f(mu + s r) - f(mu - s r')) / (s a)     (f(mu + s m) - f(mu + s u)) / s

with a = sqrt(2 pi), r and r' Rayleigh, m from the double-sided Maxwell distribution and u normal.
Coupled, r' = r and u is m times a uniform number; independent, all are drawn apart.
"""

import functools
import math
import types
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from .._types import Array, Scalar

MU, S = 1.0, 1.0  # as in the paper
PARAMETERS = ("mu", "s")
_REACH = 12.0  # sds of all integrals: x^4 times the normal density is 1e-27 there

Pair: TypeAlias = Float[np.ndarray, "2"]
"""One number for the mu-gradient and one for the s-gradient."""


class Cost(NamedTuple):
    """f(x, k) with its first two derivatives in x, and the range of k that is shown.

    `value` takes NumPy or jax.numpy as its third argument.
    """

    name: str
    value: Callable[[Array, Scalar, types.ModuleType], Array]
    slope: Callable[[Array, Scalar], Array]
    bend: Callable[[Array, Scalar], Array]
    ks: tuple[float, float]


COSTS = (
    Cost(
        "(x - k)^2",
        lambda x, k, xp: (x - k) ** 2,
        lambda x, k: 2 * (x - k),
        lambda x, k: 2.0 + 0 * x,
        (-3.0, 3.0),
    ),
    Cost(
        "exp(-k x^2)",
        lambda x, k, xp: xp.exp(-k * x**2),
        lambda x, k: -2 * k * x * np.exp(-k * x**2),
        lambda x, k: (4 * k**2 * x**2 - 2 * k) * np.exp(-k * x**2),
        (0.1, 10.0),
    ),
    Cost(
        "cos(k x)",
        lambda x, k, xp: xp.cos(k * x),
        lambda x, k: -k * np.sin(k * x),
        lambda x, k: -(k**2) * np.cos(k * x),
        (0.1, 10.0),
    ),
)

# For f = (x - k)^2 and c = mu - k, the variance of the mu-gradient and of the s-gradient, from the
# moments of the normal, the Rayleigh and the Maxwell distribution. Coupling can raise a variance:
# that of the mu-gradient, where c is large.
CLOSED: dict[str, tuple[Callable[[float, float], float], Callable[[float, float], float]]] = {
    "score": (
        lambda c, s: c**4 / s**2 + 14 * c**2 + 15 * s**2,
        lambda c, s: 2 * c**4 / s**2 + 60 * c**2 + 74 * s**2,
    ),
    "pathwise": (lambda c, s: 4 * s**2, lambda c, s: 4 * c**2 + 8 * s**2),
    "measure-valued, coupled": (
        lambda c, s: 16 * c**2 / math.pi - 4 * c**2,
        lambda c, s: 4 * c**2 + 4 * s**2,
    ),
    "measure-valued, independent": (
        lambda c, s: (4 * c**2 * (2 - math.pi / 2) + 4 * s**2) / math.pi,
        lambda c, s: 16 * c**2 + 8 * s**2,
    ),
}
ESTIMATORS = ("score", "score, optimal baseline", "score, Taylor", *list(CLOSED)[1:])


def by_quadrature(cost: Cost, k: float, mu: float = MU, s: float = S) -> dict[str, Pair]:
    """Variance of the mu- and the s-gradient of every estimator, by Gauss-Legendre."""

    def f(u: Float[np.ndarray, "*nodes"]) -> Float[np.ndarray, "*nodes"]:
        return np.asarray(cost.value(mu + s * u, k, np))

    u, normal, maxwell = normal_nodes()
    scores = np.stack([u, u**2 - 1]) / s
    pathwise = np.asarray(cost.slope(mu + s * u, k)) * np.stack([np.ones_like(u), u])
    baseline, scale, control = controls(cost, k, mu, s)
    found = {
        "score": _variance(f(u) * scores, normal),
        "score, optimal baseline": _variance((f(u) - baseline[:, None]) * scores, normal),
        "score, Taylor": _variance(f(u) * scores - scale[:, None] * control, normal),
        "pathwise": _variance(pathwise, normal),
    }
    r, rayleigh = _half_line()
    constants = 1 / (s * math.sqrt(2 * math.pi)), 1 / s
    share, uniform = _unit_interval()
    both = (f(u)[:, None] - f(np.outer(u, share))).ravel()
    coupled = _variance(f(r) - f(-r), rayleigh), _variance(both, np.outer(maxwell, uniform).ravel())
    apart = (
        _variance(f(r), rayleigh) + _variance(f(-r), rayleigh),
        _variance(f(u), maxwell) + _variance(f(u), normal),
    )
    for name, parts in (("coupled", coupled), ("independent", apart)):
        found[f"measure-valued, {name}"] = np.array(
            [c**2 * part for c, part in zip(constants, parts, strict=True)]
        )
    return found


def controls(
    cost: Cost, k: float, mu: float = MU, s: float = S
) -> tuple[Pair, Pair, Float[np.ndarray, "2 nodes"]]:
    """The best scalar baselines, the best scales of the Taylor control variates, and the variates.

    A baseline b leaves f - b in the place of f. A Taylor variate is the gradient estimate of f's
    second-order polynomial at mu, less its mean.
    """
    u, normal, _ = normal_nodes()
    f, scores = np.asarray(cost.value(mu + s * u, k, np)), np.stack([u, u**2 - 1]) / s
    slope, bend = (np.float64(d(np.asarray(mu), k)) for d in (cost.slope, cost.bend))
    polynomial = cost.value(np.asarray(mu), k, np) + slope * s * u + 0.5 * bend * (s * u) ** 2
    control = np.asarray(polynomial * scores - np.array([slope, bend * s])[:, None])
    together, own = (f * scores * control) @ normal, control**2 @ normal
    return (
        (f * scores**2) @ normal / (scores**2 @ normal),
        together / np.where(own > 0, own, 1.0),
        control,
    )


def _variance(
    values: Float[np.ndarray, "*gradients nodes"], weights: Float[np.ndarray, "nodes"]
) -> Float[np.ndarray, "*gradients"]:
    """Variance of the values at the nodes, for each row where there are several."""
    return np.asarray((values**2) @ weights - (values @ weights) ** 2)


# The numbers of nodes below bring every curve to 1e-8 of the closed forms where there are any.


@functools.cache
def normal_nodes() -> tuple[
    Float[np.ndarray, "nodes"], Float[np.ndarray, "nodes"], Float[np.ndarray, "nodes"]
]:
    """Nodes u on the line, with the weights of the normal and of the double-sided Maxwell."""
    u, w = np.polynomial.legendre.leggauss(600)
    normal = _REACH * w * np.exp(-0.5 * (_REACH * u) ** 2) / math.sqrt(2 * math.pi)
    return _REACH * u, normal, normal * (_REACH * u) ** 2


@functools.cache
def _half_line() -> tuple[Float[np.ndarray, "nodes"], Float[np.ndarray, "nodes"]]:
    """Nodes r > 0 with the weights of the Rayleigh distribution."""
    u, w = np.polynomial.legendre.leggauss(400)
    r = 0.5 * _REACH * (u + 1)
    return r, 0.5 * _REACH * w * r * np.exp(-0.5 * r**2)


@functools.cache
def _unit_interval() -> tuple[Float[np.ndarray, "nodes"], Float[np.ndarray, "nodes"]]:
    """Nodes with the weights of the uniform distribution."""
    u, w = np.polynomial.legendre.leggauss(100)
    return 0.5 * (u + 1), 0.5 * w


__all__ = [
    "CLOSED",
    "COSTS",
    "ESTIMATORS",
    "MU",
    "PARAMETERS",
    "Cost",
    "Pair",
    "S",
    "by_quadrature",
    "controls",
]
