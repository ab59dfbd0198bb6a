"""Natural-gradient steps for a product of factors that need not be conjugate.

The rule, shortened until the ELBO climbs.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from .._numerics import to_device, to_host
from .._types import PyTree, Scalar
from ..families.base import AbstractFamily
from ..families.exponential.product import Product
from ..results import Result
from ..targets.base import AbstractTarget, Conjugate
from ..targets.conjugate.base import AbstractConjugateTarget
from .factor_rule import (
    OF_TOL,
    best_natural,
    check_product,
    distance,
    elbo,
    moments_of,
    moved,
    order,
    valid,
)

# Of a step: at 1e-9 of it rounding decides whether the ELBO climbs.
_HALVINGS = 30


Tries: TypeAlias = tuple[Float[jax.Array, ""], Float[jax.Array, ""], Int[jax.Array, ""]]
"""(step size, ELBO there, halvings so far)."""

Attempt: TypeAlias = Callable[[Float[jax.Array, ""]], tuple[Product, Float[jax.Array, ""]]]
"""Step size -> one factor moved by it, and the ELBO there."""


@dataclasses.dataclass(frozen=True)
class DampedState:
    """The target and q on the device, one step size for each factor, and the last moves."""

    target: Conjugate
    q: Product
    rhos: Float[jax.Array, "factors"]
    tol: float
    elbo: float
    changes: tuple[float, ...] = ()
    result: Result | None = None


def check(target: AbstractTarget, q: AbstractFamily) -> None:
    """Refuse a q that is not a product of the target's factors."""
    # Every conjugate target has the layout and the factors that are compared.
    check_product("NaturalGradient", cast(AbstractConjugateTarget, target), q)


def init(target: Conjugate, q: Product, tol: float) -> DampedState:
    """The state before the first step."""
    on_device, start = to_device(target), to_device(q)
    value = float(_elbo(on_device, start))
    result = None if np.isfinite(value) else Result.nonfinite
    return DampedState(on_device, start, jnp.ones(len(q.factors)), tol, value, (), result)


def step(state: DampedState) -> tuple[Product, DampedState, float, float, int]:
    """One damped step in every factor: q, the state, the loss (nats), the move and the tries."""
    new, value, rhos, change, tried = _stepped(
        state.target, state.q, state.rhos, np.float64(state.elbo)
    )
    change, value = float(change), float(value)
    changes = (*state.changes[-2:], change)
    result = _ended(changes, np.asarray(rhos), state.tol)
    state = DampedState(state.target, new, rhos, state.tol, value, changes, result)
    return to_host(new), state, -value, change, int(tried)


def _ended(
    changes: tuple[float, ...], rhos: Float[np.ndarray, "factors"], tol: float
) -> Result | None:
    """Converged when the last moves, continued as a geometric series, lead nowhere far."""
    if changes[-1] < 1e-9:
        return Result.converged if rhos.min() > 1e-3 else Result.stalled
    if len(changes) < 3:
        return None
    ratio = max(changes[-1] / changes[-2], changes[-2] / changes[-3])
    return (
        Result.converged
        if ratio < 1.0 and changes[-1] * ratio / (1.0 - ratio) < OF_TOL * tol
        else None
    )


@eqx.filter_jit
def _elbo(target: Conjugate, q: Product) -> Float[jax.Array, ""]:
    return jnp.asarray(elbo(target, q))


@eqx.filter_jit
def _stepped(
    target: Conjugate, q: Product, rhos: Float[jax.Array, "factors"], value: Scalar
) -> tuple[
    Product,
    Float[jax.Array, ""],
    Float[jax.Array, "factors"],
    Float[jax.Array, ""],
    Int[jax.Array, ""],
]:
    start, new_rhos, tried = q, [], jnp.asarray(0)
    value = jnp.asarray(value)
    for i, name in enumerate(order(q)):
        towards = best_natural(target, q, name, moments_of(q), None, 1.0)

        # Names that the loop binds anew are arguments, so that each factor keeps its own.
        def attempt(
            rho: Float[jax.Array, ""],
            q: Product = q,
            name: str = name,
            towards: PyTree = towards,
        ) -> tuple[Product, Float[jax.Array, ""]]:
            new = moved(q, name, towards, rho)
            return new, jnp.where(valid(new), jnp.asarray(elbo(target, new)), -jnp.inf)

        def short_of(state: Tries, value: Float[jax.Array, ""] = value) -> Bool[jax.Array, ""]:
            _, new_value, count = state
            # Rounding of a sum of many terms may hide the last of the climb.
            return (count < _HALVINGS) & ~(new_value >= value - 1e-12 * jnp.abs(value))

        def halved(
            state: Tries,
            attempt: Attempt = attempt,
        ) -> Tries:
            rho, _, count = state
            return 0.5 * rho, attempt(0.5 * rho)[1], count + 1

        rho, new_value, count = jax.lax.while_loop(
            short_of, halved, (rhos[i], attempt(rhos[i])[1], jnp.asarray(0))
        )
        climbs = new_value >= value - 1e-12 * jnp.abs(value)
        rho = jnp.where(climbs, rho, 0.0)
        q, value = attempt(rho)[0], jnp.where(climbs, new_value, value)
        new_rhos.append(jnp.minimum(1.0, jnp.where(climbs, 1.8 * rho, 1e-6)))
        tried = tried + count + 1
    return q, value, jnp.stack(new_rhos), jnp.asarray(distance(q, start)), tried
