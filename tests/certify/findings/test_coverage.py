"""Mass beside q.

A share that is known in closed form, and silence where the wider law can say nothing.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate as si
import scipy.stats as st

import tightbound as tb
from tightbound.certify.draws import fresh_draws
from tightbound.certify.finding import Case, Verdict
from tightbound.certify.findings.coverage import _log_mixture, coverage, misses
from tightbound.families import Gaussian, Mixture
from tightbound.targets import zoo

pytestmark = pytest.mark.usefixtures("as_a_user")


class Claimed:
    def __init__(self, q, target):
        self.q, self.target = q, target


def case(q, target, key=0, draws=4000):
    return Case(q, fresh_draws(Claimed(q, target), key, draws), key)


def found(q, target, key=0):
    return coverage(case(q, target, key))


def standard(dim):
    return tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(dim)})


@pytest.mark.parametrize("dim", [1, 3, 10])
def test_the_posterior_itself_is_covered(dim):
    finding = found(Gaussian.full(dim), standard(dim))
    assert (finding.verdict, finding.value) == (Verdict.PASS, 0.0)
    truth, error = 0.5 * dim * np.log(2 * np.pi), finding.detail.log_evidence_stderr
    assert finding.detail.log_evidence == pytest.approx(truth, abs=4 * error)


def test_draws_of_another_q_show_what_is_missed():
    """Half of two modes is missed by a Gaussian on one.

    Nothing by the mixture, nor by a Gaussian that fits.
    """
    known = zoo.two_modes(2, separation=8.0)
    one = Gaussian.from_root(np.array([-4.0, 0.0]), np.eye(2))
    both = Mixture([one, Gaussian.from_root(np.array([4.0, 0.0]), np.eye(2))], np.zeros(2))
    of_one, of_both = (fresh_draws(Claimed(q, known.target), 0, 2000) for q in (one, both))
    assert misses(one, of_one, seen=of_both)
    assert not misses(both, of_both, seen=of_one)
    assert not misses(one, of_one, seen=of_one)


@pytest.mark.parametrize("key", range(3))
def test_the_share_beside_a_q_that_is_too_narrow(key):
    """One dimension, target N(0, 1), q N(0, .3^2).

    The share with p / (q Z) > 20, Z q's own (also Monte Carlo) evidence.
    """
    q = Gaussian.full(1).moved([0.0], 0.3)
    narrow = case(q, standard(1), key)
    finding = coverage(narrow)
    assert finding.verdict is Verdict.CAUTION
    log_z = np.log(np.mean(np.exp(narrow.sample.log_w)))
    x = np.linspace(0, 10, 100_001)
    outside = -0.5 * x**2 - st.norm.logpdf(x, 0, 0.3) - log_z > np.log(20.0)
    exact = 2 * (1 - st.norm.cdf(x[np.argmax(outside)]))
    assert finding.value == pytest.approx(exact, abs=4 * finding.stderr + 0.01)
    assert f"found {finding.value:.0%} of the posterior" in finding.why


def test_a_lobe_beside_q_is_measured():
    """A mode three sds away with 30 % of the mass, missed by q.

    About its mass, less the part that q still covers.
    """
    known = zoo.two_modes(2, separation=6.0, weight=0.3)
    at = Gaussian.from_root(np.array([-3.0, 0.0]), np.eye(2))
    shares = [found(q, known.target).value for q in (at, at.moved([3.0, 0.0]))]
    assert min(abs(s - 0.3) for s in shares) < 0.1 or min(abs(s - 0.7) for s in shares) < 0.15


def test_it_says_so_where_the_wider_law_knows_nothing():
    """200 dimensions, q half as wide as the posterior in a few of them.

    Hardly a draw of the wider law is effective.
    """
    sd = np.ones(200)
    q = Gaussian.full(200).moved(np.zeros(200), 2.0 * sd)
    finding = found(q, standard(200))
    assert finding.verdict is Verdict.PASS
    assert "says nothing" in finding.why or "Too many dimensions" in finding.why


def test_too_many_dimensions_are_declined():
    q = Gaussian.diagonal(2100)
    finding = coverage(case(q, standard(2100), draws=200))
    assert finding.verdict is Verdict.PASS
    assert "Too many dimensions" in finding.why


def test_the_wider_law_integrates_to_one():
    scales = np.array([1.0, 1.7, 3.0])
    x = np.linspace(-30, 30, 20_001)
    assert si.simpson(np.exp(_log_mixture(x[:, None], scales)), x=x) == pytest.approx(
        1.0, abs=1e-10
    )
    points = np.random.default_rng(0).standard_normal((5, 3))
    each = [st.multivariate_normal(np.zeros(3), s**2 * np.eye(3)).pdf(points) for s in scales]
    np.testing.assert_allclose(
        _log_mixture(points, scales), np.log(np.mean(each, axis=0)), rtol=1e-12
    )


def test_the_same_key_gives_the_same_finding():
    known = zoo.banana()
    q = Gaussian.full(2)
    assert str(found(q, known.target, 3)) == str(found(q, known.target, 3))


def test_one_arm_of_a_banana_is_not_covered():
    """q on the right arm only: good weights there, and half of the posterior elsewhere."""
    known = zoo.banana(curvature=1.0, scale=2.0)
    arm = Gaussian.from_root(np.array([2.0, 0.0]), np.array([[0.6, 0.0], [2.4, 1.0]]))
    finding = tb.check(Claimed(arm, known.target), key=0)["coverage"]
    assert finding.verdict is Verdict.CAUTION
    assert finding.value > 0.2
