"""Doubly reparameterised gradients.

For bounds of several draws, the score term turned into one through the draws.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from .._types import PyTree
from ..objectives.base import AbstractObjective, Draws
from ..objectives.classic import ELBO, IWELBO
from ..objectives.renyi import VRIWAE
from ..results import PairingError
from .base import AbstractEstimator, frozen
from .draws import Noise, check_draws, check_noise, draw, evaluate, prepare_noise


class DoublyReparam(AbstractEstimator):
    """grad = sum over draws of (l_i - l_ii) dlog w_i/dz dz/dlambda, l a loss of log weights with
    derivatives l_i, l_ii.

    For IWELBO(k) the coefficient is minus the squared share of the draw, for VRIWAE(alpha, k)
    -(alpha share + (1 - alpha) share^2), for the ELBO it is StickTheLanding. Its signal-to-noise
    ratio does not fall with k as Pathwise's does, and no noise is left where q equals the
    posterior. For losses that are functions of the log weights alone; for those that are no
    averages (Renyi, ChiUpper, WakePhase) all n draws count as one group, with the bias of n draws.
    Not for families without smooth draws: use Score.

    Source: Tucker, Lawson, Gu & Maddison 2019, eq. 8; Daudel et al. 2023, theorem 2; Bauer & Mnih
    2021.

    Attributes:
        n: draws per step, each one gradient of the log density.
        noise: "independent", "antithetic" or "sobol".
    """

    n: int = eqx.field(default=8, static=True)
    noise: Noise = eqx.field(default="independent", static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = (ELBO, IWELBO, VRIWAE)
    needs_reparameterised: ClassVar[bool] = True

    def __check_init__(self):
        check_noise(self.noise, self.n, "DoublyReparam")

    @property
    def zero_variance_at_optimum(self) -> bool:
        return True

    def _check_draws(self, q: Any, objective: AbstractObjective | None) -> None:
        check_draws(self.noise, self.n, "DoublyReparam", q, objective)
        if objective is not None and objective.needs != ("log_p", "log_q"):
            raise PairingError(
                "DoublyReparam needs a loss that is a function of log p - log q alone, and"
                f" {type(objective).__name__} reads {', '.join(objective.needs)}; use Pathwise."
            )

    def prepare(self, target: Any, q: Any, key: Any) -> PyTree:
        return prepare_noise(self.noise, self.n, q, key)

    def surrogate(
        self, objective: AbstractObjective, target: Any, q: Any, state: PyTree, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        z = draw(q, self.noise, state, self.n, objective.group, key)
        log_w = evaluate(objective, target, frozen(q), z).log_w
        groups = log_w.reshape((-1, objective.group if objective.averages else self.n))

        def loss(log_w: jax.Array) -> jax.Array:
            return objective.loss(Draws(log_w, jnp.zeros_like(log_w)))

        held = jax.lax.stop_gradient(groups)
        coefficients = jax.vmap(lambda g: jax.grad(loss)(g) - jnp.diagonal(jax.hessian(loss)(g)))(
            held
        )
        moving = jnp.mean(jnp.sum(coefficients * groups, axis=1))
        return loss(jax.lax.stop_gradient(log_w)) + moving - jax.lax.stop_gradient(moving), state

    def evaluations_per_step(self, target: Any) -> float:
        return float(self.n)


__all__ = ["DoublyReparam"]
