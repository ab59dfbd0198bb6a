"""`tb.fit`.

The default against closed forms, the caller's choices, continuing, budgets, and nothing compiled
twice.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

import tightbound as tb
from tightbound.families import Gaussian
from tightbound.targets import zoo

pytestmark = pytest.mark.usefixtures("as_a_user")

LOG_2PI = np.log(2 * np.pi)
ROOT = np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-1.0, 0.2, 0.1]])
MEAN = np.array([1.0, -2.0, 3.0])
PRECISION = np.linalg.inv(ROOT @ ROOT.T)
NORMAL = tb.from_log_density(
    lambda p: -0.5 * (p["x"] - MEAN) @ PRECISION @ (p["x"] - MEAN), {"x": np.zeros(3)}
)
LOG_Z = 1.5 * LOG_2PI + np.log(np.diag(ROOT)).sum()
SD = np.sqrt(np.diag(ROOT @ ROOT.T))


# -- nothing is compiled twice
# ----------------------------------------------------------------------------------------

COMPILED: list[str] = []


def _listen(event, duration, **about):
    if event.endswith("backend_compile_duration"):
        COMPILED.append(str(about.get("fun_name")))


jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.fixture
def compiled():
    """Names of the programs that XLA compiles during the test."""
    COMPILED.clear()
    return COMPILED


def regression(seed, width=3):
    """A new target with new functions: what a user's `def make(data)` returns."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, width))
    y = x @ np.ones(width) + rng.standard_normal(40)
    return tb.from_rows(
        lambda p: -0.5 * jnp.sum(p["b"] ** 2) / 25.0 - p["s"],
        lambda p, rows: -0.5 * ((rows["y"] - rows["x"] @ p["b"]) / p["s"]) ** 2 - jnp.log(p["s"]),
        {"x": x, "y": y},
        {"b": np.zeros(width), "s": 1.0},
        support={"s": "positive"},
    )


def test_the_counter_counts(compiled):
    # a width that no other test has: programs are shared between equal shapes
    tb.fit(regression(0, width=17))
    assert len(compiled) == 2, "one program for the density, one for the named values"


def test_a_second_fit_of_the_same_target_compiles_nothing(compiled):
    target = regression(1)
    first = tb.fit(target, key=0)
    first.summary(), first.sample(0, 100)
    compiled.clear()
    second = tb.fit(target, key=1)
    second.summary(), second.sample(1, 100)
    assert compiled == []
    assert not np.array_equal(first.trace.loss, second.trace.loss), (
        "another key, another start and design"
    )


def test_other_data_of_the_same_shapes_compile_nothing(compiled):
    tb.fit(regression(2), key=0)
    compiled.clear()
    other = regression(3)
    fit = tb.fit(other, key=0)
    assert compiled == []
    least_squares = np.linalg.lstsq(other.data["x"], other.data["y"], rcond=None)[0]
    np.testing.assert_allclose(
        fit.summary().loc[["b[0]", "b[1]", "b[2]"], "mean"], least_squares, atol=0.05
    )


def test_a_log_density_that_closes_over_other_data_compiles_nothing(compiled):
    def make(y):
        return tb.from_log_density(lambda p: -0.5 * jnp.sum((y - p["m"]) ** 2), {"m": 0.0})

    tb.fit(make(np.arange(5.0)))
    compiled.clear()
    fit = tb.fit(make(np.arange(5.0) + 7.0))
    assert compiled == []
    np.testing.assert_allclose(fit.q.mean, 9.0, atol=1e-6)


def test_a_second_stochastic_fit_compiles_nothing(compiled):
    solver = tb.solvers.StochasticGradient()
    tb.fit(NORMAL, Gaussian.full(3), solver=solver, key=0, max_steps=10)
    compiled.clear()
    tb.fit(NORMAL, Gaussian.full(3), solver=tb.solvers.StochasticGradient(), key=1, max_steps=20)
    assert compiled == []


# -- the default
# --------------------------------------------------------------------------------------------------


def test_the_default_is_exact_on_a_gaussian():
    fit = tb.fit(NORMAL, key=2)
    assert fit.result is tb.Result.converged
    assert fit.certificate.verdict == "pass"
    np.testing.assert_allclose((fit.q.mean - MEAN) / SD, 0.0, atol=1e-6)
    np.testing.assert_allclose(fit.q.cov, ROOT @ ROOT.T, rtol=1e-5)
    assert fit.elbo.value == pytest.approx(LOG_Z, abs=1e-6)
    lower, upper = fit.certificate.log_evidence
    assert lower <= LOG_Z <= upper
    assert fit.rung == "Gaussian: the certificate passes."
    assert "3 coordinates" in str(fit)
    assert "PASS: Use it." in repr(fit)


