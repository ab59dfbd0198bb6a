"""Findings against known truth.

Each one passes where it should and, its negative control, does not where it should not.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.certify.certificate import Certificate
from tightbound.certify.finding import Finding, Verdict
from tightbound.certify.fitted import Pair
from tightbound.families.gaussian import Gaussian
from tightbound.targets import zoo

pytestmark = pytest.mark.usefixtures("as_a_user")


STANDARD = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(3)})
LOG_Z = 1.5 * np.log(2 * np.pi)


def gaussian(mean=0.0, sd=1.0, dim=3):
    return Gaussian.from_root(np.full(dim, float(mean)), sd * np.eye(dim))


def test_the_exact_answer_passes_every_finding():
    certificate = tb.check(Pair(gaussian(), STANDARD), key=1)
    assert certificate.verdict == "pass"
    assert all(f.verdict is Verdict.PASS for f in certificate.values())
    assert certificate.elbo.value == pytest.approx(LOG_Z, abs=1e-12)
    lower, upper = certificate.log_evidence
    assert lower <= LOG_Z <= upper
    assert upper - lower < 1e-3


@pytest.mark.parametrize(
    ("wrong", "finding"),
    [
        (gaussian(mean=0.3), "converged"),
        (gaussian(sd=0.4), "khat"),
        (gaussian(sd=0.8), "moments"),
        (gaussian(mean=0.3), "moments"),
    ],
)
def test_a_wrong_answer_is_found_by_the_finding_that_looks_for_it(wrong, finding):
    certificate = tb.check(Pair(wrong, STANDARD), key=1)
    assert certificate[finding].verdict is not Verdict.PASS
    assert certificate.verdict != "pass"


def test_a_missing_mode_is_found_by_the_searches():
    known = zoo.two_modes(2, separation=10.0)
    one = Gaussian.from_root(np.array([-5.0, 0.0]), np.eye(2))
    certificate = tb.check(Pair(one, known.target), key=0)
    assert certificate["khat"].verdict is Verdict.PASS, (
        "weights cannot see a mode where q never draws"
    )
    assert certificate["optima"].verdict is not Verdict.PASS
    assert certificate["optima"].value == 1
    assert certificate.log_evidence[1] >= known.log_evidence, (
        "the rival's mass is in the upper bound"
    )


def test_sitting_on_the_lesser_mode_fails():
    known = zoo.two_modes(2, separation=6.0, weight=0.05)
    modes = [np.array([-3.0, 0.0]), np.array([3.0, 0.0])]
    verdicts = {
        tb.check(Pair(Gaussian.from_root(m, np.eye(2)), known.target), key=0)["optima"].verdict
        for m in modes
    }
    assert Verdict.FAIL in verdicts, "one of the two holds 5 % of the mass"


def test_the_verdict_is_the_worst_finding_and_names_are_keys():
    good = Finding("a", 0.0, 0.0, None, Verdict.PASS, "fine", "here")
    bad = dataclasses.replace(good, name="b", verdict=Verdict.FAIL, why="not fine")
    certificate = Certificate((good, bad), (0.0, 1.0), tb.Estimate(0.5, 0.1), 10, 0.1)
    assert certificate.verdict is Verdict.FAIL
    assert list(certificate) == ["a", "b"]
    assert "not fine" in certificate.explain()
    with pytest.raises(KeyError, match="there are: a, b"):
        certificate["c"]


def test_the_same_key_gives_the_same_certificate():
    known = zoo.logistic_regression()
    q = tb.fit(known.target, solver=tb.solvers.Laplace()).q
    first, second = (tb.check(Pair(q, known.target), key=5) for _ in range(2))
    assert str(first) == str(second)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`draws` must be at least 100"):
        tb.check(Pair(gaussian(), STANDARD), draws=10)
    with pytest.raises(ValueError, match="`starts` must be at least 16"):
        tb.check(Pair(gaussian(), STANDARD), starts=4)
