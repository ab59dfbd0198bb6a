"""Importance-corrected moments against closed forms, and their standard errors against replication."""

import numpy as np
import pytest
import scipy.stats as st

from tightbound.certify.corrections import moment_table, resample, weighted_quantiles
from tightbound.certify.psis import smooth


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
    assert table.believed[0]


def test_standard_errors_match_the_spread_over_replicates():
    """Ratio of the stated to the actual sd of the correction over 300 replicates; its own error is 4 % (1/sqrt(600))."""
    shifts, stated, ratios, stated_log = [], [], [], []
    for seed in range(300):
        z = np.random.default_rng(seed).standard_normal(1000)  # no pairs: the stated error does not count on them
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


def test_weighted_quantiles_are_those_of_the_target():
    z, w = weighted_normal(2, n=40_000)
    quantiles = weighted_quantiles(z[:, None], w, (0.05, 0.5, 0.95))[:, 0]
    truth = st.norm(0.3, 1.2).ppf([0.05, 0.5, 0.95])
    # sd of a sample quantile: sqrt(p (1 - p) / ess) / density
    error = 4 * np.sqrt(np.array([0.0475, 0.25, 0.0475]) / 20_000) / st.norm(0.3, 1.2).pdf(truth)
    np.testing.assert_array_less(np.abs(quantiles - truth), error)


def test_systematic_resampling_repeats_each_draw_as_often_as_its_weight_says():
    weights = np.array([0.5, 0.3, 0.15, 0.05])
    counts = np.bincount(resample(np.random.default_rng(0), weights, 1000), minlength=4)
    np.testing.assert_allclose(counts, 1000 * weights, atol=1)