def test_evaluations_are_those_that_the_density_saw():
    """Counted inside the density.

    Every point, of the fit and of the certificate, padding of the last chunk aside.
    """
    known = zoo.logistic_regression()
    evaluator = tb.targets.batched.batched(known.target)
    before = evaluator.evaluations
    fit = tb.fit(known.target, key=0)
    assert fit.evaluations + fit.certificate.evaluations == evaluator.evaluations - before
    assert fit.evaluations > fit.trace.evaluations[-1], "the start's are counted too"


@pytest.mark.parametrize("solver", [tb.solvers.NaturalGradient(), tb.solvers.StochasticGradient()])
def test_the_target_of_a_fit_is_the_one_that_was_given(solver):
    """Not a copy: what was compiled for it serves the certificate and every later fit."""
    target = regression(4)
    assert tb.fit(target, solver=solver, max_steps=3).target is target


def test_trace_has_one_entry_per_step():
    fit = tb.fit(NORMAL, Gaussian.diagonal(3), solver=tb.solvers.NaturalGradient())
    assert fit.steps == len(fit.trace.loss) == len(fit.trace.change) == len(fit.trace.evaluations)
    assert np.all(np.diff(fit.trace.evaluations) >= 0)
    assert -fit.trace.loss[-1] == pytest.approx(fit.elbo.value, abs=4 * fit.elbo.stderr + 1e-9)


# -- choices
# --------------------------------------------------------------------------------------------------


def test_a_solver_of_ones_own_starts_from_ones_own_q():
    start = Gaussian.full(3).moved(MEAN + 1.0)
    fit = tb.fit(NORMAL, start, solver=tb.solvers.NaturalGradient(), max_steps=1)
    assert fit.result is tb.Result.max_steps
    assert fit.steps == 1
    assert fit.rung == "chosen by the caller"


def test_an_objective_of_ones_own_gets_a_solver_that_takes_it():
    """IWELBO needs the stochastic solver.

    On a Gaussian target its optimum is the posterior as well.
    """
    target = tb.from_log_density(lambda p: -0.5 * jnp.sum((p["x"] - 3.0) ** 2), {"x": np.zeros(2)})
    fit = tb.fit(target, objective=tb.objectives.IWELBO(4), key=1)
    assert fit.result is tb.Result.stationary
    np.testing.assert_allclose(fit.q.mean, 3.0, atol=0.04)
    np.testing.assert_allclose(fit.q.sd, 1.0, atol=0.04)


def test_mean_field_by_choice_is_the_mean_field_optimum():
    """The best diagonal q of a Gaussian: its means, and sds 1 / sqrt(diag of the precision)."""
    fit = tb.fit(NORMAL, Gaussian.diagonal(3), solver=tb.solvers.FixedDraws())
    assert fit.result is tb.Result.converged
    np.testing.assert_allclose(fit.q.sd, 1 / np.sqrt(np.diag(PRECISION)), rtol=5e-3)
    np.testing.assert_allclose((fit.q.mean - MEAN) / SD, 0.0, atol=0.02)
    assert fit.certificate.verdict != "pass", "its sds are far too small"


def test_mean_field_by_natural_gradient_reaches_the_mean():
    fit = tb.fit(NORMAL, Gaussian.diagonal(3), solver=tb.solvers.NaturalGradient())
    np.testing.assert_allclose((fit.q.mean - MEAN) / SD, 0.0, atol=0.02)


def test_an_earlier_q_is_continued():
    stopped = tb.fit(NORMAL, Gaussian.full(3), solver=tb.solvers.NaturalGradient(), max_steps=2)
    assert stopped.result is tb.Result.max_steps
    assert "continue with" in str(stopped.result)
    fit = tb.fit(NORMAL, stopped.q)
    assert fit.result is tb.Result.converged
    assert fit.certificate.verdict == "pass"
    again = tb.fit(NORMAL, fit.q, solver=tb.solvers.NaturalGradient())
    assert again.steps <= 2, "there is nothing left to do"


