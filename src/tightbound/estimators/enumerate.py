"""Exact expectations over a finite support."""

import itertools
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._types import Array, Key
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO, IWELBO
from ..objectives.inclusive import WakePhase
from ..objectives.renyi import VRIWAE, ChiUpper, Renyi
from ..results import PairingError
from .base import AbstractEstimator, Evaluable
from .draws import check_scores, evaluate
from .finite import Coordinates, coordinates

# All of them are evaluated at each step, at once.
_MOST_POINTS = 100_000


class Enumerate(AbstractEstimator[Evaluable]):
    """E_q f = sum over the support of q(z) f(z): the loss and its gradient without noise or bias.

    For Bernoulli and Categorical latents, a handful of them: the support has the product of their
    sizes (to the power of the group for objectives of several draws), at most 100,000 points. Not
    for counts without an upper end, nor for many latents: use Score, or sum out what the model
    allows.

    Source: Mohamed et al. 2020, section 3.1 (the expectation as a sum).
    """

    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = (
        ELBO,
        IWELBO,
        VRIWAE,
        Renyi,
        ChiUpper,
        WakePhase,
    )
    exact: ClassVar[bool] = True

    @property
    def zero_variance_at_optimum(self) -> bool:
        return True

    def _check_draws(self, q: AbstractFamily, objective: AbstractObjective | None) -> None:
        parts = coordinates(q)
        if not parts:
            raise PairingError(
                f"Enumerate sums over a finite support, which {type(q).__name__} is not known to"
                " have; use Score, or Pathwise where draws are smooth in the parameters."
            )
        check_scores("Enumerate", objective, "ELBO()")
        group = 1 if objective is None else objective.group
        # Logarithms: the number of points itself overflows long before it is refused.
        log_points = group * sum(len(part.log_probs) * math.log(len(part.points)) for part in parts)
        if log_points > math.log(_MOST_POINTS):
            raise PairingError(
                f"Enumerate: the support has {math.exp(min(log_points, 700)):.3g} points, more than"
                f' {_MOST_POINTS:,}; use Score(n, baseline="leave_one_out").'
            )

    def prepare(self, target: Evaluable, q: AbstractFamily, key: Key) -> Float[np.ndarray, ""]:
        """The number of points, which is what a step costs."""
        return np.asarray(
            math.prod(len(part.points) ** len(part.log_probs) for part in coordinates(q)), q.dtype
        )

    def evaluations_used(self, target: Evaluable, state: Float[Array, ""]) -> Float[Array, ""]:
        return state

    def surrogate(
        self,
        objective: AbstractObjective,
        target: Evaluable,
        q: AbstractFamily,
        state: Float[Array, ""] | None,
        key: jax.Array,
    ) -> tuple[Float[Array, ""], Float[Array, ""] | None]:
        z, log_probs = support(coordinates(q))
        draws = evaluate(objective, target, q, z)
        tuples = np.stack(
            np.meshgrid(*[np.arange(len(z))] * objective.group, indexing="ij"), axis=-1
        )
        tuples = tuples.reshape((-1, objective.group))
        # A point of probability zero weighs nothing: its log q stays finite, so that 0 times it is
        # 0.
        draws = jax.tree.map(
            lambda field: field[tuples.ravel()], eqx.tree_at(lambda d: d.log_q, draws, log_probs)
        )
        weights = jnp.sum(log_probs[tuples], axis=1)
        return (
            objective.loss(
                eqx.tree_at(lambda d: d.log_weights, draws, weights, is_leaf=lambda x: x is None)
            ),
            state,
        )


def support(
    parts: tuple[Coordinates, ...],
) -> tuple[Float[Array, "points dim"], Float[Array, "points"]]:
    """All points of the product, and their log probabilities."""
    single = [(part.points, row) for part in parts for row in part.log_probs]
    index = np.array(list(itertools.product(*[range(len(points)) for points, _ in single])))
    z = jnp.concatenate([points[index[:, i]] for i, (points, _) in enumerate(single)], axis=1)
    return z, sum((row[index[:, i]] for i, (_, row) in enumerate(single)), jnp.zeros(len(index)))


__all__ = ["Enumerate", "support"]
