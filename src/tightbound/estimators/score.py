"""The score function estimator (REINFORCE): gradients from values of log p alone."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float

from .._types import Array, Key, PyTree
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective, Draws
from ..objectives.classic import ELBO, IWELBO
from ..objectives.fisher import Fisher
from ..objectives.renyi import VRIWAE
from ..results import PairingError
from .base import AbstractEstimator, Evaluable, frozen
from .baselines import BASELINES, Baseline, Terms, check_baseline
from .draws import Noise, check_draws, check_noise, draw, evaluate, prepare_noise


class Score(AbstractEstimator[Evaluable]):
    """grad = E_q[(f - b) grad log q] + E_q[grad f at fixed draws].

    Here f is the loss of one draw and b a control variate. It needs draws from q, log q
    differentiable in its parameters, and *values* of log p: use it for discrete latents, mixtures,
    densities with jumps. Not where draws are a smooth function of the parameters and log p is
    smooth: there Pathwise has a fraction of the variance. With more than a few dimensions, never
    without a baseline.

    The second term vanishes for the ELBO and is left out there. Baselines, all of which leave the
    gradient unbiased:

    - "none": b = 0.
    - "moving_average": b is an exponential average of f over the steps before.
    - "leave_one_out": b is the mean of f over the other draws (RLOO, VIMCO's spirit); no noise is
      left at q = posterior.
    - "optimal": for each parameter the b that minimises the variance, E[f s^2] / E[s^2] with s its
      score, from the other draws. Takes memory for n x parameters scores.
    - "taylor": the second-order Taylor polynomial h of f at the mean of q, whose E_q[h grad log q]
      is known (the delta method); scaled by a factor per parameter learnt over the steps. For a
      Gaussian q and a smooth log density of moderate dimension, since it takes the d x d Hessian of
      log p at each step.

    Source: Williams 1992 (REINFORCE); Ranganath, Gerrish & Blei 2014, eqs. 3 and 9 (optimal); Kool
    et al. 2019 (leave-one-out); Paisley, Blei & Jordan 2012, section 3 (taylor); Mohamed et al.
    2020, sections 4 and 7.

    Attributes:
        n: draws per step, each one value of the log density.
        baseline: "none", "moving_average", "leave_one_out", "optimal" or "taylor".
        noise: "independent", "antithetic" or "sobol".
    """

    n: int = eqx.field(default=16, static=True)
    baseline: Baseline = eqx.field(default="leave_one_out", static=True)
    noise: Noise = eqx.field(default="independent", static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = (ELBO, IWELBO, VRIWAE, Fisher)

    def __check_init__(self):
        check_noise(self.noise, self.n, "Score")
        check_baseline(self.baseline, self.noise)

    @property
    def zero_variance_at_optimum(self) -> bool:
        """Whether the baseline removes a loss that is the same at every draw."""
        return self.baseline in ("leave_one_out", "optimal", "taylor")

    def _check_draws(self, q: AbstractFamily, objective: AbstractObjective | None) -> None:
        check_draws(self.noise, self.n, "Score", q, objective)
        group = 1 if objective is None else objective.group
        block = group * (2 if self.noise == "antithetic" else 1)
        if self.baseline in ("leave_one_out", "optimal") and self.n < 2 * block:
            raise PairingError(
                f"Score: the {self.baseline} baseline of a draw is made from the others, so"
                f" {self.noise} draws in groups of {group} need n of at least {2 * block}, got"
                f' {self.n}; or use baseline="moving_average".'
            )
        if self.baseline == "taylor":
            _check_taylor(q, objective)

    def prepare(self, target: Evaluable, q: AbstractFamily, key: Key) -> PyTree:
        return prepare_noise(self.noise, self.n, q, key), BASELINES[self.baseline].start(q)

    def surrogate(
        self,
        objective: AbstractObjective,
        target: Evaluable,
        q: AbstractFamily,
        state: PyTree,
        key: jax.Array,
    ) -> tuple[Float[Array, ""], PyTree]:
        points, memory = state
        # Held draws: whatever gradient there is comes from log q, never through z.
        drawn = draw(frozen(q), self.noise, points, self.n, objective.group, key)
        z = jnp.asarray(jax.lax.stop_gradient(drawn))
        draws = evaluate(objective, target, q, z)
        loss, influence = influences(objective, draws)
        terms = Terms(
            influence, z, self.n // 2 // objective.group if self.noise == "antithetic" else 0
        )
        gradient, memory = BASELINES[self.baseline].apply(objective, target, q, terms, memory)
        moving = direct(objective, draws) + gradient
        return loss + moving - jax.lax.stop_gradient(moving), (points, memory)

    def evaluations_per_step(self, target: Evaluable) -> float:
        # The Hessian of the Taylor baseline takes one product, that is two gradients, a coordinate.
        if self.baseline != "taylor":
            return float(self.n)
        return self.n + 2.0 * len(target.coordinate_names)


def influences(
    objective: AbstractObjective, draws: Draws
) -> tuple[Float[Array, ""], Float[Array, "terms"]]:
    """The loss, and what each of its terms does to it.

    That is the derivative of the loss in the term's weight, times the number of terms. For an
    average that is the loss of the term itself; for a function of averages the linearisation that
    makes the score function gradient that of the estimated loss.
    """
    count = draws.log_q.shape[0] // objective.group
    held = jax.lax.stop_gradient(draws)

    def loss(log_weights: Float[Array, "terms"]) -> Float[Array, ""]:
        return objective.loss(
            eqx.tree_at(lambda d: d.log_weights, held, log_weights, is_leaf=lambda x: x is None)
        )

    value, slope = jax.value_and_grad(loss)(jnp.full((count,), -jnp.log(count), draws.log_q.dtype))
    return value, count * slope


def direct(objective: AbstractObjective, draws: Draws) -> Float[Array, ""]:
    """The loss as a function of q at fixed draws, less a multiple of mean log q.

    The expected gradient of mean log q is zero, so that any multiple may be taken off. This one is
    what a shift of log q does to the loss (`AbstractObjective`): nothing at all is left of the
    ELBO.
    """
    shift = jax.grad(
        lambda c: objective.loss(eqx.tree_at(lambda d: d.log_q, draws, draws.log_q + c))
    )
    multiple = jax.lax.stop_gradient(shift(jnp.zeros((), draws.log_q.dtype)))
    return objective.loss(draws) - multiple * jnp.mean(draws.log_q)


def _check_taylor(q: AbstractFamily, objective: AbstractObjective | None) -> None:
    if q.covariance_structure == "none":
        raise PairingError(
            "Score: the taylor baseline needs the mean and the covariance of q, which"
            f' {type(q).__name__} does not give; use baseline="leave_one_out".'
        )
    scores = objective is not None and objective.needs != ("log_p", "log_q")
    if objective is not None and (objective.group > 1 or scores or not objective.averages):
        raise PairingError(
            "Score: the taylor baseline expands the loss of a single draw, and"
            f" {type(objective).__name__} is no average of such losses; use"
            ' baseline="leave_one_out".'
        )


__all__ = ["Score", "direct", "influences"]
