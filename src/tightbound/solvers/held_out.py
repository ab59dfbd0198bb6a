"""Training that stops by itself.

Gradient steps until the loss on held-out simulations no longer falls.
"""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax

from .._numerics import to_device
from .._types import PyTree
from ..estimators.base import AbstractEstimator
from ..estimators.from_model import FromModel
from ..families.conditional import Ensemble
from ..objectives.base import AbstractObjective, Draws
from ..objectives.forward_kl import ForwardKL
from ..results import PairingError, Result
from .base import AbstractSolver, Info

_LOOK = 200  # steps between two looks at the held-out loss
_PATIENCE = 3  # looks without an improvement
_SHRINK = 0.3  # of the step size
_ENDINGS = {0: None, 1: Result.held_out, 2: Result.nonfinite}
_MOST_SKIPPED = 500
_LEARNING_RATE = 2e-3
_DEFAULT_TRANSFORM = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(_LEARNING_RATE))


class TrainingState(eqx.Module):
    """What the next step needs.

    Of an ensemble, entries marked R have a leading axis, one for each network.

    Attributes:
        draws: the estimator's state, with the held-out simulations.
        optimiser: of the transformation (R).
        mean: average of the weights since the last look (R).
        best: the weights with the least held-out loss (R).
        losses: held-out losses of `best`, `[R, M]`.
        step_size: factor on the transformation's updates.
        count: steps so far.
        idle: looks since the last improvement.
        shrunk: how often the step size was cut.
        skipped: steps whose loss or gradient was not finite.
        ended: how the run has ended, a key of _ENDINGS.
    """

    draws: PyTree
    optimiser: PyTree
    mean: PyTree
    best: PyTree
    losses: jax.Array
    step_size: jax.Array
    count: jax.Array
    idle: jax.Array
    shrunk: jax.Array
    skipped: jax.Array
    ended: jax.Array


