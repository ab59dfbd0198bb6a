"""Amortised inference from end to end on a linear Gaussian simulator, whose posterior is known for
every x.

The fit, its certificate, its conditioning on data and every check of it share one trained network.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import tightbound as tb
from tightbound.amortised import at_data
from tightbound.amortised.encoders import AbstractEncoder
from tightbound.amortised.global_optimum import (
    convex_bound,
    gaussian_kernel_test,
    tangent_kernel_test,
)
from tightbound.amortised.improvement import improvement
from tightbound.certify import calibration
from tightbound.certify.simulations import posteriors, simulations
from tightbound.estimators import FromModel
from tightbound.results import PairingError
from tightbound.solvers import HeldOut, StochasticGradient

MIX = np.array([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]])
NOISE = 0.7
X = np.array([1.2, 0.4, -0.3])
COV = np.linalg.inv(np.eye(2) + MIX.T @ MIX / NOISE**2)
SLOPE = COV @ MIX.T / NOISE**2
# the posterior's entropy: the least possible loss
HELD_OUT_LOSS = 0.5 * np.log(np.linalg.det(2 * np.pi * np.e * COV))


class Exact(AbstractEncoder):
    """The exact posterior in the coordinates of the Gaussian head, its sds multiplied by `width`,
    its means moved.
    """

    width: jax.Array
    shift: jax.Array

    def __call__(self, x):
        root = jnp.asarray(np.linalg.cholesky(np.linalg.inv(COV)) / self.width)
        mean = jnp.asarray(SLOPE) @ x + self.shift
        return jnp.concatenate([root.T @ mean, jnp.diag(root), root[1, :1]])


@pytest.fixture(scope="module")
def target():
    with jax.numpy_rank_promotion("allow"):
        return tb.from_simulator(
            lambda key: {"a": jr.normal(key, (2,))},
            lambda key, p: MIX @ p["a"] + NOISE * jr.normal(key, (3,)),
            log_prior=lambda p: -0.5 * jnp.sum(p["a"] ** 2),
            log_likelihood=lambda p, x: -0.5 * jnp.sum((x - MIX @ p["a"]) ** 2) / NOISE**2,
        )


@pytest.fixture(scope="module")
def fit(target):
    return tb.fit(target, key=0, starts=2)


def exactly(fit, width=1.0, shift=0.0):
    """A network that is the exact posterior, or has one thing wrong."""
    member = fit.q.members[0]
    plain = tb.amortised.amortised(
        fit.target, member.head, Exact(np.array(width), np.array(shift)), standardise=False
    )
    return plain


@pytest.mark.slow
def test_the_default_reaches_the_posterior_for_every_x_and_says_so(fit):
    assert fit.result is tb.Result.held_out
    assert fit.result.ok
    q = fit.q.members[0].at(X)
    mean, sd = q.moments
    exact_sd = np.sqrt(np.diag(COV))
    np.testing.assert_array_less(np.abs(mean - SLOPE @ X) / exact_sd, 0.06)
    np.testing.assert_allclose(sd, exact_sd, rtol=0.04)
    assert fit.certificate.verdict == "pass"
    assert set(fit.certificate) >= {
        "learns",
        "global optimum",
        "seeds",
        "sbc",
        "expected coverage",
        "tarp",
        "simulations",
    }
    assert "evidence lies" not in str(fit.certificate)


def test_training_goes_on_from_where_it_was_stopped(target, fit):
    stopped = tb.fit(target, fit.q, solver=HeldOut(), max_steps=200, key=1)
    assert stopped.result is tb.Result.max_steps
    made = simulations(target, 3, 2000)
    losses = [-np.mean(_log_q(f.q, made)) for f in (fit, stopped)]
    # as good as it was, within the error of 2,000 paired losses
    assert losses[1] == pytest.approx(losses[0], abs=0.01)
    assert losses[0] == pytest.approx(HELD_OUT_LOSS, abs=4 / np.sqrt(2000))


def _log_q(q, made):
    from tightbound.families.conditional import log_probs_at

    return log_probs_at(q, made.z, made.x)


def test_an_interrupted_run_returns_its_last_block(target, fit, monkeypatch):
    from tightbound import loop

    blocks = []

    def ctrl_c(self, info):
        blocks.append(1)
        if len(blocks) == 2:
            raise KeyboardInterrupt
        return 0.0  # evaluations

    monkeypatch.setattr(loop._Log, "add", ctrl_c)
    stopped = tb.fit(target, fit.q, solver=HeldOut(), key=1)
    assert stopped.result is tb.Result.interrupted
    assert len(blocks) == 2
    assert np.isfinite(stopped.q.log_prob(np.zeros(2), X))


@pytest.mark.slow
def test_at_given_data_it_is_a_posterior(fit, tmp_path):
    posterior = fit.at(X)
    draws = posterior.sample(0, 4000)["a"]
    assert draws.shape == (4000, 2)
    np.testing.assert_allclose(np.cov(draws.T), COV, atol=0.02)
    value = np.array([0.3, -0.2])
    centred = value - SLOPE @ X
    exact = -0.5 * centred @ np.linalg.inv(COV) @ centred - 0.5 * np.log(
        np.linalg.det(2 * np.pi * COV)
    )
    assert posterior.log_prob({"a": value}) == pytest.approx(exact, abs=0.1)
    assert posterior.log_prob({"a": np.stack([value, value])}).shape == (2,)
    certificate = posterior.certificate
    assert certificate.khat < 0.7
    assert certificate["simulable"].verdict == "pass"
    evidence = -0.5 * X @ np.linalg.inv(MIX @ MIX.T + NOISE**2 * np.eye(3)) @ X
    evidence -= 0.5 * np.log(np.linalg.det(MIX @ MIX.T + NOISE**2 * np.eye(3)))
    # the densities above leave their constants out
    evidence += 3 * np.log(NOISE) + np.log(2 * np.pi)
    assert certificate.log_evidence[0] - 0.01 < evidence < certificate.log_evidence[1] + 0.01
    assert list(posterior.summary()["mean"]) == pytest.approx(list(SLOPE @ X), abs=0.05)
    assert posterior.report(tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_a_batch_of_data_sets_is_the_single_ones(fit):
    xs = np.stack([X, -X, np.zeros(3)])
    batch = fit.at(xs)
    assert len(batch) == 3
    draws = batch.sample(0, 2000)["a"]
    np.testing.assert_allclose(draws.mean(axis=1), xs @ SLOPE.T, atol=0.1)
    values = {"a": np.zeros((3, 2))}
    singles = [batch[i].log_prob({"a": np.zeros(2)}) for i in range(3)]
    np.testing.assert_allclose(batch.log_prob(values), singles, atol=1e-8)


def test_data_that_do_not_fit_are_explained(fit, target):
    with pytest.raises(ValueError, match="has shape \\(4,\\), but q was trained on \\(3,\\)"):
        fit.at(np.zeros(4))
    with pytest.raises(ValueError, match="holds NaN"):
        fit.at(np.array([1.0, np.nan, 0.0]))
    far = at_data.simulable(fit.q, target, np.array([40.0, 0.0, 0.0]))
    assert far.verdict == "fail"
    assert "the model does not produce such data" in far.why
    assert far.detail.outside == 1
    ordinary = tb.fit(
        tb.targets.zoo.eight_schools().target,
        tb.families.Gaussian.full(10),
        solver=tb.solvers.Laplace(),
        throw=False,
    )
    with pytest.raises(PairingError, match="of one data set already"):
        ordinary.at(X)


def test_a_saved_fit_comes_back(fit, target, tmp_path):
    again = tb.load(fit.save(tmp_path / "fit.npz"), target)
    assert again.q.log_prob(np.zeros(2), X) == fit.q.log_prob(np.zeros(2), X)
    assert str(again.certificate) == str(fit.certificate)


@pytest.mark.slow
def test_the_ordinary_stochastic_solver_trains_too(target, fit):
    q = tb.amortised.amortised(target, width=4, depth=1)
    slow = tb.fit(
        target, q, tb.objectives.ForwardKL(), StochasticGradient(FromModel(64)), max_steps=400
    )
    made = simulations(target, 3, 2000)
    assert -np.mean(_log_q(slow.q, made)) == pytest.approx(HELD_OUT_LOSS, abs=0.1)
    with pytest.raises(PairingError, match="held-out simulations, which Pathwise does not have"):
        tb.fit(target, q, solver=HeldOut(tb.estimators.Pathwise()))


def test_steps_that_are_never_finite_end_the_run(target):
    import optax

    q = tb.amortised.amortised(target, width=2, depth=1)
    broken = HeldOut(transform=optax.scale(np.nan))
    fit = tb.fit(target, q, solver=broken, throw=False)
    assert fit.result is tb.Result.nonfinite
    with pytest.raises(tb.FitError, match="NaN or infinite"):
        tb.fit(target, q, solver=broken)


# -- the certificate of the global optimum


def test_at_the_optimum_there_is_no_departure_and_away_from_it_there_is(fit, target):
    made = simulations(target, 11, 1000)
    exact, biased = exactly(fit), exactly(fit, shift=0.3)
    for test in (gaussian_kernel_test,):
        assert test(exact, made).p_value > 0.01
        assert test(biased, made).p_value < 0.01
    assert tangent_kernel_test(fit.q.members[0], made).p_value > 0.01
    bound, difference = convex_bound(biased, exact, made)
    shift = np.full(2, 0.3)
    gap = 0.5 * shift @ np.linalg.inv(COV) @ shift
    assert difference.value == pytest.approx(gap, abs=4 * difference.stderr)
    assert bound.value > gap - 2 * bound.stderr
    better = improvement(biased, made)
    assert 0.5 * gap < better.gain.value < gap + 4 * better.gain.stderr
    assert better.bound.value > gap
    assert abs(improvement(exact, made).gain.value) < 0.01


def test_seeds_that_disagree_are_seen(fit, target):
    from tightbound.amortised.global_optimum import seeds_agree

    apart = tb.families.Ensemble.stack([exactly(fit), exactly(fit, shift=1.0)])
    finding = seeds_agree(apart, target, 0)
    shift = np.ones(2)
    assert finding.verdict == "fail"
    # the symmetrised KL of a shift
    assert finding.value == pytest.approx(shift @ np.linalg.inv(COV) @ shift, rel=0.1)
    assert seeds_agree(exactly(fit), target, 0) is None


# -- calibration


@pytest.mark.parametrize(
    ("width", "shift", "says"),
    [(1.0, 0.0, None), (0.6, 0.0, "too narrow"), (1.6, 0.0, "too wide"), (1.0, 0.3, "biased high")],
)
def test_calibration_passes_the_posterior_and_nothing_else(fit, target, width, shift, says):
    sbc, coverage, tarp = calibration.calibrate(exactly(fit, width, shift), target, 4)
    if says is None:
        assert [f.verdict for f in (sbc, coverage, tarp)] == ["pass"] * 3
        return
    assert sbc.verdict != "pass"
    assert says in sbc.why
    assert (coverage.verdict != "pass") == (shift == 0 or coverage.detail.p < 0.01)
    if shift == 0:
        assert tarp.verdict != "pass"


def test_the_local_test_sees_what_is_wrong_at_x(fit, target):
    assert at_data.local_c2st(exactly(fit), target, X, 0).verdict == "pass"
    assert at_data.local_c2st(exactly(fit, width=0.6), target, X, 0).verdict != "pass"


def test_a_q_that_equals_the_prior_is_named(fit, target):
    class Prior(AbstractEncoder):
        def __call__(self, x):
            return jnp.array([0.0, 0.0, 1.0, 1.0, 0.0]) + 0.0 * x[0]

    finding = calibration.learns(
        tb.amortised.amortised(target, fit.q.head, Prior(), standardise=False), target
    )
    assert finding.verdict == "fail"
    assert finding.why.startswith("q equals the prior")
    assert "training failed" in finding.why


def test_refits_are_calibrated_too(target):
    from tightbound.families import Gaussian

    root = np.linalg.cholesky(COV)
    right = lambda x: Gaussian.from_root(SLOPE @ x, root)  # noqa: E731
    narrow = lambda x: Gaussian.from_root(SLOPE @ x, 0.5 * root)  # noqa: E731
    assert all(f.verdict == "pass" for f in calibration.calibrate_refits(right, target, 0))
    assert "too narrow" in calibration.calibrate_refits(narrow, target, 0)[1].why
    few = calibration.calibrate_refits(narrow, target, 0, budget=tb.Budget(seconds=1e-9))
    assert "the budget ended after 1 of 100" in few[0].why


def test_a_budget_bounds_the_simulations(fit, target):
    made = posteriors(fit.q, target, 0, 500, 200, tb.Budget(seconds=1e-9))
    assert len(made.z) == 250
    assert made.asked == 500
