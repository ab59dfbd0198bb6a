"""Question 3a: how are expectations and their gradients computed?

Who is drawn, and where gradients stop.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax

from .._numerics import scoped
from .._types import Array, PyTree
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective, Source
from ..results import PairingError
from ..targets.base import AbstractTarget, Density, Joint, require


class Moments(eqx.Module):
    """E_q of log p, of its gradient and of its Hessian, in the coordinates u of z = mean + root u
    (q whitened: u ~ N(0, I)).

    Whitened is what every consumer wants, and the only form that keeps its digits at condition
    numbers of 1e8.

    Attributes:
        elbo: E_q[log p] + entropy of q, nats; `elbo_stderr` its standard error over the design.
        gradient: root' E_q[grad log p], `[d]`.
        gradient_spread: per-pair contributions to `gradient`, `[m, d]` (their spread over sqrt(m)
            is the standard error).
        curvature: -root' E_q[hess log p] root, `[d, d]`, symmetric; the identity where q has the
            right covariance.
        curvature_stderr: root-mean-square standard error of the curvature's diagonal; zero where
            scores are linear.
        evaluations: gradients of the log density used.
        finite: whether every value and score was finite.
    """

    elbo: Array
    elbo_stderr: Array
    gradient: Array
    gradient_spread: Array
    curvature: Array
    curvature_stderr: Array
    evaluations: int = eqx.field(static=True)
    finite: bool | Array = True


class AbstractEstimator(eqx.Module):
    """A way of computing expectations under q, and the gradient in q's leaves of an objective.

    `unbiased_for`: the objectives whose gradient it estimates without bias (the battery checks
    each). `exact`: whether it sums over all of q's mass and draws nothing, so that it serves
    functions of averages as well. `draws_from`: whose draws it makes; must equal the objective's
    `drawn_from`.
    """

    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = ()
    draws_from: ClassVar[Source] = Source.q
    needs_reparameterised: ClassVar[bool] = False
    exact: ClassVar[bool] = False

    @property
    def zero_variance_at_optimum(self) -> bool:
        """Whether the gradient of the ELBO has no noise left where q equals the posterior (the
        battery checks it).
        """
        return False

    @scoped
    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        """Refuse a pairing that cannot work, before anything is compiled.

        Raises:
            PairingError: naming the two parts that disagree, and what fits instead.
        """
        require(self, target, Joint if q.space == "native" else Density)
        if objective is not None and objective.drawn_from is not self.draws_from:
            raise PairingError(
                f"{type(objective).__name__} is an expectation under {objective.drawn_from.value},"
                f" but {type(self).__name__} draws from {self.draws_from.value}; use"
                f" {_suggestion(objective)}."
            )
        if self.needs_reparameterised and not q.reparameterised:
            why = (
                getattr(q, "smooth_draws_no", "")
                or "its draws do not vary smoothly with its parameters"
            )
            raise PairingError(
                f"{type(self).__name__} differentiates through the draws of q, but"
                f" {type(q).__name__} cannot be reparameterised: {why}. Use Score, MeasureValued or"
                " Enumerate (unbiased), or Relaxed (biased)."
            )
        self._check_draws(q, objective)

    def _check_draws(self, q: AbstractFamily, objective: AbstractObjective | None) -> None:
        """Refuse what this estimator's own draws cannot serve (PairingError); by default nothing."""

    def prepare(self, target: AbstractTarget, q: AbstractFamily, key: jax.Array) -> PyTree:
        """What stays fixed over a run: a design, a permutation of rows, quadrature nodes.

        None where nothing does.
        """
        return None

    @abc.abstractmethod
    def surrogate(
        self, objective: AbstractObjective, target: Any, q: Any, state: PyTree, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        """A scalar whose value estimates the loss and whose gradient in q estimates the gradient.

        And the new state.
        """

    def evaluations_per_step(self, target: AbstractTarget) -> float:
        """Gradients of the full log density that one call of `surrogate` uses (a minibatch of B
        rows counts B/N each).
        """
        return 1.0

    def evaluations_used(self, target: AbstractTarget, state: PyTree) -> Array | float:
        """The same of the call that returned `state`, where not every one costs as much; under jit."""
        return self.evaluations_per_step(target)


def frozen(q: AbstractFamily) -> AbstractFamily:
    """q with its leaves cut off from differentiation."""
    return jax.tree.map(
        lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, q
    )


def _suggestion(objective: AbstractObjective) -> str:
    return {Source.q: "Pathwise", Source.joint: "FromModel", Source.tilted: "the EP solver"}[
        objective.drawn_from
    ]


__all__ = ["AbstractEstimator", "Moments", "frozen"]
