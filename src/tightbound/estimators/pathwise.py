"""Gradients through the draws z = r(q, noise), differentiated in q (reparameterisation)."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
from jaxtyping import Float

from .._types import Array, Key
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective, Draws
from ..objectives.classic import ELBO, IWELBO
from ..objectives.fisher import Fisher
from ..objectives.renyi import VRIWAE
from .base import AbstractEstimator, Evaluable, frozen
from .draws import Noise, Points, check_draws, check_noise, draw, evaluate, prepare_noise


class AbstractPathwise(AbstractEstimator[Evaluable]):
    """Draws once per step and differentiates through the draws.

    Members differ in which q their log q may move, and in the loss that they make of the draws.
    """

    n: eqx.AbstractVar[int]
    noise: eqx.AbstractVar[Noise]
    needs_reparameterised: ClassVar[bool] = True

    @abc.abstractmethod
    def _density_of(self, q: AbstractFamily) -> AbstractFamily:
        """The q whose log density enters the loss: q itself, or q with its parameters held."""

    def _loss(self, objective: AbstractObjective, draws: Draws) -> Float[Array, ""]:
        """The loss, with the gradient that this estimator gives it; by default its own."""
        return objective.loss(draws)

    def _check_draws(self, q: AbstractFamily, objective: AbstractObjective | None) -> None:
        check_draws(self.noise, self.n, type(self).__name__, q, objective)

    def prepare(self, target: Evaluable, q: AbstractFamily, key: Key) -> Points:
        return prepare_noise(self.noise, self.n, q, key)

    def surrogate(
        self,
        objective: AbstractObjective,
        target: Evaluable,
        q: AbstractFamily,
        state: Points,
        key: jax.Array,
    ) -> tuple[Float[Array, ""], Points]:
        z = draw(q, self.noise, state, self.n, objective.group, key)
        return self._loss(objective, evaluate(objective, target, self._density_of(q), z)), state

    def evaluations_per_step(self, target: Evaluable) -> float:
        return float(self.n)


class Pathwise(AbstractPathwise):
    """The gradient of the loss at draws z = r(q, noise), through z and through log q.

    Unbiased for any objective that is an average over draws. Not for discrete latents (Score,
    MeasureValued), and not the best near the optimum, where its noise does not vanish
    (StickTheLanding).

    Source: Kingma & Welling 2014, eq. 7 (SGVB); Mohamed et al. 2020, section 5.

    Attributes:
        n: draws per step, each one gradient of the log density.
        noise: "independent", "antithetic" or "sobol".
    """

    n: int = eqx.field(default=8, static=True)
    noise: Noise = eqx.field(default="independent", static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = (ELBO, IWELBO, VRIWAE, Fisher)

    def __check_init__(self):
        check_noise(self.noise, self.n, "Pathwise")

    def _density_of(self, q: AbstractFamily) -> AbstractFamily:
        return q


class StickTheLanding(AbstractPathwise):
    """Pathwise without the score term.

    log q is evaluated with its parameters held, so that only z carries gradients. The term left
    out, E_q[grad log q], is zero for the ELBO, and without it the noise of the gradient vanishes
    where q equals the posterior. Far from it the noise can be larger than Pathwise's. Biased for
    IWELBO, whose weights multiply that term (use DoublyReparam there).

    Source: Roeder, Wu & Duvenaud 2017, section 2.

    Attributes:
        n: draws per step, each one gradient of the log density.
        noise: "independent", "antithetic" or "sobol".
    """

    n: int = eqx.field(default=8, static=True)
    noise: Noise = eqx.field(default="independent", static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = (ELBO,)

    def __check_init__(self):
        check_noise(self.noise, self.n, "StickTheLanding")

    @property
    def zero_variance_at_optimum(self) -> bool:
        return True

    def _density_of(self, q: AbstractFamily) -> AbstractFamily:
        return frozen(q)


__all__ = ["AbstractPathwise", "Pathwise", "StickTheLanding"]
