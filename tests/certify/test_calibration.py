"""The findings of calibration, on simulations with draws that are exact, or known to be wrong."""

import numpy as np
import pytest
import scipy.stats

from tightbound.certify import calibration
from tightbound.certify.simulations import Posteriors


def made(truth, draws, circular=None):
    density = scipy.stats.norm.logpdf
    circular = (False,) * truth.shape[1] if circular is None else circular
    log_q, log_q_true = density(draws).sum(axis=2), density(truth).sum(axis=1)
    return Posteriors(truth, None, draws, log_q, log_q_true, circular, 0.0, len(truth))


@pytest.fixture(scope="module")
def standard():
    rng = np.random.default_rng(0)
    return made(rng.standard_normal((400, 2)), rng.standard_normal((400, 99, 2)))


def test_exact_draws_pass_every_test(standard):
    assert all(f.verdict == "pass" for f in calibration.judge(standard, ("a", "b")))


def test_tarp_sees_a_dependence_that_single_ranks_cannot():
    rng = np.random.default_rng(1)
    truth = rng.multivariate_normal(np.zeros(2), [[1.0, 0.9], [0.9, 1.0]], size=800)
    found = made(truth, rng.standard_normal((800, 200, 2)))
    sbc, _, tarp = calibration.judge(found, ("a", "b"))
    assert sbc.verdict == "pass"  # each coordinate alone is right
    assert tarp.verdict != "pass"
