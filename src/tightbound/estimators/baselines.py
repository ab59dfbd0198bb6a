"""Control variates of the score function estimator, each of which leaves its gradient unbiased."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, cast, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from .._types import Array, PyTree
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective, Draws
from ..targets.base import Density
from .base import Evaluable, FamilyT, frozen

Baseline = Literal["none", "moving_average", "leave_one_out", "optimal", "taylor"]
_MEMORY = 0.9  # of the moving averages, per step: they look back over some ten steps


class Terms(NamedTuple):
    """The terms of a loss, each a function of one group of draws.

    Attributes:
        influence: what each term adds to the loss (`score.influences`), held.
        z: all draws, group after group.
        mirror: 0 for independent draws; else term t and term t + mirror are made of mirror images
            of each other.
    """

    influence: Float[Array, "terms"]
    z: Float[Array, "n dim"]
    mirror: int


Apply: TypeAlias = Callable[
    [AbstractObjective, Evaluable, AbstractFamily, Terms, PyTree],
    tuple[Float[Array, ""], PyTree],
]
"""(objective, target, q, terms, state) -> (scalar, new state)."""


class Control(NamedTuple):
    """A baseline.

    Attributes:
        start: the state that it starts from, for a given q.
        apply: a scalar whose gradient in q is the estimate of E[f grad log q], and the new state.
    """

    start: Callable[[AbstractFamily], PyTree]
    apply: Apply


def check_baseline(baseline: str, noise: str) -> None:
    """Refuse a baseline that does not exist, or that the noise would make biased (ValueError)."""
    if baseline not in get_args(Baseline):
        raise ValueError(
            f"Score: `baseline` must be one of {', '.join(map(repr, get_args(Baseline)))}, got"
            f" {baseline!r}."
        )
    if noise == "sobol" and baseline in ("leave_one_out", "optimal"):
        raise ValueError(
            f"Score: all Sobol draws of a step hang together, so a {baseline} baseline, made from"
            ' the other draws, would bias the gradient; use baseline="moving_average" or "taylor",'
            ' or noise="antithetic".'
        )


def _none(
    objective: AbstractObjective, target: Evaluable, q: AbstractFamily, terms: Terms, state: PyTree
) -> tuple[Float[Array, ""], PyTree]:
    return jnp.mean(terms.influence * _log_q(q, terms)), state


def _moving_average(
    objective: AbstractObjective, target: Evaluable, q: AbstractFamily, terms: Terms, state: PyTree
) -> tuple[Float[Array, ""], PyTree]:
    total, mass = state
    # Divided by its mass, the average has no bias towards the zero that it started from.
    baseline = total / jnp.maximum(mass, 1e-6)  # both are zero at the first step
    state = _remember(total, jnp.mean(terms.influence)), _remember(mass, jnp.ones_like(mass))
    return jnp.mean((terms.influence - baseline) * _log_q(q, terms)), state


def _leave_one_out(
    objective: AbstractObjective, target: Evaluable, q: AbstractFamily, terms: Terms, state: PyTree
) -> tuple[Float[Array, ""], PyTree]:
    # The mirror image of a term is no independent draw, so that it is left out beside the term.
    others = _sum_of_others(terms.influence, terms.mirror) / (
        len(terms.influence) - (2 if terms.mirror else 1)
    )
    return jnp.mean((terms.influence - others) * _log_q(q, terms)), state


def _optimal(
    objective: AbstractObjective, target: Evaluable, q: AbstractFamily, terms: Terms, state: PyTree
) -> tuple[Float[Array, ""], PyTree]:
    scores = _scores(q, terms)
    squares = scores**2
    above = _sum_of_others(terms.influence[:, None] * squares, terms.mirror)
    below = _sum_of_others(squares, terms.mirror)
    baseline = jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 0.0)
    return (
        _with_gradient(q, jnp.mean((terms.influence[:, None] - baseline) * scores, axis=0)),
        state,
    )


def _taylor(
    objective: AbstractObjective, target: Evaluable, q: AbstractFamily, terms: Terms, state: PyTree
) -> tuple[Float[Array, ""], PyTree]:
    above, below = state
    # `Score.check` has refused every other family, and every target without a density.
    gaussian, density = cast(Gaussian, q), cast(Density, target)
    held = frozen(gaussian)
    centre = jnp.asarray(jax.lax.stop_gradient(gaussian.mean))

    def loss(z: Float[Array, "dim"]) -> Float[Array, ""]:
        log_p, log_q = density.log_density(z), held._log_prob(z)
        return objective.loss(Draws(jnp.asarray(log_p)[None], jnp.asarray(log_q)[None]))

    value, slope, bend = loss(centre), jax.grad(loss)(centre), jax.hessian(loss)(centre)
    away = terms.z - centre[None, :]
    polynomial = value + away @ slope + 0.5 * jnp.sum((away @ bend) * away, axis=1)

    def expected(q: Gaussian) -> Float[Array, ""]:
        move = jnp.asarray(q.mean) - centre
        return slope @ move + 0.5 * (move @ bend @ move + jnp.sum(bend * q.cov))

    scores = _scores(q, terms)
    known, _ = ravel_pytree(eqx.filter_grad(expected)(_moving(gaussian)))
    control = polynomial[:, None] * scores - known[None, :]  # of mean zero
    # The scale of this step comes from the steps before: one from the same draws would bias the
    # gradient.
    scale = jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 1.0)
    raw = terms.influence[:, None] * scores
    # Both covariances are with the same centred control, so that the scale is exactly 1 where f is
    # its own polynomial.
    centred = control - jnp.mean(control, axis=0, keepdims=True)
    together, own = jnp.mean(raw * centred, axis=0), jnp.mean(control * centred, axis=0)
    state = _remember(above, together), _remember(below, own)
    return _with_gradient(q, jnp.mean(raw - scale[None, :] * control, axis=0)), state


def _remember(old: Float[Array, "*p"], new: Float[Array, "*p"]) -> Float[Array, "*p"]:
    return _MEMORY * jnp.asarray(old) + (1 - _MEMORY) * jax.lax.stop_gradient(new)


def _sum_of_others(values: Float[Array, "terms *p"], mirror: int) -> Float[Array, "terms *p"]:
    """For each term the sum over all terms but itself and its mirror image."""
    own = values + jnp.roll(values, mirror, axis=0) if mirror else values
    return jnp.sum(values, axis=0, keepdims=True) - own


def _log_q(q: AbstractFamily, terms: Terms) -> Float[Array, "terms"]:
    """log q of each term, the sum over the draws of its group."""
    return jnp.sum(jax.vmap(q._log_prob)(terms.z).reshape((len(terms.influence), -1)), axis=1)


def _scores(q: AbstractFamily, terms: Terms) -> Float[Array, "terms p"]:
    """Gradients in q's parameters of log q of each term, held."""
    groups = terms.z.reshape((len(terms.influence), -1, terms.z.shape[-1]))

    def score(group: Float[Array, "k dim"]) -> Float[Array, "p"]:
        return ravel_pytree(
            eqx.filter_grad(lambda q: jnp.sum(jax.vmap(q._log_prob)(group)))(_moving(q))
        )[0]

    return jax.vmap(score)(groups)


