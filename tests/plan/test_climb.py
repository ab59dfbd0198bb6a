"""The default against targets built to fool it.

A false "pass" is the worst bug that this library can have.
"""

import itertools

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import tightbound as tb
from tightbound.targets import zoo
from tightbound.targets.layout import flatten_values

pytestmark = pytest.mark.usefixtures("as_a_user")

SEEDS = (0, 1, 2)

PASSES = {
    "gaussian, condition 1e6": lambda: zoo.gaussian(20, condition=1e6),
    "beta": lambda: zoo.beta_bernoulli(),
    "gamma": lambda: zoo.gamma_poisson(),
    "normal": lambda: zoo.normal_normal(),
    "linear regression": lambda: zoo.linear_regression(),
    "logistic regression": lambda: zoo.logistic_regression(),
    "eight schools, centred (a funnel)": lambda: zoo.eight_schools(centered=True),
    "eight schools": lambda: zoo.eight_schools(),
    "two modes": lambda: zoo.two_modes(2),
    "two modes in ten dimensions": lambda: zoo.two_modes(10),
}
FOOLS = {
    "a mode with a tenth of the mass": lambda: zoo.two_modes(3, weight=0.1),
    "banana": lambda: zoo.banana(),
    "ring": lambda: zoo.ring(),
    "t with three degrees of freedom": lambda: zoo.student_t(2, df=3.0),
    "t with five": lambda: zoo.student_t(5, df=5.0),
    "Neal's funnel": lambda: zoo.funnel(5, scale=1.5),
}


def errors(fit, known):
    """Largest error of a mean in sds, and the sd ratios, of what `summary` prints."""
    table = fit.summary()
    names, mean = flatten_values(jax.tree.map(lambda leaf: np.asarray(leaf)[None], known.mean))
    _, sd = flatten_values(jax.tree.map(lambda leaf: np.asarray(leaf)[None], known.sd))
    rows = table.loc[list(names)]
    return np.max(np.abs(rows["mean"] - mean[0]) / sd[0]), rows["sd"] / sd[0]


def is_right(fit, known):
    """The bar of the default: means within 0.1 sd, sds within a fifth to a quarter."""
    error, ratio = errors(fit, known)
    return error <= 0.1 and ratio.min() >= 0.8 and ratio.max() <= 1.25


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("seed", SEEDS)
def test_well_behaved_targets_pass_and_are_right(name, seed):
    known = PASSES[name]()
    fit = tb.fit(known.target, key=seed)
    assert fit.certificate.verdict == "pass", str(fit.certificate)
    assert is_right(fit, known)
    lower, upper = fit.certificate.log_evidence
    # quadrature of that evidence is good to 1e-3
    assert lower <= known.log_evidence <= upper or "schools" in name


@pytest.mark.parametrize("name", FOOLS)
@pytest.mark.parametrize("seed", SEEDS)
def test_targets_built_to_fool_it_never_pass_when_wrong(name, seed):
    known = FOOLS[name]()
    fit = tb.fit(known.target, key=seed, throw=False)
    assert fit.certificate.verdict != "pass" or is_right(fit, known), str(fit.certificate)


def test_a_missed_mode_becomes_part_of_a_mixture():
    known = zoo.two_modes(10)
    fit = tb.fit(known.target, key=1)
    assert isinstance(fit.q, tb.families.Mixture)
    np.testing.assert_allclose(fit.q.weights, 0.5, atol=0.02)
    assert "Mixture" in fit.rung


def test_a_budget_stops_the_climb_with_what_it_has():
    known = zoo.eight_schools(centered=True)
    fit = tb.fit(known.target, budget=tb.Budget(evaluations=8_000))
    assert isinstance(fit.q, tb.families.Gaussian)
    assert fit.certificate.verdict != "pass"
    assert "budget" in fit.rung or fit.result is tb.Result.budget


BUDGETED = {
    "gaussian": lambda: zoo.gaussian(5, condition=100.0).target,
    "funnel": lambda: zoo.eight_schools(centered=True).target,
    "heavy tails": lambda: zoo.student_t(5, df=5.0).target,
    "350 dimensions": lambda: zoo.gaussian(350, condition=10.0).target,
}


def many_rows():
    """More rows than are looked at together, so that the start subsamples them."""
    x = 1.0 + np.random.default_rng(0).standard_normal(20_000)
    return tb.from_rows(
        lambda p: -0.5 * p["mu"] ** 2, lambda p, x: -0.5 * (x - p["mu"]) ** 2, x, {"mu": 0.0}
    )


def numpyro_model():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
        numpyro.sample("y", dist.StudentT(3.0, mu, sigma), obs=y)

    return tb.from_numpyro(model, np.random.default_rng(1).standard_normal(30))


# The other rows of the default's table: their starts and ladders spend evaluations of their own.
BUDGETED_OTHERWISE = {
    "clutter with two modes": lambda: tb.targets.Clutter(
        [-6.0, -6.2, -5.9, 6.0, 6.3, 5.8], prior_var=50.0
    ),
    "regression with outliers": lambda: tb.targets.LinearClutter(
        np.column_stack([np.ones(12), np.arange(12.0)]), np.r_[np.arange(10.0), 50.0, -50.0]
    ),
    "conjugate": lambda: tb.targets.NormalSample(np.arange(10.0)),
    "many rows": many_rows,
    "NumPyro": numpyro_model,
}


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        *itertools.product(BUDGETED, (10, 100, 1_000, 10_000, 100_000)),
        *itertools.product(BUDGETED_OTHERWISE, (100, 3_000)),
    ],
)
def test_a_budget_binds_start_rungs_and_certificate(name, evaluations):
    """The whole of a fit uses at most a tenth more, or 512, and the account adds up."""
    target = (BUDGETED | BUDGETED_OTHERWISE)[name]()
    fit = tb.fit(target, budget=tb.Budget(evaluations=evaluations), throw=False)
    total = fit.spent.total.evaluations
    assert total <= evaluations + max(evaluations / 10, 512), str(fit.spent)
    assert total == pytest.approx(fit.evaluations + fit.spent["certificate"].evaluations)
    assert fit.spent["certificate"].evaluations == fit.certificate.evaluations
    if "not examined" in fit.certificate:
        assert fit.certificate.verdict != "pass"
    if evaluations <= 100:
        assert "not examined" in fit.certificate


def test_without_a_budget_nothing_is_left_out():
    """The negative control: the same target, certified in full."""
    fit = tb.fit(BUDGETED["gaussian"]())
    assert "not examined" not in fit.certificate
    assert fit.certificate.verdict == "pass"
    assert set(fit.spent) >= {"start", "Gaussian", "certificate"}


def test_a_q_that_was_chosen_keeps_its_family():
    """A mean-field q stays one, and the fit says so; without a q the same target is climbed."""
    target = zoo.eight_schools(centered=True).target
    fit = tb.fit(target, tb.families.Gaussian.diagonal(target.dim), throw=False)
    assert fit.q.covariance_structure == "diagonal"
    assert "that you chose" in fit.rung
    mixed = tb.fit(zoo.two_modes(2).target)
    again = tb.fit(mixed.target, mixed.q)
    assert "fitted anew from the moments" in again.rung


def test_a_traced_target_points_to_fit_batch():
    def traced(x):
        target = tb.from_log_density(lambda p: -0.5 * (p["z"] - x) ** 2, {"z": 0.0})
        with pytest.raises(tb.TargetError, match=r"inside jit, vmap or grad.*tb\.fit_batch"):
            tb.fit(target)
        return x

    jax.jit(traced)(1.0)
