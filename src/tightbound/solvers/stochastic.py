"""Stochastic gradient descent without a learning rate to tune or a number of steps to guess."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Bool, Float, Int

from .._numerics import to_device
from .._types import Array, Key, PyTree
from ..estimators.base import AbstractEstimator
from ..estimators.pathwise import Pathwise, StickTheLanding
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import Result
from ..search.adam import travelling_adam
from ..search.natural_search import FLAT
from ..search.stationarity import BATCHES, Window
from ..targets.base import AbstractTarget
from .base import AbstractSolver, Info

_FIRST_WINDOW = 8 * BATCHES  # steps; long against the ten steps that Adam's momentum remembers
_LEARNING_RATE = 0.05  # of one posterior sd per step, while the steps agree
_MOST_HALVINGS = 10  # a thousandth of the first step; the run then ends when it has settled
_MOST_SKIPPED = 200  # non-finite steps in a window, when they outnumber the others
_FIRST_DRAWS = 8  # of the default estimator: gradients noisy, but as many steps as possible
# JAX carries no results through a scan, only their numbers.
_ENDINGS = {0: None, 1: Result.stationary, 2: Result.nonfinite, 3: Result.unbounded}
# One object, so that equal solvers share one compilation
_DEFAULT_TRANSFORM = travelling_adam(_LEARNING_RATE)

T = TypeVar("T")


class StochasticState(eqx.Module):
    """What the next step needs.

    Attributes:
        draws: the estimator's state.
        optimiser: the transformation's state.
        window: statistics since the last look.
        step_size: factor on the transformation's updates.
        caution: a passing one, after non-finite gradients.
        halvings: of the step size so far.
        previous: average of what is monitored over the window before the last halving.
        previous_error: its standard error.
        answer: average of the parameters over the last settled window.
        answered: whether there was one.
        first_units: of what is monitored, at the start.
        skipped: steps not taken because the loss or its gradient was not finite.
        skipped_here: those in this window.
        ended: how the run has ended, a key of _ENDINGS.
        tol: accuracy asked for, in posterior sds.
    """

    draws: PyTree
    optimiser: PyTree
    window: Window
    step_size: Float[jax.Array, ""]
    caution: Float[jax.Array, ""]
    halvings: Int[jax.Array, ""]
    previous: Float[jax.Array, "groups m"]
    previous_error: Float[jax.Array, "groups m"]
    answer: Float[jax.Array, "p"]
    answered: Bool[jax.Array, ""]
    first_units: Float[jax.Array, "groups m"]
    skipped: Int[jax.Array, ""]
    skipped_here: Int[jax.Array, ""]
    ended: Int[jax.Array, ""]
    tol: Float[jax.Array, ""]


class StochasticGradient(AbstractSolver):
    """An optax transformation on an estimator's gradient, averaged over its last steps.

    It stops by itself. For minibatches, noisy densities, and families and objectives without a
    solver of their own. Not for a Gaussian q on a smooth log density of moderate size:
    NaturalGradient is more accurate for a fraction of the evaluations.

    Steps are taken in q's own scale (`AbstractFamily.retract`): for a Gaussian in posterior sds,
    along and across its correlations alike, so that neither the units nor the conditioning of the
    target matter. `whitened=False` moves the plain parameters instead, as in the textbook.

    The run is judged in windows that grow (`Window`). A window is settled when its halves agree
    (split R-hat) and its average gradient is zero to within its error. The first settled window
    halves the step size, and so does every one whose iterates scatter so widely that the curvature
    of the parameters would bias their average. The run ends when a window is settled, its average
    is known to within `tol` posterior sds (three Monte Carlo standard errors or more, by batch
    means), and it is no further than that from the average at twice the step size: halving again
    would not pay. That average is the answer.

    A step whose loss or gradient is not finite is skipped and counted, and the steps after it are
    shorter for a while.

    Source: Welandawe et al. 2022 (RAABBVI), algorithm 1, whose window search is replaced by growing
    windows; Dhaka et al. 2020, section 4 (R-hat and Monte Carlo error of the iterates).

    Attributes:
        estimator: of the loss's gradient; None is StickTheLanding(8, noise="antithetic") where that
            is unbiased, else Pathwise with about as many draws.
        transform: an optax transformation; None is `travelling_adam` at .05 sd per step, less where
            there are many parameters per dimension.
        whitened: whether steps are in q's own scale.
    """

    estimator: AbstractEstimator | None = None
    transform: optax.GradientTransformation | None = eqx.field(default=None, static=True)
    whitened: bool = eqx.field(default=True, static=True)
    compiled: ClassVar[bool] = True

    def default_objective(self) -> AbstractObjective:
        return ELBO()

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        self._estimator(objective).check(target, q, objective)

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> StochasticState:
        leaves = eqx.filter(q, eqx.is_inexact_array)
        (x, _), (monitored, units) = _flat(q), _monitored(q)
        count = jnp.zeros((), jnp.int32)
        return StochasticState(
            draws=to_device(self._estimator(objective).prepare(target, q, key), x.dtype),
            optimiser=self._transform.init(leaves),
            window=Window.opened(monitored, x, _FIRST_WINDOW),
            step_size=jnp.asarray(self._first_step_size(x.size, q.dim), x.dtype),
            caution=jnp.ones((), x.dtype),
            halvings=count,
            previous=jnp.zeros_like(monitored),
            previous_error=jnp.zeros_like(monitored),
            answer=jnp.zeros_like(x),
            answered=jnp.asarray(False),
            first_units=units,
            skipped=count,
            skipped_here=count,
            ended=count,
            tol=jnp.asarray(tol, x.dtype),
        )

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: StochasticState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, StochasticState, Info]:
        key = cast(jax.Array, key)  # which the loop makes of what the user passed
        loss, gradient, draws = self._gradient(target, q, objective, state.draws, key)
        leaves = eqx.filter(q, eqx.is_inexact_array)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            updates, optimiser = self._transform.update(gradient, state.optimiser, leaves)
        size = state.step_size * state.caution
        move = jax.tree.map(lambda u: size.astype(u.dtype) * u, updates)
        moved = q.retract(move) if self.whitened else eqx.apply_updates(q, move)

        (x, _), (g, _), (monitored, units) = _flat(moved), ravel_pytree(gradient), _monitored(moved)
        good = jnp.isfinite(loss) & jnp.isfinite(jnp.sum(g**2)) & jnp.all(jnp.isfinite(x))
        new = moved, optimiser, state.window.pushed(monitored, x, g)
        q, optimiser, window = _where(good, new, (q, state.optimiser, state.window))
        flat = good & jnp.any(units > FLAT * jnp.maximum(state.first_units, 1.0))
        state = _counted(
            dataclasses.replace(state, draws=draws, optimiser=optimiser, window=window), good, flat
        )
        state = jax.lax.cond(
            window.full & (state.ended == 0), lambda s: _judged(s, q), lambda s: s, state
        )
        change = jnp.where(good, jnp.max(jnp.abs(ravel_pytree(move)[0])), 0.0)
        evaluations = jnp.asarray(
            self._estimator(objective).evaluations_used(target, draws), x.dtype
        )
        return target, q, state, Info(loss, change, evaluations)

    def done(self, state: StochasticState) -> Result | None:
        return _ENDINGS[int(state.ended)]

    def finish(
        self, target: AbstractTarget, q: AbstractFamily, state: StochasticState
    ) -> AbstractFamily:
        """The average over the last settled window.

        The last iterate where no window has settled yet.
        """
        if not bool(state.answered):
            return q
        return eqx.combine(_flat(q)[1](state.answer), q)

    def _estimator(self, objective: AbstractObjective | None) -> AbstractEstimator:
        if self.estimator is not None:
            return self.estimator
        if type(objective) in StickTheLanding.unbiased_for:
            return StickTheLanding(_FIRST_DRAWS, noise="antithetic")
        group = 1 if objective is None else objective.group
        return Pathwise(group * -(-_FIRST_DRAWS // group))

    @property
    def _transform(self) -> optax.GradientTransformation:
        return _DEFAULT_TRANSFORM if self.transform is None else self.transform

    def _first_step_size(self, parameters: int, dim: int) -> float:
        # Adam moves every parameter by its rate, and small moves of many parameters of one scale
        # add up to a large one: a d x r factor of which every entry moves by .05 is a new direction
        # of correlation d r times as strong. A transformation that the user chose is left as it is.
        if self.transform is not None:
            return 1.0
        beyond_mean_and_sd = max(parameters - 2 * dim, 1)
        return min(1.0, math.sqrt(2 * dim / parameters), 10.0 / math.sqrt(beyond_mean_and_sd))

    def _gradient(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        draws: PyTree,
        key: jax.Array,
    ) -> tuple[Float[Array, ""], PyTree, PyTree]:
        """The loss, its gradient, and the estimator's new state.

        The gradient is in the coordinates in which steps are taken.
        """
        assert objective is not None  # the fit has put this solver's own in the place of None

        def surrogate(q: AbstractFamily) -> tuple[Float[Array, ""], PyTree]:
            return self._estimator(objective).surrogate(objective, target, q, draws, key)

        (loss, draws), gradient = eqx.filter_value_and_grad(surrogate, has_aux=True)(q)
        if self.whitened:
            leaves = eqx.filter(q, eqx.is_inexact_array)
            # The chain rule through the step, at rest: the estimator knows q's leaves alone.
            at_rest = jax.tree.map(jnp.zeros_like, leaves)
            _, pull_back = jax.vjp(
                lambda step: eqx.filter(q.retract(step), eqx.is_inexact_array), at_rest
            )
            (gradient,) = pull_back(gradient)
        return loss, gradient, draws


def _counted(
    state: StochasticState, good: Bool[jax.Array, ""], flat: Bool[jax.Array, ""]
) -> StochasticState:
    """The state after a step.

    Arguments:
        state: before.
        good: whether the step was taken; else it was skipped.
        flat: whether some direction looks improper.
    """
    skipped_here = jnp.where(good, state.skipped_here, state.skipped_here + 1)
    hopeless = skipped_here >= jnp.maximum(state.window.filled, _MOST_SKIPPED)
    ending = jnp.where(hopeless, 2, jnp.where(flat, 3, 0)).astype(jnp.int32)
    return dataclasses.replace(
        state,
        caution=jnp.where(
            good, jnp.minimum(1.05 * state.caution, 1.0), jnp.maximum(0.5 * state.caution, 0.1)
        ),
        skipped=jnp.where(good, state.skipped, state.skipped + 1),
        skipped_here=skipped_here,
        ended=jnp.where(state.ended == 0, ending, state.ended),
    )


def _judged(state: StochasticState, q: AbstractFamily) -> StochasticState:
    """The state after a look at its full window: ended, at half the step, or for longer."""
    summary, tol = state.window.summary(), state.tol
    monitored, units = _monitored(q)
    parameters, unravel = _flat(q)
    average = eqx.combine(unravel(summary.parameters), q)
    # An sd below the rounding error of its mean would come to rest too: there, draws no longer
    # differ.
    resolved = jnp.all(units > 16 * jnp.finfo(units.dtype).eps * jnp.abs(monitored))
    settled = summary.mixed(units, 0.1 * tol) & summary.balanced(tol) & resolved
    # Jensen's gap: how far the scatter of the iterates moves a curved function of them. Their
    # equilibrium is off by about twice as much.
    gap = jnp.abs(_monitored(average)[0] - summary.mean) / units
    quiet = jnp.max(gap) <= tol / 8
    coarse = summary.coarseness(units) / tol
    agrees = summary.agrees(state.previous, state.previous_error, tol * units) & (
        state.halvings > 0
    )

    no_more = state.halvings >= _MOST_HALVINGS
    finished = settled & (coarse <= 1) & ((quiet & agrees) | no_more)
    halve = (
        settled
        & ~finished
        & ~no_more
        & ((state.halvings == 0) | ~quiet | ((coarse <= 1) & ~agrees))
    )
    # The error of an average falls with the root of the window: what is needed is known once the
    # window is settled.
    needed = jnp.where(settled, jnp.clip(jnp.ceil(1.2 * coarse**2), 2.0, 8.0), 2.0)
    growth = jnp.where(halve, 1.0, needed).astype(jnp.int32)
    return dataclasses.replace(
        state,
        window=Window.opened(monitored, parameters, state.window.length * growth),
        step_size=jnp.where(halve, 0.5, 1.0).astype(state.step_size.dtype) * state.step_size,
        halvings=jnp.where(halve, state.halvings + 1, state.halvings),
        previous=jnp.where(halve, summary.mean, state.previous),
        previous_error=jnp.where(halve, summary.error, state.previous_error),
        answer=jnp.where(settled, summary.parameters, state.answer),
        answered=state.answered | settled,
        skipped_here=jnp.zeros_like(state.skipped_here),
        ended=jnp.where(finished, 1, 0).astype(jnp.int32),
    )


def _flat(
    q: AbstractFamily,
) -> tuple[Float[jax.Array, "p"], Callable[[Float[jax.Array, "p"]], PyTree]]:
    """The parameters of q as one vector, and the way back."""
    return ravel_pytree(eqx.filter(q, eqx.is_inexact_array))


def _monitored(
    q: AbstractFamily,
) -> tuple[Float[jax.Array, "groups m"], Float[jax.Array, "groups m"]]:
    """`q.monitored()` of a q on the device, where it gives arrays of JAX."""
    return cast(tuple[jax.Array, jax.Array], q.monitored())


def _where(condition: Bool[jax.Array, ""], new: T, old: T) -> T:
    """`new` or `old`, leaf by leaf; leaves that are not arrays are the same in both."""

    def choose(a: PyTree, b: PyTree) -> PyTree:
        return jnp.where(condition, a, b) if eqx.is_array(a) else a

    return jax.tree.map(choose, new, old)


__all__ = ["StochasticGradient", "StochasticState"]
