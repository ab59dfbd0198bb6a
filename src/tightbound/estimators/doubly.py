"""Doubly reparameterised gradients: the score term of a bound, turned into one through draws."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float

from .._types import Array
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective, Draws
from ..objectives.classic import ELBO, IWELBO
from ..objectives.renyi import VRIWAE
from ..results import PairingError
from .base import frozen
from .draws import Noise, check_draws, check_noise
from .pathwise import AbstractPathwise


class DoublyReparam(AbstractPathwise):
    """grad = sum over draws of (l_i - l_ii) dlog w_i/dz dz/dlambda.

    Here l is a loss as a function of the log weights, l_i its derivative in the i-th of them, l_ii
    the second one. For IWELBO(k) the coefficient is minus the squared share of the draw, for
    VRIWAE(alpha, k) -(alpha share + (1 - alpha) share^2), for the ELBO it is StickTheLanding. Its
    signal-to-noise ratio does not fall with k as Pathwise's does, and no noise is left where q
    equals the posterior. For losses that are functions of the log weights alone; for those that are
    no averages (Renyi, ChiUpper, WakePhase) all n draws count as one group, with the bias of n
    draws. Not for families without smooth draws: use Score.

    Source: Tucker, Lawson, Gu & Maddison 2019, eq. 8; Daudel et al. 2023, theorem 2; Bauer & Mnih
    2021.

    Attributes:
        n: draws per step, each one gradient of the log density.
        noise: "independent", "antithetic" or "sobol".
    """

    n: int = eqx.field(default=8, static=True)
    noise: Noise = eqx.field(default="independent", static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = (ELBO, IWELBO, VRIWAE)

    def __check_init__(self):
        check_noise(self.noise, self.n, "DoublyReparam")

    @property
    def zero_variance_at_optimum(self) -> bool:
        return True

    def _check_draws(self, q: AbstractFamily, objective: AbstractObjective | None) -> None:
        check_draws(self.noise, self.n, "DoublyReparam", q, objective)
        if objective is not None and objective.needs != ("log_p", "log_q"):
            raise PairingError(
                "DoublyReparam needs a loss that is a function of log p - log q alone, and"
                f" {type(objective).__name__} reads {', '.join(objective.needs)}; use Pathwise."
            )

    def _density_of(self, q: AbstractFamily) -> AbstractFamily:
        return frozen(q)

    def _loss(self, objective: AbstractObjective, draws: Draws) -> Float[Array, ""]:
        log_w = draws.log_w
        # A loss that is no average mixes all draws, so that all of them are one group.
        groups = log_w.reshape((-1, objective.group if objective.averages else self.n))

        def loss(log_w: Float[Array, "n"]) -> Float[Array, ""]:
            return objective.loss(Draws(log_w, jnp.zeros_like(log_w)))

        held = jax.lax.stop_gradient(groups)
        coefficients = jax.vmap(lambda g: jax.grad(loss)(g) - jnp.diagonal(jax.hessian(loss)(g)))(
            held
        )
        moving = jnp.mean(jnp.sum(coefficients * groups, axis=1))
        # The value is that of the loss, the gradient that of `moving`, whose own value is nothing.
        return loss(jax.lax.stop_gradient(log_w)) + moving - jax.lax.stop_gradient(moving)


__all__ = ["DoublyReparam"]
