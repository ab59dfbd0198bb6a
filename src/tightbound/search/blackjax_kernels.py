"""Transitions of one chain by BlackJAX (extra `samplers`), which nothing else imports.

Positions are those that the log density takes; a unit mass matrix is meant, as positions are
whitened.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Bool, Float, Int

from .._numerics import standard_promotion
from .._types import PyTree
from ..results import MissingExtraError

LogDensity: TypeAlias = Callable[[Float[jax.Array, "dim"]], Float[jax.Array, ""]]


class Transition(NamedTuple):
    """One chain after one transition.

    Attributes:
        state: of the kernel.
        position: of the chain.
        log_density: there, nats.
        acceptance: probability with which the proposal was accepted (NUTS: the average over its
            trajectory).
        diverging: whether the energy error was too large to be one of rounding or step size.
        evaluations: gradients of the log density used.
    """

    state: PyTree
    position: Float[jax.Array, "dim"]
    log_density: Float[jax.Array, ""]
    acceptance: Float[jax.Array, ""]
    diverging: Bool[jax.Array, ""]
    evaluations: Float[jax.Array, ""]


def load_blackjax() -> ModuleType:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import blackjax
    except ImportError as error:
        raise MissingExtraError(
            "blackjax", "samplers", "A sampler (NUTS, HMC, Metropolis)"
        ) from error
    return blackjax


def hamiltonian_state(log_density: LogDensity, position: Float[jax.Array, "dim"]) -> PyTree:
    """The state of `nuts` and `hmc` at a position."""
    return load_blackjax().mcmc.hmc.init(position, log_density)


def nuts(
    log_density: LogDensity,
    state: PyTree,
    step_size: Float[jax.Array, ""],
    key: jax.Array,
    max_doublings: int,
) -> Transition:
    """One transition of the No-U-Turn sampler, of at most 2^max_doublings steps."""
    kernel = load_blackjax().mcmc.nuts.build_kernel()
    with standard_promotion():
        new, info = kernel(
            key, state, log_density, step_size, jnp.ones_like(state.position), max_doublings
        )
    return _hamiltonian(new, info)


def hmc(
    log_density: LogDensity,
    state: PyTree,
    step_size: Float[jax.Array, ""],
    key: jax.Array,
    steps: Int[jax.Array, ""],
) -> Transition:
    """One transition of Hamiltonian Monte Carlo, of this many steps."""
    kernel = load_blackjax().mcmc.hmc.build_kernel()
    with standard_promotion():
        new, info = kernel(key, state, log_density, step_size, jnp.ones_like(state.position), steps)
    return _hamiltonian(new, info)


def random_walk_state(log_density: LogDensity, position: Float[jax.Array, "dim"]) -> PyTree:
    """The state of `random_walk` at a position."""
    return load_blackjax().mcmc.random_walk.init(position, log_density)


def random_walk(
    log_density: LogDensity, state: PyTree, step_size: Float[jax.Array, ""], key: jax.Array
) -> Transition:
    """One transition of Metropolis-Hastings with proposals N(position, step_size^2 I)."""

    def propose(key: jax.Array, position: Float[jax.Array, "dim"]) -> Float[jax.Array, "dim"]:
        return step_size * jr.normal(key, position.shape, position.dtype)

    kernel = load_blackjax().mcmc.random_walk.build_additive_step()
    with standard_promotion():
        new, info = kernel(key, state, log_density, propose)
    nothing = jnp.zeros((), bool)
    return Transition(
        new, new.position, new.logdensity, info.acceptance_rate, nothing, jnp.ones(())
    )


def averaging_begun(step_size: Float[jax.Array, ""], target_acceptance: float) -> PyTree:
    """The state of dual averaging of the log step size, before the first acceptance.

    It has `log_step_size`, to use while warming up, and `log_step_size_avg`, to use afterwards.

    Source: Nesterov 2009; Hoffman & Gelman 2014, section 3.2.1.
    """
    return _averaging(target_acceptance)[0](step_size)


def averaging_updated(
    state: PyTree, acceptance: Float[jax.Array, ""], target_acceptance: float
) -> PyTree:
    """The state after one more acceptance probability."""
    return _averaging(target_acceptance)[1](state, acceptance)


# BlackJAX names no type for its triple of functions, nor for the infos of its kernels.
_Averaging: TypeAlias = tuple[
    Callable[[Float[jax.Array, ""]], PyTree],
    Callable[[PyTree, Float[jax.Array, ""]], PyTree],
    Callable[[PyTree], Float[jax.Array, ""]],
]


def _averaging(target_acceptance: float) -> _Averaging:
    load_blackjax()
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    return dual_averaging_adaptation(target_acceptance)


def _hamiltonian(new: PyTree, info: PyTree) -> Transition:
    used = jnp.asarray(info.num_integration_steps, new.position.dtype)
    return Transition(
        new, new.position, new.logdensity, info.acceptance_rate, info.is_divergent, used
    )


__all__ = [
    "LogDensity",
    "Transition",
    "averaging_begun",
    "averaging_updated",
    "hamiltonian_state",
    "hmc",
    "load_blackjax",
    "nuts",
    "random_walk",
    "random_walk_state",
]