class HeldOut(AbstractSolver):
    """Adam on simulations.

    The step size falls when the held-out loss does not, and when that no longer helps, it ends.

    For amortised families (`ForwardKL`). Every 200 steps the average of the weights since the last
    look is judged by its loss on the same held-out simulations, so that two looks differ by little
    noise. An improvement of more than one standard error (of the paired difference) makes that
    average the best so far; three looks without one cut the step size to 0.3 of itself, and after
    `cuts` cuts the best average is the answer. An Ensemble's networks are trained side by side in
    one program, each with its own simulations and its own best weights.

    Not for the ELBO and its relatives, which have no held-out loss: StochasticGradient.

    Attributes:
        estimator: whose draws; None is FromModel(128).
        transform: an optax transformation; None is Adam at 2e-3, gradients clipped to norm 5.
        cuts: of the step size before the end.
    """

    estimator: AbstractEstimator | None = None
    transform: optax.GradientTransformation | None = eqx.field(default=None, static=True)
    cuts: int = eqx.field(default=4, static=True)
    compiled: ClassVar[bool] = True

    def default_objective(self) -> AbstractObjective:
        return ForwardKL()

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        if not isinstance(self._estimator, FromModel):
            raise PairingError(
                "HeldOut stops by the loss on held-out simulations, which"
                f" {type(self._estimator).__name__} does not have; use FromModel, or the solver"
                " StochasticGradient."
            )
        self._estimator.check(target, q, objective)

    def init(self, target: Any, q: Any, objective: Any, key: Any, tol: float) -> TrainingState:
        simulations = to_device(self._estimator.prepare(target, q, jr.fold_in(key, 2**20)), q.dtype)
        weights, static, _ = _networks(q)
        optimiser, mean, losses = _beginning(
            self._transform.init, objective, weights, static, simulations
        )
        zero = jnp.zeros((), jnp.int32)
        return TrainingState(
            draws=simulations,
            optimiser=optimiser,
            mean=mean,
            best=weights,
            losses=losses,
            step_size=jnp.ones((), q.dtype),
            count=zero,
            idle=zero,
            shrunk=zero,
            skipped=zero,
            ended=zero,
        )

    def step(
        self, target: Any, q: Any, objective: Any, state: TrainingState, key: Any
    ) -> tuple[Any, Any, TrainingState, Info]:
        weights, static, rebuild = _networks(q)

        def one(weights, optimiser, key):
            def loss(weights):
                return self._estimator.surrogate(
                    objective, target, eqx.combine(weights, static), state.draws, key
                )[0]

            value, gradient = jax.value_and_grad(loss)(weights)
            with jax.numpy_dtype_promotion("standard"):
                updates, moved = self._transform.update(gradient, optimiser, weights)
            return value, gradient, updates, moved

        keys = jr.split(key, jax.tree.leaves(weights)[0].shape[0])
        value, gradient, updates, optimiser = jax.vmap(one)(weights, state.optimiser, keys)
        good = jnp.isfinite(jnp.sum(value)) & jnp.all(
            jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradient)])
        )
        size = jnp.where(good, state.step_size, 0.0)
        moved = jax.tree.map(
            lambda w, u: w + jnp.where(good, size.astype(u.dtype) * u, jnp.zeros_like(u)),
            weights,
            updates,
        )
        optimiser = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), optimiser, state.optimiser
        )
        # of this step in the average since the last look
        weight = 1 / (1 + jnp.mod(state.count, _LOOK)).astype(size.dtype)
        mean = jax.tree.map(lambda m, w: m + weight.astype(w.dtype) * (w - m), state.mean, moved)
        skipped = state.skipped + jnp.where(good, 0, 1)
        state = dataclasses.replace(
            state, optimiser=optimiser, mean=mean, count=state.count + 1, skipped=skipped,
            ended=jnp.where((skipped > _MOST_SKIPPED) & (2 * skipped > state.count), 2, state.ended),
        )  # fmt: skip
        look = jnp.mod(state.count, _LOOK) == 0
        state = jax.lax.cond(look, lambda s: self._judged(s, objective, static), lambda s: s, state)
        info = Info(
            jnp.mean(value),
            size,
            jnp.asarray(self._estimator.evaluations_per_step(target), size.dtype),
        )
        return target, rebuild(moved), state, info

    def done(self, state: TrainingState) -> Result | None:
        return _ENDINGS[int(state.ended)]

    def finish(self, target: Any, q: Any, state: TrainingState) -> Any:
        """The weights with the least held-out loss."""
        return _networks(q)[2](state.best)

    @property
    def _estimator(self) -> AbstractEstimator:
        return FromModel() if self.estimator is None else self.estimator

    @property
    def _transform(self) -> optax.GradientTransformation:
        return _DEFAULT_TRANSFORM if self.transform is None else self.transform

    def _judged(self, state: TrainingState, objective: Any, static: Any) -> TrainingState:
        """After a look at the average of the last weights: better or not, and what follows."""
        losses = _held_out_losses(objective, state.mean, static, state.draws)
        gain = state.losses - losses
        count = gain.shape[1]
        average, error = jnp.mean(gain, axis=1), jnp.std(gain, axis=1) / count**0.5
        better = average > 0
        clear = jnp.any(average > error)
        best = jax.tree.map(
            lambda new, old: jnp.where(_along(better, new), new, old), state.mean, state.best
        )
        idle = jnp.where(clear, 0, state.idle + 1)
        cut = idle >= _PATIENCE
        shrunk = state.shrunk + jnp.where(cut, 1, 0)
        return dataclasses.replace(
            state,
            best=best,
            losses=jnp.where(better[:, None], losses, state.losses),
            step_size=jnp.where(cut, _SHRINK, 1.0).astype(state.step_size.dtype) * state.step_size,
            idle=jnp.where(cut, 0, idle),
            shrunk=shrunk,
            ended=jnp.where((shrunk > self.cuts) & (state.ended == 0), 1, state.ended),
        )


def _networks(q: Any) -> tuple[Any, Any, Any]:
    """Weights with a leading axis, one for each network; what is not a weight.

    And how to make q of new weights.
    """
    if isinstance(q, Ensemble):
        weights, static = eqx.partition(q.stacked, eqx.is_inexact_array)
        return weights, static, lambda weights: Ensemble(eqx.combine(weights, static), q.count)
    weights, static = eqx.partition(q, eqx.is_inexact_array)
    first = lambda weights: eqx.combine(jax.tree.map(lambda leaf: leaf[0], weights), static)  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], weights), static, first


@eqx.filter_jit
def _beginning(init: Any, objective: Any, weights: Any, static: Any, simulations: Any) -> Any:
    """The optimiser's state, an average of nothing, the first losses.

    One program, as each operation costs a compilation.
    """
    losses = _held_out_losses(objective, weights, static, simulations)
    return jax.vmap(init)(weights), jax.tree.map(jnp.zeros_like, weights), losses


def _held_out_losses(objective: Any, weights: Any, static: Any, simulations: Any) -> jax.Array:
    """Loss of each network at each held-out simulation, `[R, M]`."""

    def one(weights):
        q = eqx.combine(weights, static)
        each = lambda z, x: objective.loss(Draws(None, q._log_prob_to_train(z, x)[None]))  # noqa: E731
        return jax.vmap(each)(simulations.held_z, simulations.held_x)

    return jax.vmap(one)(weights)


def _along(condition: jax.Array, leaf: jax.Array) -> jax.Array:
    """`condition [R]` with the axes that `leaf [R, ...]` has besides."""
    return condition.reshape((-1,) + (1,) * (leaf.ndim - 1))


__all__ = ["HeldOut", "TrainingState"]
