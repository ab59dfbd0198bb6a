"""The loop around every solver, compiled or on the host.

It stops where it is told, and hands back the last finite state.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from tightbound._numerics import x64
from tightbound.account import Budget
from tightbound.families import Gaussian
from tightbound.loop import run
from tightbound.results import Result
from tightbound.solvers.base import AbstractSolver, Info
from tightbound.testing import GaussianTarget

TARGET = GaussianTarget(Gaussian.full(2))


class Walk(AbstractSolver):
    """Adds one to the mean at each step; NaN from step `lost` on; done after `last` steps.

    Loss 100 - step, 5 gradients each.
    """

    last: int = eqx.field(static=True, default=10_000)
    lost: int = eqx.field(static=True, default=10_000)
    raises: tuple[int, type[BaseException]] | None = eqx.field(static=True, default=None)
    compiled: ClassVar[bool] = False

    def check(self, target, q, objective):
        pass

    def init(self, target, q, objective, key, tol):
        return jnp.zeros((), jnp.int64) if self.compiled else 0

    def step(self, target, q, objective, state, key):
        state = state + 1
        if self.raises is not None and int(state) == self.raises[0]:
            raise self.raises[1]
        xp = jnp if self.compiled else np
        mean = xp.where(state >= self.lost, xp.nan, q.mean + 1.0)
        loss = 100.0 - xp.asarray(state, np.float64)
        return target, Gaussian(mean, q.scale), state, Info(loss, xp.asarray(1.0), xp.asarray(5.0))

    def done(self, state):
        return Result.converged if int(state) >= self.last else None


class CompiledWalk(Walk):
    compiled: ClassVar[bool] = True


both = pytest.mark.parametrize("solver", [Walk, CompiledWalk], ids=["host", "compiled"])


def go(solver, **options):
    settings = {"key": 0, "tol": 0.02, "budget": Budget(), "max_steps": None} | options
    with x64():
        return run(TARGET, Gaussian.full(2), None, solver, **settings)


def assert_consistent(ran):
    """The trace has one entry per step, and says what Walk does."""
    n = ran.steps
    assert all(
        column.shape == (n,) for column in (ran.trace.loss, ran.trace.change, ran.trace.evaluations)
    )
    np.testing.assert_array_equal(ran.trace.loss, 100.0 - np.arange(1, n + 1))
    np.testing.assert_array_equal(ran.trace.evaluations, 5.0 * np.arange(1, n + 1))
    assert isinstance(ran.q.mean, np.ndarray)


@both
@pytest.mark.parametrize("most", [1, 7, 200, 201, 450])
def test_max_steps_are_taken_exactly(solver, most):
    ran = go(solver(), max_steps=most)
    assert ran.result is Result.max_steps
    assert ran.steps == most
    np.testing.assert_array_equal(ran.q.mean, float(most))
    assert_consistent(ran)


def test_a_host_solver_stops_at_the_step_where_it_is_done():
    ran = go(Walk(last=13))
    assert ran.result is Result.converged
    assert ran.steps == 13
    assert_consistent(ran)


def test_a_compiled_solver_is_asked_between_blocks():
    ran = go(CompiledWalk(last=250))
    assert ran.result is Result.converged
    assert ran.steps == 400, "two blocks of 200"
    assert_consistent(ran)


@both
def test_a_budget_of_evaluations_ends_the_run(solver):
    ran = go(solver(), budget=Budget(evaluations=1001))
    assert ran.result is Result.budget
    # A compiled block is no longer than what is left covers, by what a step has taken so far.
    assert ran.steps == 201
    assert_consistent(ran)


@both
def test_a_budget_of_seconds_ends_the_run(solver):
    ran = go(solver(), budget=Budget(seconds=1e-9))
    assert ran.result is Result.budget
    assert ran.steps == 0
    np.testing.assert_array_equal(ran.q.mean, 0.0)
    assert_consistent(ran)


def test_the_last_finite_state_comes_back_on_the_host():
    ran = go(Walk(lost=4))
    assert ran.result is Result.nonfinite
    assert ran.steps == 4
    np.testing.assert_array_equal(ran.q.mean, 3.0)
    assert_consistent(ran)


def test_the_last_finite_block_comes_back_where_steps_are_compiled():
    ran = go(CompiledWalk(lost=300, last=600))
    np.testing.assert_array_equal(ran.q.mean, 200.0)
    assert ran.steps == 600
    assert_consistent(ran)


@pytest.mark.parametrize(
    ("error", "result"),
    [(KeyboardInterrupt, Result.interrupted), (np.linalg.LinAlgError, Result.nonfinite)],
)
def test_what_was_computed_before_an_interruption_comes_back(error, result):
    ran = go(Walk(raises=(6, error)))
    assert ran.result is result
    assert ran.steps == 5
    np.testing.assert_array_equal(ran.q.mean, 5.0)
    assert_consistent(ran)


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        go(Walk(raises=(2, ZeroDivisionError)))


@both
def test_progress_hears_of_every_block(solver):
    heard = []
    go(
        solver(),
        max_steps=450,
        progress=lambda steps, loss, note: heard.append((steps, loss, note)),
    )
    assert [steps for steps, _, _ in heard] == (
        [200, 400, 450] if solver.compiled else list(range(1, 451))
    )
    assert heard[-1] == (450, -350.0, "2,250 gradients")


@both
def test_the_target_that_nothing_moved_is_the_one_that_was_given(solver):
    assert go(solver(), max_steps=3).target is TARGET


class Learns(Walk):
    def step(self, target, q, objective, state, key):
        _, q, state, info = Walk.step(self, target, q, objective, state, key)
        return GaussianTarget(target.gaussian.moved([1.0, 2.0])), q, state, info


def test_a_target_that_is_learnt_comes_back():
    ran = go(Learns(last=3))
    np.testing.assert_array_equal(ran.target.gaussian.mean, [1.0, 2.0])


class Averages(Walk):
    def finish(self, target, q, state):
        return Gaussian(q.mean * (np.nan if state > 5 else 0.5), q.scale)


def test_finish_has_the_last_word_unless_it_is_not_finite():
    np.testing.assert_array_equal(go(Averages(last=4)).q.mean, 2.0)
    np.testing.assert_array_equal(go(Averages(last=6)).q.mean, 6.0)


def test_a_step_depends_on_the_key_and_its_number_alone():
    """A block that is cut short by `max_steps` leaves the steps before it as they are."""
    from tightbound.objectives import ELBO
    from tightbound.solvers import StochasticGradient

    with x64():
        options = {"key": 3, "tol": 0.02, "budget": Budget()}
        short = run(TARGET, Gaussian.full(2), ELBO(), StochasticGradient(), max_steps=30, **options)
        long = run(TARGET, Gaussian.full(2), ELBO(), StochasticGradient(), max_steps=230, **options)
    np.testing.assert_array_equal(short.trace.loss, long.trace.loss[:30])
