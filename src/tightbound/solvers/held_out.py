"""Training that stops by itself: when the loss on held-out simulations no longer falls."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Bool, Float, Int, Shaped

from .._numerics import to_device
from .._types import Array, Key, PyTree
from ..estimators.base import AbstractEstimator
from ..estimators.from_model import FromModel, Simulations
from ..families.base import AbstractFamily
from ..families.conditional import AbstractAmortised
from ..objectives.base import AbstractObjective, Draws, Source
from ..objectives.forward_kl import ForwardKL
from ..results import PairingError, Result
from ..targets.base import AbstractTarget
from .base import AbstractSolver, Info

_LOOK = 200  # steps between two looks at the held-out loss
_PATIENCE = 3  # looks without an improvement
_SHRINK = 0.3  # of the step size
# JAX carries no results through a scan, only their numbers.
_ENDINGS = {0: None, 1: Result.held_out, 2: Result.nonfinite}
_MOST_SKIPPED = 500  # steps without a finite gradient, when they are also most of the steps
_LEARNING_RATE = 2e-3  # Adam's, at first: it only falls from there
_CLIPPED = 5.0  # norm of a gradient: one simulation in the tails of q may have a huge one
_HELD_OUT_KEY = 2**20  # folded into the key, beyond the steps' numbers
_DEFAULT_TRANSFORM = optax.chain(optax.clip_by_global_norm(_CLIPPED), optax.adam(_LEARNING_RATE))


class TrainingState(eqx.Module):
    """What the next step needs.

    Of an ensemble, entries marked R have a leading axis, one for each network.

    Attributes:
        draws: the estimator's state, with the held-out simulations.
        optimiser: of the transformation (R).
        mean: average of the weights since the last look (R).
        best: the weights with the least held-out loss (R).
        losses: held-out losses of `best`, one for each network and simulation.
        step_size: factor on the transformation's updates.
        count: steps so far.
        idle: looks since the last improvement.
        shrunk: how often the step size was cut.
        skipped: steps whose loss or gradient was not finite.
        ended: how the run has ended, a key of _ENDINGS.
    """

    draws: Simulations
    optimiser: PyTree
    mean: PyTree
    best: PyTree
    losses: Float[Array, "networks simulations"]
    step_size: Float[jax.Array, ""]
    count: Int[jax.Array, ""]
    idle: Int[jax.Array, ""]
    shrunk: Int[jax.Array, ""]
    skipped: Int[jax.Array, ""]
    ended: Int[jax.Array, ""]


class HeldOut(AbstractSolver):
    """Adam on simulations, with a step size that falls when the held-out loss does not.

    When that no longer helps, it ends. For amortised families (`ForwardKL`). Every 200 steps the
    average of the weights since the last look is judged by its loss on the same held-out
    simulations, so that two looks differ by little noise. An improvement of more than one standard
    error (of the paired difference) makes that average the best so far; three looks without one cut
    the step size to 0.3 of itself, and after `cuts` cuts the best average is the answer. An
    Ensemble's networks are trained side by side in one program, each with its own simulations and
    its own best weights.

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

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        if self._estimator.draws_from is not Source.joint:
            raise PairingError(
                "HeldOut stops by the loss on held-out simulations, which"
                f" {type(self._estimator).__name__} does not have; use FromModel, or the solver"
                " StochasticGradient."
            )
        self._estimator.check(target, q, objective)

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> TrainingState:
        key = cast(jax.Array, key)  # which the loop makes of what the user passed
        simulations = to_device(
            self._estimator.prepare(target, q, jr.fold_in(key, _HELD_OUT_KEY)), q.dtype
        )
        weights, static, _ = _networks(q)
        optimiser, mean, losses = _beginning(
            self._transform.init, _given(objective), weights, static, simulations
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
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: TrainingState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, TrainingState, Info]:
        given = _given(objective)
        weights, static, rebuild = _networks(q)

        def one(
            weights: PyTree, optimiser: PyTree, key: jax.Array
        ) -> tuple[Float[Array, ""], PyTree, PyTree, PyTree]:
            def loss(weights: PyTree) -> Float[Array, ""]:
                return self._estimator.surrogate(
                    given, target, eqx.combine(weights, static), state.draws, key
                )[0]

            value, gradient = jax.value_and_grad(loss)(weights)
            with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
                updates, moved = self._transform.update(gradient, optimiser, weights)
            return value, gradient, updates, moved

        keys = jr.split(cast(jax.Array, key), jax.tree.leaves(weights)[0].shape[0])
        value, gradient, updates, optimiser = jax.vmap(one)(weights, state.optimiser, keys)
        # One network that is not finite skips the step of all: they share one step size.
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
        # Of this step in the average since the last look
        weight = 1 / (1 + jnp.mod(state.count, _LOOK)).astype(size.dtype)
        mean = jax.tree.map(lambda m, w: m + weight.astype(w.dtype) * (w - m), state.mean, moved)
        skipped = state.skipped + jnp.where(good, 0, 1)
        hopeless = (skipped > _MOST_SKIPPED) & (2 * skipped > state.count)
        state = dataclasses.replace(
            state,
            optimiser=optimiser,
            mean=mean,
            count=state.count + 1,
            skipped=skipped,
            ended=jnp.where(hopeless, 2, state.ended),
        )
        look = jnp.mod(state.count, _LOOK) == 0
        state = jax.lax.cond(look, lambda s: self._judged(s, given, static), lambda s: s, state)
        info = Info(
            jnp.mean(value),
            size,
            jnp.asarray(self._estimator.evaluations_per_step(target), size.dtype),
        )
        return target, rebuild(moved), state, info

    def done(self, state: TrainingState) -> Result | None:
        return _ENDINGS[int(state.ended)]

    def finish(
        self, target: AbstractTarget, q: AbstractFamily, state: TrainingState
    ) -> AbstractFamily:
        """The weights with the least held-out loss."""
        return _networks(q)[2](state.best)

    @property
    def _estimator(self) -> AbstractEstimator:
        return FromModel() if self.estimator is None else self.estimator

    @property
    def _transform(self) -> optax.GradientTransformation:
        return _DEFAULT_TRANSFORM if self.transform is None else self.transform

    def _judged(
        self, state: TrainingState, objective: AbstractObjective, static: PyTree
    ) -> TrainingState:
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


