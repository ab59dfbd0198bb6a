"""The t that a Gaussian's weights ask for.

Found where tails are all that is wrong, and nowhere else.
"""

import numpy as np
import pytest
import scipy.stats as st

import tightbound as tb
from tightbound.certify.psis import smooth
from tightbound.families import Gaussian
from tightbound.plan.rungs.student import heavy_tailed_start
from tightbound.targets import zoo

pytestmark = pytest.mark.usefixtures("as_a_user")


def weighted(q, log_density, draws=4000):
    z, log_q = q.draw(draws, 0)
    log_w = log_density(z) - log_q
    return z, log_w, smooth(log_w).weights


def test_it_recovers_a_t_from_the_gaussian_of_its_covariance():
    """The t found is a start: draws of a Gaussian hardly reach its tails, so 1 / df is low.

    0.149 +- 0.018 over 20 keys; the scale is 1.013 +- 0.018.
    """
    loc, root, df = (
        np.array([1.0, -2.0, 0.5]),
        np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.3, 0.2, 1.0]]),
        5.0,
    )
    truth = st.multivariate_t(loc, root @ root.T, df)
    q = Gaussian.from_root(loc, root * np.sqrt(df / (df - 2)))
    found = heavy_tailed_start(q, *weighted(q, truth.logpdf))
    assert 0.08 < 1.0 / float(found.df) <= 1.0 / df + 0.02
    np.testing.assert_allclose(found.shape.sd, np.linalg.norm(root, axis=1), rtol=0.08)


def test_a_skewed_or_a_gaussian_posterior_asks_for_none():
    q = Gaussian.full(2)
    skewed = weighted(q, lambda z: st.skewnorm(2.0).logpdf(z).sum(axis=1))
    # radial, but lighter than a Gaussian
    light = weighted(q, lambda z: -0.1 * np.sum(z**2, axis=1) ** 2)
    exact = weighted(q, lambda z: q.log_prob_on_host(z))
    assert [heavy_tailed_start(q, *w) for w in (skewed, light, exact)] == [None, None, None]


@pytest.mark.slow
@pytest.mark.parametrize("key", [0, 1, 2])
def test_tb_fit_settles_a_t_with_five_degrees(key):
    """In 40,000 gradients with room to spare: the Gaussian, its draws, and one rung."""
    known = zoo.student_t(5, df=5.0)
    fit = tb.fit(known.target, key=key)
    assert fit.rung == "StudentT: the certificate passes."
    assert fit.evaluations < 20_000
    assert fit.q.df == pytest.approx(5.0, rel=0.3)
    lower, upper = fit.certificate.log_evidence
    assert lower <= known.log_evidence <= upper
    assert upper - lower < 0.1