def _moving(q: FamilyT) -> FamilyT:
    """q cut off from the differentiation around, to be differentiated in anew.

    For that its leaves must be JAX arrays.
    """
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf, frozen(q)
    )


def _with_gradient(q: AbstractFamily, gradient: Float[Array, "p"]) -> Float[Array, ""]:
    """A scalar whose gradient in q is `gradient`."""
    parameters, _ = ravel_pytree(eqx.filter(q, eqx.is_inexact_array))
    return jax.lax.stop_gradient(gradient) @ parameters


def _nothing(q: AbstractFamily) -> None:
    return None


def _two_numbers(q: AbstractFamily) -> tuple[Float[np.ndarray, ""], Float[np.ndarray, ""]]:
    return np.zeros((), q.dtype), np.zeros((), q.dtype)


def _two_per_parameter(
    q: AbstractFamily,
) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(eqx.filter(q, eqx.is_inexact_array)))
    return np.zeros(count, q.dtype), np.zeros(count, q.dtype)


BASELINES: dict[str, Control] = {
    "none": Control(_nothing, _none),
    "moving_average": Control(_two_numbers, _moving_average),
    "leave_one_out": Control(_nothing, _leave_one_out),
    "optimal": Control(_nothing, _optimal),
    "taylor": Control(_two_per_parameter, _taylor),
}

__all__ = ["BASELINES", "Baseline", "Control", "Terms", "check_baseline"]
