"""Gauss-Hermite quadrature.

Expectations under a Gaussian in one or two dimensions, to as many digits as nodes give.
"""

import functools
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._types import Array
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError
from ..targets.batched import batched
from .base import AbstractEstimator, Moments

_MOST_NODES = {1: 241, 2: 61}  # per axis
_LEAST_WEIGHT = 1e-18


class Nodes(eqx.Module):
    """A tensor rule for N(0, I).

    Nodes `[m, d]`, weights `[m]` that sum to 1, and `count` nodes per axis.
    """

    nodes: Array
    weights: Array
    count: int = eqx.field(static=True)


class GaussHermite(AbstractEstimator):
    """E_q f = sum_k w_k f(mean + root u_k), with `nodes` Gauss-Hermite nodes u_k per axis, for one
    or two dimensions.

    Exact for polynomials f of degree up to 2 nodes - 1, and then with a geometric error as long as
    nodes lie closer than the features of the density. It judges itself by the last two Hermite
    coefficients of the whitened score, and NaturalGradient doubles the nodes until those are below
    `tol`. Its ELBO and its gradients belong together, so searches over it are monotone. A start
    that is wide against narrow features can miss them altogether: start close
    (`tb.solvers.Annealed` for the clutter problem). Not for more than two dimensions: use
    FixedDesign.

    Source: Golub & Welsch 1969 (the rule); Opper & Archambeau 2009, eqs. 5-8 (Gaussian moments).

    Attributes:
        nodes: nodes per axis to begin with.
    """

    nodes: int = eqx.field(default=15, static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = (ELBO,)
    needs_reparameterised: ClassVar[bool] = True

    def __check_init__(self):
        if self.nodes < 3:
            raise ValueError(f"GaussHermite: `nodes` must be at least 3, got {self.nodes}.")

    def prepare(self, target: Any, q: Any, key: Any) -> Nodes:
        """The rule for q's dimension.

        Raises:
            PairingError: in more than two dimensions.
        """
        if q.dim not in _MOST_NODES:
            raise PairingError(
                f"GaussHermite serves one or two dimensions, q has {q.dim}; use"
                " tb.estimators.FixedDesign()."
            )
        return tensor_rule(self.nodes, q.dim)

    def surrogate(
        self, objective: AbstractObjective, target: Any, q: Any, state: Any, key: Any
    ) -> tuple[Any, Any]:
        if not isinstance(objective, ELBO):
            raise PairingError(
                "GaussHermite gives the ELBO and no other objective, got"
                f" {type(objective).__name__}."
            )
        z = eqx.filter_vmap(q._from_noise)(jnp.asarray(state.nodes))
        log_w = eqx.filter_vmap(target.log_density)(z) - eqx.filter_vmap(q._log_prob)(z)
        return -jnp.sum(jnp.asarray(state.weights) * log_w), state

    def moments(self, target: Any, mean: np.ndarray, root: np.ndarray, design: Nodes) -> Moments:
        """Whitened moments of the target under N(mean, root root')."""
        values, scores = batched(target)(mean + design.nodes @ root.T)
        white, w, dim = scores @ root, design.weights, len(mean)
        half = (w[:, None] * design.nodes).T @ white
        entropy = float(np.linalg.slogdet(root)[1]) + 0.5 * dim * (1.0 + np.log(2 * np.pi))
        finite = bool(np.all(np.isfinite(values)) and np.all(np.isfinite(scores)))
        gradient = w @ white
        rest = _last_coefficients(white, design) if finite else np.zeros(dim)
        return Moments(
            elbo=np.asarray(w @ values + entropy if finite else -np.inf),
            elbo_stderr=np.asarray(0.0),
            gradient=gradient,
            gradient_spread=(gradient + rest)[None, :],
            curvature=-0.5 * (half + half.T),
            curvature_stderr=np.asarray(np.sqrt(np.mean(rest**2))),
            evaluations=len(values),
            finite=finite,
        )

    def enlarged(self, design: Nodes, ratio: float, rng: Any) -> Nodes | None:
        """About twice the nodes per axis; None where there are no more."""
        dim = design.nodes.shape[1]
        count = min(2 * design.count + 1, _MOST_NODES[dim])
        return None if count == design.count else tensor_rule(count, dim)


@functools.lru_cache(maxsize=32)
def tensor_rule(count: int, dim: int, least: float = _LEAST_WEIGHT) -> Nodes:
    """The tensor rule with `count` nodes per axis, without nodes of weight up to `least`.

    0 keeps the rule's full degree.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    grid = np.stack(np.meshgrid(*[nodes] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    joint = functools.reduce(np.multiply.outer, [weights] * dim).ravel()
    keep = joint > least
    return Nodes(grid[keep], joint[keep] / joint[keep].sum(), count)


def _last_coefficients(scores: np.ndarray, design: Nodes) -> np.ndarray:
    """Root of the sum of squares of the last two Hermite coefficients of each score along each
    axis: `[d]`.
    """
    total = np.zeros(scores.shape[1])
    for axis in design.nodes.T:
        for coefficients in _last_polynomials(axis, design.count):
            total += ((design.weights * coefficients) @ scores) ** 2
    return np.sqrt(total)


def _last_polynomials(u: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The normalised Hermite polynomials of degrees count - 2 and count - 1 at u, by their
    recurrence.
    """
    below, here = np.zeros_like(u), np.ones_like(u)
    for k in range(count - 1):
        below, here = here, (u * here - np.sqrt(k) * below) / np.sqrt(k + 1)
    return below, here


__all__ = ["GaussHermite", "Nodes", "tensor_rule"]
