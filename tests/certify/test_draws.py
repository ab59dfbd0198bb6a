"""Fresh draws: the moments that their weights correct, whitening, and the meter of evaluations."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

import tightbound as tb
from tightbound.account import Account, BudgetSpent
from tightbound.certify.draws import (
    Meter,
    Whitening,
    fresh_draws,
    fresh_sample,
    moment_table,
    unweighed_draws,
)
from tightbound.certify.fitted import Pair
from tightbound.certify.psis import smooth
from tightbound.families import Gaussian
from tightbound.targets import zoo
from tightbound.targets.batched import batched

pytestmark = pytest.mark.usefixtures("as_a_user")


def weighted_normal(seed, n=4000, mean=0.3, sd=1.2, q_sd=1.0):
    """Draws of q = N(0, q_sd^2) with weights for p = N(mean, sd^2)."""
    half = q_sd * np.random.default_rng(seed).standard_normal(n // 2)
    z = np.concatenate([half, -half])
    return z, smooth(st.norm.logpdf(z, mean, sd) - st.norm.logpdf(z, 0, q_sd)).weights


def test_corrected_moments_are_those_of_the_target():
    z, w = weighted_normal(0)
    table = moment_table(("z",), z[:, None], w)
    assert table.corrected_mean[0] == pytest.approx(0.3, abs=4 * table.mean_stderr[0])
    assert np.log(table.corrected_sd[0] / 1.2) == pytest.approx(0.0, abs=4 * table.log_sd_stderr[0])
    assert table.believed()[0]


def test_standard_errors_match_the_spread_over_replicates():
    """Ratio of the stated to the actual sd of the correction over 300 replicates.

    Its own error is 4 % (1/sqrt(600)).
    """
    shifts, stated, ratios, stated_log = [], [], [], []
    for seed in range(300):
        # no pairs: the stated error does not count on them
        z = np.random.default_rng(seed).standard_normal(1000)
        w = smooth(st.norm.logpdf(z, 0.1, 1.05) - st.norm.logpdf(z)).weights
        table = moment_table(("z",), z[:, None], w)
        shifts.append(table.corrected_mean[0] - table.mean[0])
        stated.append(table.mean_stderr[0])
        ratios.append(table.log_sd_ratio[0])
        stated_log.append(table.log_sd_stderr[0])
    assert np.mean(stated) / np.std(shifts) == pytest.approx(1.0, abs=0.25)
    assert np.mean(stated_log) / np.std(ratios) == pytest.approx(1.0, abs=0.25)


def test_nothing_is_corrected_where_q_is_exact():
    z, w = weighted_normal(1, mean=0.0, sd=1.0)
    table = moment_table(("z",), z[:, None], w)
    assert abs(table.shift[0]) < 1e-12
    assert abs(table.log_sd_ratio[0]) < 1e-12


def test_whitening_of_draws():
    q = Gaussian.from_root(np.array([1.0, -2.0]), np.array([[3.0, 0.0], [1.0, 0.01]]))
    z, _ = q.draw(100_000, 0)
    white = Whitening.of(z)
    u = white.to_u(z)
    np.testing.assert_allclose(u.mean(0), 0.0, atol=1e-10)
    np.testing.assert_allclose(u.T @ u / len(u), np.eye(2), atol=1e-6)
    # log-determinant of 1e5 draws: s.e. about .003
    assert white.log_det == pytest.approx(np.log(0.03), abs=0.02)
    wide = Whitening.of(np.random.default_rng(0).standard_normal((5, 3)))
    np.testing.assert_array_equal(wide.root, np.diag(np.diag(wide.root)))


def test_scores_in_whitened_coordinates_follow_the_chain_rule():
    white = Whitening(np.array([1.0, 2.0]), np.array([[2.0, 0.0], [1.0, 0.5]]))

    def density(z):
        return -0.5 * np.sum(z**2, axis=1), -z

    u, step = np.array([[0.3, -0.7]]), 1e-6
    values, scores = white.evaluate(density)(u)
    for j in range(2):
        moved = white.evaluate(density)(u + step * np.eye(2)[j])[0]
        assert scores[0, j] == pytest.approx((moved - values)[0] / step, abs=1e-4)
    assert values[0] == pytest.approx(
        st.multivariate_normal.logpdf(white.mean + white.root @ u[0], np.zeros(2))
        + np.log(2 * np.pi)
    )


def test_more_draws_where_few_are_effective():
    known = zoo.gaussian(12)
    narrow = Gaussian.from_root(
        next(iter(known.mean.values())), 0.72 * np.linalg.cholesky(known.cov)
    )
    assert len(fresh_sample(Pair(narrow, known.target), 0).z) == 16_000


STANDARD = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(3)})


def test_a_meter_counts_and_limits_whatever_evaluates():
    meter, evaluate = Meter(STANDARD, 100), batched(STANDARD)
    evaluate(np.zeros((30, 3)))
    fresh_draws(Pair(Gaussian.full(3), STANDARD), 0, 40)
    assert (meter.used, meter.left) == (70, 30)
    with meter.rationed():
        evaluate(np.zeros((20, 3)))
    with pytest.raises(BudgetSpent), meter.rationed():
        evaluate(np.zeros((11, 3)))
    assert meter.used == 90, "nothing is evaluated beyond the limit"
    assert Meter(STANDARD).left is None


def test_what_is_rationed_is_charged_to_the_account_of_the_fit():
    account = Account(tb.Budget(evaluations=1000))
    with account.stage("certificate", binds=False):
        batched(STANDARD)(np.zeros((30, 3)))
        with Meter(STANDARD, 100).rationed():
            batched(STANDARD)(np.zeros((50, 3)))
    assert account.total.evaluations == 80
    assert account.allowance == 920


@pytest.mark.parametrize(
    ("allowance", "reserve", "count"),
    [(None, 0, 4000), (0, 0, 200), (3000, 0, 3000), (6000, 3000, 3000), (3600, 3000, 1800)],
)
def test_fresh_draws_are_cut_down_to_an_allowance(allowance, reserve, count):
    """Of (3600, 3000) too little is left to be worth it: half of the allowance is drawn."""
    fitted = Pair(Gaussian.full(3), STANDARD)
    sample = fresh_sample(fitted, 0, allowance=allowance, reserve=reserve)
    assert len(sample.z) == count == sample.evaluations


def test_no_more_draws_are_made_than_an_allowance_pays():
    known = zoo.gaussian(12)
    narrow = Gaussian.from_root(
        next(iter(known.mean.values())), 0.72 * np.linalg.cholesky(known.cov)
    )
    fitted = Pair(narrow, known.target)
    assert len(fresh_sample(fitted, 0, allowance=20_000).z) == 16_000
    assert len(fresh_sample(fitted, 0, allowance=19_999).z) == 4000
    assert len(fresh_sample(fitted, 0, extend=False).z) == 4000


def test_draws_that_nothing_weighs_have_equal_weights_and_evaluate_nothing():
    before = Meter(STANDARD)
    sample = unweighed_draws(Pair(Gaussian.full(3), STANDARD), 0, 50)
    assert np.all(sample.log_w == 0)
    assert before.used == 0


def test_the_moments_of_the_users_values_are_judged_beside_the_coordinates():
    target = tb.from_log_density(lambda p: -p["s"], {"s": 1.0}, support={"s": "positive"})
    sample = fresh_draws(Pair(Gaussian.full(1), target), 0, 400)
    (coordinates, z), (values, x) = sample.tables
    np.testing.assert_allclose(x, np.exp(z))
    assert values.names == ("s",)
    assert coordinates.names == target.coordinate_names
