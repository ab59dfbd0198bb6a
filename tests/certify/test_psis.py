"""Pareto smoothing: the tail fit on exact Pareto draws, and the textbook limits of weights."""

import numpy as np
import pytest
import scipy.stats as st

from tightbound.certify.psis import (
    fit_generalised_pareto,
    khat_of,
    khat_threshold,
    smooth,
    smooth_many,
    tail_size,
)


@pytest.mark.parametrize("shape", [-0.3, 0.1, 0.5, 0.9])
def test_tail_fit_recovers_the_shape_of_a_generalised_pareto(shape):
    draws = np.sort(st.genpareto(shape, scale=2.0).rvs(4000, random_state=1))
    ((k,), (sigma,)) = fit_generalised_pareto(draws[:, None])
    # asymptotic sd of the maximum likelihood shape is (1 + k) / sqrt(n), of log sigma sqrt(2 (1 +
    # k) / n); four of each
    assert k == pytest.approx(shape, abs=4 * (1 + shape) / np.sqrt(4000) + 0.005)
    assert np.log(sigma / 2.0) == pytest.approx(0.0, abs=4 * np.sqrt(2 * (1 + shape) / 4000))


def test_columns_are_fitted_apart():
    a = np.sort(st.genpareto(0.2).rvs(300, random_state=2))
    b = np.sort(st.genpareto(0.7).rvs(300, random_state=3))
    k, _ = fit_generalised_pareto(np.stack([a, b], axis=1))
    assert k[0] == pytest.approx(fit_generalised_pareto(a[:, None])[0][0], rel=1e-12)
    assert k[1] == pytest.approx(fit_generalised_pareto(b[:, None])[0][0], rel=1e-12)


def test_khat_is_the_tail_index_of_normal_weights_with_too_narrow_a_proposal():
    """p = N(0, 1), q = N(0, s^2), s < 1.

    Weights have a Pareto tail with index k = 1 - s^2 (Vehtari et al., section 3).
    """
    rng = np.random.default_rng(0)
    for s in (0.5, 0.6):
        z = s * rng.standard_normal(200_000)
        result = smooth(st.norm.logpdf(z) - st.norm.logpdf(z, scale=s))
        # log corrections to the power law make finite-sample estimates approach slowly from below
        assert result.khat == pytest.approx(1 - s**2, abs=0.2)


def test_equal_weights_are_perfect():
    result = smooth(np.full(1000, -3.7))
    assert result.khat == -np.inf
    assert result.ess == pytest.approx(1000)
    np.testing.assert_allclose(result.weights, 1e-3)


def test_smoothing_keeps_order_total_and_the_largest_raw_weight_as_a_cap():
    log_w = st.t(2).rvs(4000, random_state=5)
    result = smooth(log_w)
    assert result.weights.sum() == pytest.approx(1.0)
    raw = np.exp(log_w - log_w.max())
    assert np.all(np.diff(result.weights[np.argsort(log_w)]) >= -1e-15)
    assert result.weights.max() / result.weights[np.argsort(log_w)[0]] <= raw.max() / raw.min() * (
        1 + 1e-9
    )


def test_draws_without_density_have_no_weight():
    log_w = np.zeros(500)
    log_w[:100] = -np.inf
    log_w[100] = np.nan
    result = smooth(log_w)
    assert np.all(result.weights[:101] == 0)
    assert result.weights[101:].sum() == pytest.approx(1.0)


def test_all_minus_infinity_is_a_failure_not_an_error():
    result = smooth(np.full(200, -np.inf))
    assert result.khat == np.inf
    assert result.ess == 0.0


def test_the_weighted_mean_is_right_where_raw_weights_are_noisy():
    """E_p z^2 = 1 from a proposal with k about 0.44.

    Smoothed estimate within four of its standard errors.
    """
    rng = np.random.default_rng(3)
    z = 0.75 * rng.standard_normal(20_000)
    result = smooth(st.norm.logpdf(z) - st.norm.logpdf(z, scale=0.75))
    estimate = result.weights @ z**2
    stderr = np.sqrt(np.sum((result.weights * (z**2 - estimate)) ** 2))
    assert estimate == pytest.approx(1.0, abs=4 * stderr)


def test_khat_of_products_matches_the_joint_one_for_weights_alone():
    z = 0.6 * np.random.default_rng(1).standard_normal(4000)
    log_w = st.norm.logpdf(z) - st.norm.logpdf(z, scale=0.6)
    w = np.exp(log_w - log_w.max())
    assert khat_of(w[:, None])[0] == pytest.approx(smooth(log_w).khat, abs=0.02)


def test_published_thresholds():
    """Vehtari et al. 2024: S = 100 -> 0.5, S = 1000 -> 0.67, and 0.7 from S of about 2200 on."""
    assert khat_threshold(100) == pytest.approx(0.5)
    assert khat_threshold(1000) == pytest.approx(2 / 3)
    assert khat_threshold(4000) == 0.7
    assert tail_size(4000) == 189
    assert tail_size(100) == 20


def test_rows_are_smoothed_as_each_alone():
    rng = np.random.default_rng(6)
    log_w = np.stack(
        [s * rng.standard_normal(1000) for s in (0.0, 0.01, 1.0, 5.0)] + [np.full(1000, -np.inf)]
    )
    weights, khat, ess = smooth_many(log_w)
    for i, row in enumerate(log_w):
        one = smooth(row)
        np.testing.assert_allclose(weights[i], one.weights, rtol=1e-12)
        assert (khat[i], ess[i]) == pytest.approx((one.khat, one.ess))


def test_a_pile_up_of_nearly_equal_weights_is_not_taken_for_a_tail():
    """log w = -.05 (z^3 - 3 z) has a local maximum at z = 1, where draws pile up just below the
    cut: k is fitted above 1.
    """
    z = np.random.default_rng(0).standard_normal(4000)
    log_w = -0.05 * (z**3 - 3 * z)
    result = smooth(log_w)
    assert result.khat > 1.0
    raw = np.exp(log_w)
    np.testing.assert_allclose(result.weights, raw / raw.sum(), rtol=1e-10)
