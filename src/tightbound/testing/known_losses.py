"""Problems for the battery of estimators: losses and gradients by quadrature and by enumeration."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._numerics import to_device
from .._types import Array
from ..estimators.base import Evaluable
from ..estimators.draws import log_p_of
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO, IWELBO
from ..objectives.inclusive import WakePhase
from ..objectives.renyi import VRIWAE, ChiUpper, Renyi
from .comparisons import rows
from .estimators import Problem, _by_quadrature

_Values = Float[Array, "points"]


def quadrature_problem(target: Evaluable, q: Gaussian, best: Gaussian | None = None) -> Problem:
    """Of a one-dimensional Gaussian q and any smooth density: Gauss-Hermite."""
    on_device = to_device(q, q.dtype)

    @functools.cache
    def truth(objective: AbstractObjective) -> Float[np.ndarray, "p"]:
        return rows(1, *_by_quadrature(objective, target, on_device))[0]

    return Problem(target, on_device, truth, best)


def enumeration_problem(
    target: Evaluable,
    q: AbstractFamily,
    points: Float[np.ndarray, "points dim"],
    best: AbstractFamily | None = None,
) -> Problem:
    """Of a q with finitely many values: sums over them, in the words of each objective's formula.

    Not by `Draws` and `objective.loss`, which enumeration itself uses.
    """
    on_device, z = to_device(q, q.dtype), jnp.asarray(points)

    @functools.cache
    def truth(objective: AbstractObjective) -> Float[np.ndarray, "p"]:
        def loss(q: AbstractFamily) -> Float[Array, ""]:
            log_q = jax.vmap(q._log_prob)(z)
            log_w = jax.vmap(log_p_of(target, q))(z) - log_q
            return _FORMULAS[type(objective)](objective, jnp.exp(log_q), log_w)

        return rows(1, *eqx.filter_jit(eqx.filter_value_and_grad(loss))(on_device))[0]

    return Problem(target, on_device, truth, best)


def _of_two(prob: _Values, log_w: _Values, power: float) -> Float[Array, ""]:
    """E log of the mean of w^power over two independent draws."""
    w = jnp.exp(power * log_w)
    both = prob[:, None] * prob[None, :]
    return jnp.sum(both * jnp.log((w[:, None] + w[None, :]) / 2))


def _iwelbo(objective: AbstractObjective, prob: _Values, log_w: _Values) -> Float[Array, ""]:
    assert objective.group == 2, "only pairs of draws are enumerated"
    return -_of_two(prob, log_w, 1.0)


def _vr_iwae(objective: VRIWAE, prob: _Values, log_w: _Values) -> Float[Array, ""]:
    assert objective.group == 2, "only pairs of draws are enumerated"
    power = 1 - objective.alpha
    return -_of_two(prob, log_w, power) / power


def _renyi(objective: Renyi, prob: _Values, log_w: _Values) -> Float[Array, ""]:
    power = 1 - objective.alpha
    return -jnp.log(jnp.sum(prob * jnp.exp(power * log_w))) / power


def _chi(objective: ChiUpper, prob: _Values, log_w: _Values) -> Float[Array, ""]:
    return jnp.log(jnp.sum(prob * jnp.exp(objective.order * log_w))) / objective.order


def _wake(objective: AbstractObjective, prob: _Values, log_w: _Values) -> Float[Array, ""]:
    mass = prob * jnp.exp(log_w)
    return jnp.sum(mass * log_w) / jnp.sum(mass)


_FORMULAS: dict[type[AbstractObjective], Callable[..., Float[Array, ""]]] = {
    ELBO: lambda objective, prob, log_w: -jnp.sum(prob * log_w),
    IWELBO: _iwelbo,
    VRIWAE: _vr_iwae,
    Renyi: _renyi,
    ChiUpper: _chi,
    WakePhase: _wake,
}
