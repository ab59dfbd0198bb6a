"""Mean-field VI with indicators.

Its fixed point, its bound by enumeration, and the paper's numbers.
"""

import itertools

import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st

import tightbound as tb
from tightbound.families import Gaussian
from tightbound.objectives import ELBO
from tightbound.results import PairingError, Result
from tightbound.solvers import IndicatorMeanField
from tightbound.targets import Clutter
from tightbound.testing import GaussianTarget

N5 = [-3.6048, 1.1717, 2.9157, 0.3442, 2.2250]
N10 = [3.7161, 1.8442, 1.5167, -1.7605, 1.7936, -2.7840, 1.0120, 1.6812, 1.1503, 1.1121]


@pytest.mark.parametrize(("x", "kl"), [(N5, 0.2160), (N10, 0.02868)], ids=["n = 5", "n = 10"])
def test_the_paper_s_numbers(x, kl):
    """KL(q || p) of mean-field VI as published for these points."""
    target = Clutter(x)
    fit = tb.fit(target, Gaussian.full(1), solver=IndicatorMeanField())
    assert fit.result is Result.converged
    assert target.exact().kl(fit.q) == pytest.approx(kl, rel=1e-3)


def test_fixed_point_and_bound_in_the_plane():
    """At the end q is what its own responsibilities imply, the loss never rose, and the bound is
    sum_z q(z) [E_q log p(x, z, theta) - log q(z)] + H(q), enumerated over all 2^4 indicators."""
    rng = np.random.default_rng(0)
    x, vg = rng.standard_normal((4, 2)), np.array([[1.0, 0.3], [0.3, 2.0]])
    target = Clutter(x, vg=vg, w=[0.2, 0.4, 0.5, 0.7], prior_var=3.0, prior_mean=[0.5, 0.0])
    solver = IndicatorMeanField()
    with tb._numerics.x64():
        ends = tb.loop.run(
            target,
            Gaussian.full(2),
            None,
            solver,
            key=0,
            tol=1e-3,
            budget=tb.Budget(),
            max_steps=None,
        )
    mean, cov, noise = ends.q.mean, ends.q.cov, np.linalg.inv(vg)
    d = x - mean
    log_in = np.log1p(-target.w) - 0.5 * (
        np.sum(d @ noise * d, axis=1) + np.trace(noise @ cov) + np.linalg.slogdet(2 * np.pi * vg)[1]
    )
    log_out = np.log(target.w) + target.log_clutter
    r = sp.expit(log_in - log_out)
    np.testing.assert_allclose(np.linalg.inv(cov), r.sum() * noise + np.eye(2) / 3, rtol=1e-6)
    np.testing.assert_allclose(mean, cov @ (noise @ (r @ x) + np.array([0.5, 0.0]) / 3), atol=1e-6)
    assert np.all(np.diff(ends.trace.loss) < 1e-12)
    away = mean - np.array([0.5, 0.0])
    outside = (
        -0.5 * (away @ away + np.trace(cov)) / 3
        - np.log(2 * np.pi * 3)
        + st.multivariate_normal(mean, cov).entropy()
    )
    bound = outside
    for z in itertools.product((0, 1), repeat=4):
        z = np.array(z)
        log_q = np.sum(z * np.log(r) + (1 - z) * np.log1p(-r))
        bound += np.exp(log_q) * (np.sum(z * log_in + (1 - z) * log_out) - log_q)
    assert -ends.trace.loss[-1] == pytest.approx(bound, abs=1e-8)
    assert target.exact().elbo(ends.q) >= bound


def test_pairings():
    with pytest.raises(PairingError, match="ability `contaminated`"):
        tb.fit(GaussianTarget(Gaussian.full(1)), Gaussian.full(1), solver=IndicatorMeanField())
    with pytest.raises(PairingError, match="takes no objective"):
        tb.fit(Clutter(N5), Gaussian.full(1), ELBO(), IndicatorMeanField())
    with pytest.raises(PairingError, match="full-rank"):
        tb.fit(Clutter(N5), Gaussian.diagonal(1), solver=IndicatorMeanField())
