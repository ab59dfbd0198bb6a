"""The search for other optima.

What it finds, how much it says it is worth, and what it does not call a rival.
"""

import numpy as np
import pytest

import tightbound as tb
from tightbound._numerics import host_algebra
from tightbound.certify.draws import fresh_draws
from tightbound.certify.finding import Case, Verdict
from tightbound.certify.findings.optima import _kl_to_standard, optima
from tightbound.certify.standards import Effort
from tightbound.families import Empirical, Gaussian, Mixture, kl
from tightbound.starts.paths import LocalGaussian
from tightbound.targets import zoo

pytestmark = pytest.mark.usefixtures("as_a_user")


class Claimed:
    """An approximation that somebody claims."""

    def __init__(self, q, target):
        self.q, self.target = q, target


def found(q, target, key=0, draws=2000, starts=32):
    sample = fresh_draws(Claimed(q, target), key, draws)
    with host_algebra():  # far from the posterior values overflow
        return optima(Case(q, sample, key, effort=Effort(starts=starts)))


def mode(position, sd=1.0):
    return Gaussian.from_root(np.array([position, 0.0]), sd * np.eye(2))


@pytest.mark.parametrize("key", range(4))
def test_one_mode_and_all_of_it(key):
    known = zoo.gaussian(3, condition=1e4)
    q = Gaussian.from_root(next(iter(known.mean.values())), np.linalg.cholesky(known.cov))
    finding = found(q, known.target, key)
    assert (finding.verdict, finding.value) == (Verdict.PASS, 0.0)
    assert finding.detail.rivals == ()
    assert finding.detail.missed == ()
    assert finding.detail.ends == ()
    assert finding.detail.starts == 33


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_a_rival_is_its_mean_root_and_evidence(weight):
    """Modes at -5 (mass 1 - w) and 5 (mass w): each a unit Gaussian whose evidence is its mass."""
    known = zoo.two_modes(2, separation=10.0, weight=weight)
    finding = found(mode(-5.0), known.target)
    other = found(mode(5.0), known.target)
    for one, place in ((finding, 5.0), (other, -5.0)):
        (rival,) = one.detail.rivals
        np.testing.assert_allclose(rival.mean, [place, 0.0], atol=0.05)
        np.testing.assert_allclose(one.detail.ends, [[place, 0.0]], atol=0.05)
        np.testing.assert_allclose(rival.root @ rival.root.T, np.eye(2), atol=0.1)
    masses = sorted(
        np.exp(one.detail.rivals[0].elbo - known.log_evidence) for one in (finding, other)
    )
    np.testing.assert_allclose(masses, sorted([weight, 1 - weight]), rtol=0.1)


def test_without_a_density_of_q_the_distance_from_its_draws_decides():
    """As for a chain: the same two modes, and none."""
    known = zoo.two_modes(2, separation=10.0)
    for q, count in ((mode(-5.0), 1.0), (Mixture([mode(-5.0), mode(5.0)], np.zeros(2)), 0.0)):
        sample = fresh_draws(Claimed(q, known.target), 0, 2000)
        chains = Empirical(sample.z[None])
        assert optima(Case(chains, sample, 0)).value == count


def test_an_end_on_a_bent_ridge_is_a_rival():
    """a b = 1 +- 0.1 has two branches. The curvature at (-1, -1) makes a Gaussian worth -42 nats.

    It must be refitted.
    """
    target = tb.from_log_density(
        lambda p: -0.5 * ((p["a"] * p["b"] - 1) / 0.1) ** 2 - (p["a"] ** 2 + p["b"] ** 2) / 18,
        {"a": 1.0, "b": 1.0},
    )
    branch = Gaussian.from_root(np.array([1.05, 1.0]), np.array([[0.23, 0.0], [-0.23, 0.1]]))
    finding = found(branch, target)
    assert finding.verdict is not Verdict.PASS
    assert any(np.all(rival.mean < 0) for rival in finding.detail.rivals)


def test_a_q_that_is_too_narrow_misses_no_mode():
    """Mean field at correlation 0.7: wrong, which is for other findings to say."""
    target = tb.from_log_density(
        lambda p: -0.5 * (p["x"] @ np.linalg.inv(np.array([[1.0, 0.7], [0.7, 1.0]])) @ p["x"]),
        {"x": np.zeros(2)},
    )
    assert (
        found(Gaussian.from_root(np.zeros(2), np.eye(2) * np.sqrt(1 - 0.49)), target).verdict
        is Verdict.PASS
    )


def test_the_verdict_depends_on_who_is_higher():
    known = zoo.two_modes(2, separation=10.0, weight=0.05)
    verdicts = {position: found(mode(position), known.target) for position in (-5.0, 5.0)}
    heavy, light = sorted(verdicts.values(), key=lambda f: f.verdict is Verdict.FAIL)
    assert heavy.verdict is Verdict.CAUTION
    assert light.verdict is Verdict.FAIL
    assert "q sits on the wrong one" in light.why
    (rival,) = light.detail.rivals
    assert rival.elbo - known.log_evidence == pytest.approx(np.log(0.95), abs=0.1)
    assert "2.9" in light.why, "log(.95 / .05) nats higher than where q sits"
    assert light.where[0] == known.target.coordinate_names[0]


def test_a_mode_with_next_to_no_mass_is_no_rival():
    # log of 1e-3 is -6.9: more than 4 nats below
    known = zoo.two_modes(2, separation=10.0, weight=1e-3)
    positions = {p: found(mode(p), known.target).value for p in (-5.0, 5.0)}
    assert sorted(positions.values()) == [0.0, 1.0]


def test_a_mode_that_q_covers_is_no_rival():
    known = zoo.two_modes(2, separation=4.0)
    wide = Gaussian.from_root(np.zeros(2), np.diag([2.3, 1.0]))
    assert found(wide, known.target).verdict is Verdict.PASS


def test_a_q_far_from_where_it_should_be_is_seen():
    known = zoo.gaussian(2)
    mean = next(iter(known.mean.values()))
    q = Gaussian.from_root(mean + 40.0, np.eye(2))
    assert found(q, known.target).verdict is Verdict.FAIL


def test_kl_to_standard_is_the_closed_form():
    g = LocalGaussian(np.array([1.0, 2.0]), np.array([[0.5, 0.0], [0.3, 2.0]]), 0.0, 0.0)
    exact = kl(Gaussian.from_root(g.mean, g.root), Gaussian.full(2))
    assert _kl_to_standard(g) == pytest.approx(float(exact), rel=1e-10)


def test_searches_are_counted_in_the_certificate():
    known = zoo.gaussian(2)
    certificate = tb.check(Claimed(mode(0.0), known.target), key=0)
    assert certificate.evaluations > 4000 + 33
