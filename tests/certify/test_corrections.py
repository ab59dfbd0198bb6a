"""Importance-corrected moments against closed forms, their standard errors against replication."""

import numpy as np
import pytest
import scipy.stats as st

from tightbound.certify.corrections import expectations, resample, weighted_quantiles
from tightbound.certify.psis import smooth


def weighted_normal(seed, n=4000, mean=0.3, sd=1.2, q_sd=1.0):
    """Draws of q = N(0, q_sd^2) with weights for p = N(mean, sd^2)."""
    half = q_sd * np.random.default_rng(seed).standard_normal(n // 2)
    z = np.concatenate([half, -half])
    return z, smooth(st.norm.logpdf(z, mean, sd) - st.norm.logpdf(z, 0, q_sd)).weights


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


def test_resampling_without_replacement_takes_no_draw_twice_and_follows_the_weights():
    """Of weights (.5, .3, .2) the first draw is proportional to them.

    3,000 repetitions, 4 standard errors.
    """
    rng, weights = np.random.default_rng(0), np.array([0.5, 0.3, 0.2, 0.0])
    firsts = np.array([resample(rng, weights, 2, replace=False) for _ in range(3000)])
    assert np.all(firsts[:, 0] != firsts[:, 1])
    share = np.bincount(firsts[:, 0], minlength=4) / 3000
    np.testing.assert_allclose(share, weights, atol=4 * np.sqrt(0.25 / 3000))
    # then proportional to those that are left: P(both 0 and 1) = .5 .3 / .5 + .3 .5 / .7
    both = np.mean(np.all(np.sort(firsts, axis=1) == [0, 1], axis=1))
    assert both == pytest.approx(0.3 + 0.15 / 0.7, abs=4 * np.sqrt(0.25 / 3000))
    with pytest.raises(
        ValueError, match="4 different draws were asked for, but only 3 have weight"
    ):
        resample(rng, weights, 4, replace=False)


def test_expectations_and_their_errors_by_replication():
    """E and sd of sin(z) under N(0.1, 1.05^2) from draws of N(0, 1).

    Stated errors against the spread of 300 replicates.
    """
    means, sds, errors, sd_errors = [], [], [], []
    for seed in range(300):
        z = np.random.default_rng(seed).standard_normal(2000)
        w = smooth(st.norm.logpdf(z, 0.1, 1.05) - st.norm.logpdf(z)).weights
        out = expectations(np.sin(z)[:, None], w)
        means.append(out["mean"][0])
        sds.append(out["sd"][0])
        errors.append(out["mean_error"][0])
        sd_errors.append(out["sd_error"][0])
    x = np.linspace(-9, 9, 20_001)
    p = st.norm.pdf(x, 0.1, 1.05) * (x[1] - x[0])
    mean = p @ np.sin(x)
    assert np.mean(means) == pytest.approx(mean, abs=4 * np.std(means) / np.sqrt(300))
    assert np.mean(sds) == pytest.approx(np.sqrt(p @ np.sin(x) ** 2 - mean**2), abs=0.003)
    assert np.mean(errors) / np.std(means) == pytest.approx(1.0, abs=0.25)
    assert np.mean(sd_errors) / np.std(sds) == pytest.approx(1.0, abs=0.25)
