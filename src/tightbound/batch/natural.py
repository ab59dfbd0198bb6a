"""Natural gradient for many data sets at once, compiled: one lane is one data set.

Every decision is that of `search/natural_search.py`, called with `xp=jax.numpy`; here stand only
the evaluation of a lane's proposal and the loop. A lane that has ended, or whose density is NaN,
keeps its state whatever the others do.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, PyTree, Shaped

from .._types import Array, Scalar
from ..estimators.base import Moments
from ..estimators.fixed_design import whitened_moments
from ..search.natural_rule import FULL, RUNNING
from ..search.natural_search import LEAP, STEP, NaturalSearch, leapt, stepped, tell

LogDensity: TypeAlias = Callable[[Float[Array, "dim"]], Float[Array, ""]]
RowDensity: TypeAlias = Callable[[PyTree, Float[Array, "dim"]], Float[Array, ""]]
"""(one data set, point) -> log density."""


def proposed(lanes: NaturalSearch) -> NaturalSearch:
    """All lanes with their next proposals.

    An extrapolation takes two singular value decompositions, many times the cost of a step: it is
    computed only in a round in which some lane makes one. Hence the condition around all lanes: one
    inside them would compute both sides for each.
    """
    starting = jnp.asarray(lanes.kind < STEP)
    steps = _where(starting, lanes, jax.vmap(lambda s: stepped(s, FULL, jnp))(lanes))
    leaping = jnp.asarray((lanes.kind == LEAP) & (lanes.status == RUNNING))
    return jax.lax.cond(
        jnp.any(leaping),
        lambda: _where(leaping, jax.vmap(lambda s: leapt(s, jnp))(lanes), steps),
        lambda: steps,
    )


def run_lanes(
    log_density: RowDensity,
    lanes: NaturalSearch,
    rows: PyTree,
    design: Float[Array, "m dim"],
    tol: Scalar,
    most: int,
) -> NaturalSearch:
    """All lanes at once, until each has ended or `most` more proposals were evaluated."""

    def told(lane: NaturalSearch, row: PyTree) -> NaturalSearch:
        moments = _moments(lambda z: log_density(row, z), lane, design)
        return tell(lane, moments, FULL, tol, jnp)

    def step(carry: tuple[Array, NaturalSearch]) -> tuple[Array, NaturalSearch]:
        count, lanes = carry
        new = jax.vmap(told)(proposed(lanes), rows)
        return count + 1, _where(jnp.asarray(lanes.status == RUNNING), new, lanes)

    def goes_on(carry: tuple[Array, NaturalSearch]) -> Bool[Array, ""]:
        count, lanes = carry
        return (count < most) & jnp.any(lanes.status == RUNNING)

    return jax.lax.while_loop(goes_on, step, (jnp.zeros((), jnp.int64), lanes))[1]


def _moments(
    log_density: LogDensity, lane: NaturalSearch, design: Float[Array, "m dim"]
) -> Moments:
    """Of one lane at its proposal."""
    mean, root = lane.proposed_mean, lane.proposed_root
    moves = design @ root.T
    points = jnp.concatenate([mean[None, :] + moves, mean[None, :] - moves])
    values, scores = jax.vmap(jax.value_and_grad(log_density))(points)
    return whitened_moments(design, values, scores @ root, lane.proposed_log_det, xp=jnp)


def _where(which: Bool[Array, "lanes"], yes: NaturalSearch, no: NaturalSearch) -> NaturalSearch:
    """Lane by lane one of the two."""

    def chosen(
        a: Shaped[Array, "lanes ..."], b: Shaped[Array, "lanes ..."]
    ) -> Shaped[Array, "lanes ..."]:
        return jnp.where(which.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(chosen, yes, no)


__all__ = ["LogDensity", "RowDensity", "proposed", "run_lanes"]