def _given(objective: AbstractObjective | None) -> AbstractObjective:
    """The objective; the fit has put this solver's own in the place of None."""
    assert objective is not None
    return objective


def _networks(
    q: AbstractFamily,
) -> tuple[PyTree, PyTree, Callable[[PyTree], AbstractAmortised]]:
    """The networks of q; `check` lets only amortised families in."""
    return cast(AbstractAmortised, q).networks()


@eqx.filter_jit
def _beginning(
    init: Callable[[PyTree], PyTree],
    objective: AbstractObjective,
    weights: PyTree,
    static: PyTree,
    simulations: Simulations,
) -> tuple[PyTree, PyTree, Float[Array, "networks simulations"]]:
    """The optimiser's state, an average of nothing, the first losses.

    One program, as each operation costs a compilation.
    """
    losses = _held_out_losses(objective, weights, static, simulations)
    return jax.vmap(init)(weights), jax.tree.map(jnp.zeros_like, weights), losses


def _held_out_losses(
    objective: AbstractObjective, weights: PyTree, static: PyTree, simulations: Simulations
) -> Float[Array, "networks simulations"]:
    """Loss of each network at each held-out simulation."""

    def one(weights: PyTree) -> Float[Array, "simulations"]:
        q = eqx.combine(weights, static)

        def each(z: Float[Array, "dim"], x: PyTree) -> Float[Array, ""]:
            return objective.loss(Draws(None, q._log_prob_to_train(z, x)[None]))

        return jax.vmap(each)(simulations.held_z, simulations.held_x)

    return jax.vmap(one)(weights)


def _along(
    condition: Bool[jax.Array, "networks"], leaf: Shaped[jax.Array, "networks ..."]
) -> Bool[jax.Array, "networks ..."]:
    """`condition` with the axes that `leaf` has besides."""
    return condition.reshape((-1,) + (1,) * (leaf.ndim - 1))


__all__ = ["HeldOut", "TrainingState"]
