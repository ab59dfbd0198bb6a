"""Gauss-Hermite quadrature: expectations under a Gaussian in one or two dimensions."""

import functools
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._types import Array, Key
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError
from ..targets.base import Density
from ..targets.batched import batched
from .base import AbstractMomentEstimator, Moments

# By dimension, per axis. NumPy's rule overflows at some 380 nodes; in the plane their number is
# squared.
_MOST_NODES = {1: 241, 2: 61}
# Nodes of less weight lie where the density was never meant to be evaluated, and add nothing to a
# sum of doubles.
_LEAST_WEIGHT = 1e-18


class Nodes(eqx.Module):
    """A tensor rule for N(0, I): weights that sum to 1, and `count` nodes per axis."""

    nodes: Float[Array, "m dim"]
    weights: Float[Array, "m"]
    count: int = eqx.field(static=True)


class GaussHermite(AbstractMomentEstimator[Density]):
    """E_q f = sum_k w_k f(mean + root u_k), with Gauss-Hermite nodes u_k.

    For one or two dimensions. Exact for polynomials f of degree up to 2 nodes - 1, and then with a
    geometric error as long as nodes lie closer than the features of the density. It judges itself
    by the last two Hermite coefficients of the whitened score, and NaturalGradient doubles the
    nodes until those are below `tol`. Its ELBO and its gradients belong together, so searches over
    it are monotone. A start that is wide against narrow features can miss them altogether: start
    close (`tb.solvers.Annealed` for the clutter problem). Not for more than two dimensions: use
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

    def prepare(self, target: Density, q: AbstractFamily, key: Key | None) -> Nodes:
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
        self,
        objective: AbstractObjective,
        target: Density,
        q: AbstractFamily,
        state: Nodes,
        key: Key | None,
    ) -> tuple[Float[Array, ""], Nodes]:
        if type(objective) not in self.unbiased_for:
            raise PairingError(
                "GaussHermite gives the ELBO and no other objective, got"
                f" {type(objective).__name__}."
            )
        z = eqx.filter_vmap(q._from_noise)(jnp.asarray(state.nodes))
        log_w = eqx.filter_vmap(target.log_density)(z) - eqx.filter_vmap(q._log_prob)(z)
        return -jnp.sum(jnp.asarray(state.weights) * log_w), state

    def moments(
        self,
        target: Density,
        mean: Float[np.ndarray, "dim"],
        root: Float[np.ndarray, "dim dim"],
        design: Nodes,
    ) -> Moments:
        """Whitened moments of the target under N(mean, root root')."""
        values, scores = batched(target)(mean + np.asarray(design.nodes) @ root.T)
        white, w, dim = scores @ root, np.asarray(design.weights), len(mean)
        half = (w[:, None] * design.nodes).T @ white
        entropy = float(np.linalg.slogdet(root)[1]) + 0.5 * dim * (1.0 + np.log(2 * np.pi))
        finite = bool(np.all(np.isfinite(values)) and np.all(np.isfinite(scores)))
        gradient = w @ white
        rest = _last_coefficients(white, design) if finite else np.zeros(dim)
        return Moments(
            elbo=np.asarray(w @ values + entropy if finite else -np.inf),
            elbo_stderr=np.asarray(0.0),
            gradient=gradient,
            # One row, as far from `gradient` as the rule may be wrong: to a solver that is the
            # error of a design of one pair.
            gradient_spread=(gradient + rest)[None, :],
            curvature=-0.5 * (half + half.T),
            curvature_stderr=np.asarray(np.sqrt(np.mean(rest**2))),
            evaluations=len(values),
            finite=finite,
        )

    def enlarged(
        self, design: Nodes, ratio: float, rng: np.random.Generator | None
    ) -> Nodes | None:
        """About twice the nodes per axis; None where there are no more."""
        dim = design.nodes.shape[1]
        count = min(2 * design.count + 1, _MOST_NODES[dim])
        return None if count == design.count else tensor_rule(count, dim)


@functools.lru_cache(maxsize=32)
def tensor_rule(count: int, dim: int, least: float = _LEAST_WEIGHT) -> Nodes:
    """The tensor rule with `count` nodes per axis, without nodes of weight up to `least`.

    A `least` of 0 keeps the rule's full degree.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    grid = np.stack(np.meshgrid(*[nodes] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    joint = functools.reduce(np.multiply.outer, [weights] * dim).ravel()
    keep = joint > least
    return Nodes(grid[keep], joint[keep] / joint[keep].sum(), count)


def _last_coefficients(
    scores: Float[np.ndarray, "m dim"], design: Nodes
) -> Float[np.ndarray, "dim"]:
    """Of each score, the root of the sum of squares of its last two Hermite coefficients.

    Along each axis: what the rule can still resolve, hence about the size of what it cannot. Two,
    since those of one parity vanish for an even or odd score.
    """
    total = np.zeros(scores.shape[1])
    for axis in np.asarray(design.nodes).T:
        for coefficients in _last_polynomials(axis, design.count):
            total += ((design.weights * coefficients) @ scores) ** 2
    return np.sqrt(total)


def _last_polynomials(
    u: Float[np.ndarray, "m"], count: int
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """The normalised Hermite polynomials of degrees count - 2 and count - 1 at u.

    By their three-term recurrence.
    """
    below, here = np.zeros_like(u), np.ones_like(u)
    for k in range(count - 1):
        below, here = here, (u * here - np.sqrt(k) * below) / np.sqrt(k + 1)
    return below, here


__all__ = ["GaussHermite", "Nodes", "tensor_rule"]
