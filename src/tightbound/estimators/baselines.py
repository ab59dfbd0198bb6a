"""Control variates of the score function estimator, each of which leaves its gradient unbiased."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._types import PyTree
from ..objectives.base import AbstractObjective, Draws
from .base import frozen

Baseline = Literal["none", "moving_average", "leave_one_out", "optimal", "taylor"]
_MEMORY = 0.9  # of the moving averages, per step


class Terms(NamedTuple):
    """The T terms of a loss: their influences `[T]`, all draws `[n, dim]`, and the distance of
    mirror images, in terms.

    `mirror` is 0 for independent draws; else term t and term t + mirror are made of mirror images
    of each other.
    """

    influence: jax.Array
    z: jax.Array
    mirror: int


class Control(NamedTuple):
    """A baseline: the state it starts from, and `apply(objective, target, q, terms, state) ->
    (scalar, state)`.

    The gradient in q of the scalar is the estimate of E[f grad log q].
    """

    start: Callable[[Any], PyTree]
    apply: Callable[..., tuple[jax.Array, PyTree]]


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
    objective: AbstractObjective, target: Any, q: Any, terms: Terms, state: PyTree
) -> tuple[jax.Array, PyTree]:
    return jnp.mean(terms.influence * _log_q(q, terms)), state


def _moving_average(objective: AbstractObjective, target: Any, q: Any, terms: Terms, state: PyTree):
    total, mass = state
    baseline = total / jnp.maximum(mass, 1e-6)  # both zero at the first step
    state = _remember(total, jnp.mean(terms.influence)), _remember(mass, jnp.ones_like(mass))
    return jnp.mean((terms.influence - baseline) * _log_q(q, terms)), state


def _leave_one_out(objective: AbstractObjective, target: Any, q: Any, terms: Terms, state: PyTree):
    others = _sum_of_others(terms.influence, terms.mirror) / (
        len(terms.influence) - (2 if terms.mirror else 1)
    )
    return jnp.mean((terms.influence - others) * _log_q(q, terms)), state


def _optimal(objective: AbstractObjective, target: Any, q: Any, terms: Terms, state: PyTree):
    scores = _scores(q, terms)
    squares = scores**2
    above = _sum_of_others(terms.influence[:, None] * squares, terms.mirror)
    below = _sum_of_others(squares, terms.mirror)
    baseline = jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 0.0)
    return (
        _with_gradient(q, jnp.mean((terms.influence[:, None] - baseline) * scores, axis=0)),
        state,
    )


def _taylor(objective: AbstractObjective, target: Any, q: Any, terms: Terms, state: PyTree):
    above, below = state
    held = frozen(q)
    centre = jax.lax.stop_gradient(q.mean)

    def loss(z: jax.Array) -> jax.Array:
        return objective.loss(Draws(target.log_density(z)[None], held._log_prob(z)[None]))

    value, slope, bend = loss(centre), jax.grad(loss)(centre), jax.hessian(loss)(centre)
    away = terms.z - centre[None, :]
    polynomial = value + away @ slope + 0.5 * jnp.sum((away @ bend) * away, axis=1)

    def expected(q: Any) -> jax.Array:
        move = q.mean - centre
        return slope @ move + 0.5 * (move @ bend @ move + jnp.sum(bend * q.cov))

    scores = _scores(q, terms)
    known, _ = ravel_pytree(eqx.filter_grad(expected)(_moving(q)))
    control = polynomial[:, None] * scores - known[None, :]  # of mean zero
    scale = jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 1.0)
    raw = terms.influence[:, None] * scores
    # hence a scale of 1 where f is the polynomial
    away_from_mean = control - jnp.mean(control, axis=0, keepdims=True)
    together, own = (
        jnp.mean(raw * away_from_mean, axis=0),
        jnp.mean(control * away_from_mean, axis=0),
    )
    state = _remember(above, together), _remember(below, own)
    return _with_gradient(q, jnp.mean(raw - scale[None, :] * control, axis=0)), state


def _remember(old: jax.Array, new: jax.Array) -> jax.Array:
    return _MEMORY * old + (1 - _MEMORY) * jax.lax.stop_gradient(new)


def _sum_of_others(values: jax.Array, mirror: int) -> jax.Array:
    """For each term the sum over all terms but itself and its mirror image, `[T, ...]`."""
    own = values + jnp.roll(values, mirror, axis=0) if mirror else values
    return jnp.sum(values, axis=0, keepdims=True) - own


def _log_q(q: Any, terms: Terms) -> jax.Array:
    """log q of each term, the sum over the draws of its group, `[T]`."""
    return jnp.sum(jax.vmap(q._log_prob)(terms.z).reshape((len(terms.influence), -1)), axis=1)


def _scores(q: Any, terms: Terms) -> jax.Array:
    """Gradients in q's parameters of log q of each term, `[T, P]`, held."""
    groups = terms.z.reshape((len(terms.influence), -1, terms.z.shape[-1]))

    def score(group: jax.Array) -> jax.Array:
        return ravel_pytree(
            eqx.filter_grad(lambda q: jnp.sum(jax.vmap(q._log_prob)(group)))(_moving(q))
        )[0]

    return jax.vmap(score)(groups)


def _moving(q: Any) -> Any:
    """q cut off from the differentiation around, and with JAX arrays for leaves, so that it can be
    differentiated in.
    """
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf, frozen(q)
    )


def _with_gradient(q: Any, gradient: jax.Array) -> jax.Array:
    """A scalar whose gradient in q is `gradient [P]`."""
    parameters, _ = ravel_pytree(eqx.filter(q, eqx.is_inexact_array))
    return jax.lax.stop_gradient(gradient) @ parameters


def _nothing(q: Any) -> PyTree:
    return None


def _two_numbers(q: Any) -> PyTree:
    return np.zeros((), q.dtype), np.zeros((), q.dtype)


def _two_per_parameter(q: Any) -> PyTree:
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
