"""Question 3a: how are expectations and their gradients computed?

Who is drawn, and where gradients stop.
"""

import abc
from typing import ClassVar, Generic, TypeAlias, TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from .._numerics import scoped
from .._types import Array, Flag, Key, PyTree, Scalar, Validated
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective, Source
from ..results import PairingError
from ..targets.base import AbstractTarget, Density, Joint, require

Evaluable: TypeAlias = Density | Joint
"""A target with a log p that can be evaluated, on R^dim or on native values."""

TargetT = TypeVar("TargetT", bound=AbstractTarget, contravariant=True)
"""The ability that an estimator needs of its target."""

FamilyT = TypeVar("FamilyT", bound=AbstractFamily)


class Moments(eqx.Module):
    """Expectations under q of log p, its gradient and its Hessian, in whitened coordinates.

    Those are u in z = mean + root u, where q is N(0, I). Whitened is what every consumer wants, and
    the only form that keeps its digits at condition numbers of 1e8.

    Attributes:
        elbo: E_q[log p] + entropy of q, nats; NaN where the estimator has no value for it.
        elbo_stderr: standard error of `elbo` over the design, or a bound on its error.
        gradient: root' E_q[grad log p].
        gradient_spread: contributions to `gradient` of each of the m pairs; their spread divided by
            sqrt(m) is the standard error of `gradient`.
        curvature: -root' E_q[hess log p] root, symmetric; the identity where q has the right
            covariance.
        curvature_stderr: root-mean-square standard error of the curvature's diagonal; zero where
            scores are linear.
        evaluations: gradients of the log density used.
        finite: whether every value and score was finite.
    """

    elbo: Float[Array, ""]
    elbo_stderr: Float[Array, ""]
    gradient: Float[Array, "dim"]
    gradient_spread: Float[Array, "m dim"]
    curvature: Float[Array, "dim dim"]
    curvature_stderr: Float[Array, ""]
    evaluations: int = eqx.field(static=True)
    finite: Flag = True


class AbstractEstimator(eqx.Module, Generic[TargetT]):
    """A way of computing expectations under q, and the gradient in q's leaves of an objective.

    Implementing one: `surrogate`, and `prepare` where something stays fixed over a run. An
    `AbstractEstimator[Density]` is one that needs the ability `Density` of its target.

    `unbiased_for`: the objectives whose gradient it estimates without bias (the battery checks
    each). `exact`: whether it sums over all of q's mass and draws nothing, so that it serves
    functions of averages as well. `draws_from`: whose draws it makes; must equal the objective's
    `drawn_from`. `gives_moments`: whether it is an `AbstractMomentEstimator`.
    """

    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = ()
    draws_from: ClassVar[Source] = Source.q
    needs_reparameterised: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    gives_moments: ClassVar[bool] = False

    @property
    def zero_variance_at_optimum(self) -> bool:
        """Whether the gradient of the ELBO has no noise left where q equals the posterior.

        The battery checks it.
        """
        return False

    @scoped
    def check(
        self,
        target: Validated[AbstractTarget, "require"],
        q: AbstractFamily,
        objective: AbstractObjective | None,
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
            why = q.smooth_draws_no or "its draws do not vary smoothly with its parameters"
            raise PairingError(
                f"{type(self).__name__} differentiates through the draws of q, but"
                f" {type(q).__name__} cannot be reparameterised: {why}. Use Score, MeasureValued or"
                " Enumerate (unbiased), or Relaxed (biased)."
            )
        self._check_draws(q, objective)

    def _check_draws(self, q: AbstractFamily, objective: AbstractObjective | None) -> None:
        """Refuse what this estimator's draws cannot serve (PairingError); by default nothing."""

    def prepare(self, target: TargetT, q: AbstractFamily, key: Key) -> PyTree:
        """What stays fixed over a run: a design, a permutation of rows, quadrature nodes.

        None where nothing does.
        """
        return None

    @abc.abstractmethod
    def surrogate(
        self,
        objective: AbstractObjective,
        target: TargetT,
        q: AbstractFamily,
        state: PyTree,
        key: jax.Array,
    ) -> tuple[Float[Array, ""], PyTree]:
        """A scalar that estimates the loss, its gradient in q the loss's; and the new state.

        `state` is at first what `prepare` returned.
        """

    def evaluations_per_step(self, target: TargetT) -> float:
        """Gradients of the full log density that one call of `surrogate` uses.

        A minibatch of B rows counts B/N each.
        """
        return 1.0

    def evaluations_used(self, target: TargetT, state: PyTree) -> Scalar:
        """Gradients used by the call that returned `state`, where not every call costs as much.

        May be traced.
        """
        return self.evaluations_per_step(target)


class AbstractMomentEstimator(AbstractEstimator[TargetT]):
    """An estimator that also knows the moments that natural gradients move a Gaussian by.

    Implementing one: `moments` as well, and `enlarged` where the design can grow.
    """

    gives_moments: ClassVar[bool] = True

    @abc.abstractmethod
    def moments(
        self,
        target: TargetT,
        mean: Float[np.ndarray, "dim"],
        root: Float[np.ndarray, "dim dim"],
        design: PyTree,
    ) -> Moments:
        """Whitened moments of log p under N(mean, root root'), on the host.

        Arguments:
            target: whose log density.
            mean: of q.
            root: any square root of q's covariance.
            design: what `prepare` or `enlarged` returned.
        """

    def enlarged(self, design: PyTree, ratio: float, rng: np.random.Generator) -> PyTree | None:
        """A design with less error; None where it cannot grow, as here.

        Arguments:
            design: the one that is too small.
            ratio: its error divided by the error that is asked for.
            rng: of new draws.
        """
        return None


def frozen(q: FamilyT) -> FamilyT:
    """q with its leaves cut off from differentiation."""
    return jax.tree.map(
        lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, q
    )


def _suggestion(objective: AbstractObjective) -> str:
    return {Source.q: "Pathwise", Source.joint: "FromModel", Source.tilted: "the EP solver"}[
        objective.drawn_from
    ]


__all__ = ["AbstractEstimator", "AbstractMomentEstimator", "Evaluable", "Moments", "frozen"]