def test_throw_decides_whether_a_hopeless_fit_is_an_error():
    target = tb.from_log_density(
        lambda p: jnp.where(jnp.abs(p["x"]) > 0.0, jnp.nan, p["x"]), {"x": 0.0}
    )
    with pytest.raises(tb.FitError) as error:
        tb.fit(target, Gaussian.full(1), solver=tb.solvers.NaturalGradient())
    assert str(error.value) == str(tb.Result.nonfinite)
    fit = tb.fit(target, Gaussian.full(1), solver=tb.solvers.NaturalGradient(), throw=False)
    assert fit.result is error.value.fit.result is tb.Result.nonfinite
    assert not fit.result.usable


def test_starts_decide_how_many_paths_are_searched():
    few, many = (tb.fit(NORMAL, key=1, starts=n).evaluations for n in (1, 12))
    assert many > few + 50


# -- budgets
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1e-9, 0.3])
def test_a_budget_of_seconds_returns_what_there_is(seconds):
    fit = tb.fit(zoo.banana().target, budget=tb.Budget(seconds=seconds), key=0)
    assert fit.result in (tb.Result.budget, tb.Result.converged, tb.Result.noisy)
    assert fit.result is tb.Result.budget or seconds > 0.1
    assert np.all(np.isfinite(fit.summary()["mean"]))


def test_a_budget_of_evaluations_is_kept_to_within_a_step():
    known = zoo.banana()
    free = tb.fit(known.target, key=0)
    fit = tb.fit(known.target, key=0, budget=tb.Budget(evaluations=1000))
    assert fit.evaluations < 3000 < free.evaluations
    assert fit.result is tb.Result.budget or "budget" in fit.rung


# -- what a fit offers
# --------------------------------------------------------------------------------------------------


def test_draws_follow_q_and_have_the_users_names():
    fit = tb.fit(NORMAL, key=4)
    x = fit.sample(5, 2000)["x"]
    assert x.shape == (2000, 3)
    for j in range(3):  # antithetic pairs: the first half is an independent sample
        assert st.kstest((x[:1000, j] - MEAN[j]) / SD[j], "norm").pvalue > 1e-4
    np.testing.assert_array_equal(x, fit.sample(5, 2000)["x"])
    assert not np.array_equal(x, fit.sample(6, 2000)["x"])


def test_derived_values_come_along():
    target = tb.from_log_density(
        lambda p: -0.5 * p["x"] ** 2, {"x": 0.0}, derived=lambda p: {"square": p["x"] ** 2}
    )
    draws = tb.fit(target).sample(0, 500)
    np.testing.assert_allclose(draws["square"], draws["x"] ** 2, rtol=1e-12)


def test_a_certificate_is_computed_where_none_came_along():
    fit = tb.fit(NORMAL, solver=tb.solvers.Laplace())
    assert fit.checked is None
    assert fit.certificate is fit.certificate
    assert fit.certificate.verdict == "pass"
    assert fit.certificate.elbo == fit.elbo


def test_a_fit_is_data():
    fit = tb.fit(NORMAL, solver=tb.solvers.Laplace())
    assert dataclasses.replace(fit, rung="mine").rung == "mine"
    with pytest.raises(dataclasses.FrozenInstanceError):
        fit.steps = 3


def test_throw_refuses_what_the_certificate_does_not_pass():
    """Pipelines: a Gaussian on one of two modes is a caution.

    One on the wrong side of the moon fails.
    """
    known = tb.targets.zoo.two_modes(1, separation=12.0)
    solver = tb.solvers.NaturalGradient()
    start = Gaussian.full(1).moved(np.array([6.0]))
    with pytest.raises(
        tb.FitError, match=r"fit\(throw='caution'\) refuses this fit. CAUTION"
    ) as caught:
        tb.fit(known.target, start, solver=solver, throw="caution")
    assert caught.value.fit.certificate.verdict == "caution"
    assert tb.fit(known.target, start, solver=solver, throw="fail").result is tb.Result.converged
    with pytest.raises(tb.FitError, match="refuses this fit. FAIL"):
        tb.fit(
            known.target,
            start.moved(np.array([0.0]), 1e-3),
            solver=solver,
            max_steps=1,
            throw="fail",
        )
    assert tb.fit(known.target, throw="caution").certificate.verdict == "pass"
    with pytest.raises(ValueError, match='`throw` must be True, False, "caution" or "fail"'):
        tb.fit(known.target, throw="maybe")
