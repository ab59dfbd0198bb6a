"""Ranks and their bands: against known distributions, without any network."""

import numpy as np
import pytest
import scipy.stats

from tightbound.certify import ranks
from tightbound.certify.simulations import Posteriors


def made(truth, draws, circular=None):
    density = scipy.stats.norm.logpdf
    circular = (False,) * truth.shape[1] if circular is None else circular
    log_q, log_q_true = density(draws).sum(axis=2), density(truth).sum(axis=1)
    return Posteriors(truth, None, draws, log_q, log_q_true, circular, 0.0, len(truth))


def test_ranks_count_the_draws_below():
    truth, draws = (
        np.array([[0.5], [2.0]]),
        np.array([[[0.0], [1.0], [0.4]], [[1.0], [3.0], [0.0]]]),
    )
    np.testing.assert_array_equal(ranks.sbc_ranks(made(truth, draws)), [[2], [2]])
    np.testing.assert_allclose(ranks.vsbc(made(truth, draws)), [[1 - 2.5 / 4], [1 - 2.5 / 4]])
    np.testing.assert_array_equal(ranks.density_ranks(made(truth, draws)), [2, 2])


def test_angles_are_ranked_around_their_mean_direction():
    draws = np.array([[[3.1], [-3.1], [3.0], [-3.0]]])  # around pi: the truth lies in their middle
    assert ranks.sbc_ranks(made(np.array([[np.pi]]), draws, (True,)))[0, 0] == 2


def test_the_p_value_of_the_whole_ecdf_is_uniform():
    rng = np.random.default_rng(2)
    p = [ranks.ecdf_test(rng.integers(0, 100, size=200), 99)[0] for _ in range(200)]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_the_band_holds_the_whole_ecdf_as_often_as_it_says():
    levels, low, high = ranks.ecdf_band(150, 99, 0.9)
    rng, inside = np.random.default_rng(3), 0
    for _ in range(1000):
        made_up = rng.integers(0, 100, size=150)
        ecdf = np.mean(made_up[:, None] <= np.round(levels * 100).astype(int) - 1, axis=0)
        inside += bool(np.all((ecdf >= low - 1e-12) & (ecdf <= high + 1e-12)))
    # 4 standard errors of 1,000 samples; ranks are whole numbers
    assert inside / 1000 == pytest.approx(0.9, abs=0.04)


def test_a_constant_rank_is_far_from_uniform():
    p, deviation = ranks.ecdf_test(np.full(50, 10), 99)
    assert p < 0.001
    assert deviation > 0.8
