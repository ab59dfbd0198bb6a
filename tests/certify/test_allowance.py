"""A check within a budget: it never uses more, and never passes what it did not examine."""

import contextlib
import functools

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.certify.certificate import cost_of_findings
from tightbound.certify.draws import Meter
from tightbound.certify.finding import REGISTRY, About, Finding, NotExamined, Verdict, register
from tightbound.certify.fitted import Pair
from tightbound.families import Empirical, Gaussian
from tightbound.targets import zoo
from tightbound.targets.batched import evaluations_of
from tightbound.targets.conjugate import GaussianMixture

pytestmark = pytest.mark.usefixtures("as_a_user")

ALLOWANCES = (0, 100, 1000, 10_000)


def standard(dim=3):
    return tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(dim)})


@functools.cache  # what is compiled for a target is compiled once
def exact():
    return Pair(Gaussian.full(3), standard())


@functools.cache
def one_of_two_modes():
    q = Gaussian.from_root(np.array([-5.0, 0.0]), np.eye(2))
    return Pair(q, zoo.two_modes(2, separation=10.0).target)


@functools.cache
def funnel():
    """Its searches take four thousand gradients, three times what they say they do."""
    target = zoo.eight_schools(centered=True).target
    return Pair(tb.fit(target, solver=tb.solvers.NaturalGradient()).q, target)


@functools.cache
def improper():
    target = tb.from_log_density(lambda p: -0.5 * p["a"] ** 2 + 0.0 * p["b"], {"a": 0.0, "b": 0.0})
    return Pair(Gaussian.full(2), target)


@functools.cache
def chains():
    draws = np.random.default_rng(0).standard_normal((4, 2500, 3))
    return Pair(Empirical(draws), standard())


@functools.cache
def factors():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-3, 1, (40, 2)), rng.normal(3, 1, (40, 2))])
    return tb.fit(GaussianMixture(x, 2), solver=tb.solvers.CoordinateAscent(), key=0)


CASES = [exact, one_of_two_modes, funnel, improper, chains, factors]


def overdrawn(used, allowance):
    """The bound of every budget of the library: a tenth above, or 512."""
    return used > allowance + max(allowance / 10, 512)


@pytest.mark.parametrize("allowance", ALLOWANCES)
@pytest.mark.parametrize("case", CASES)
def test_a_check_keeps_within_its_allowance(case, allowance):
    fitted = case()
    before = evaluations_of(fitted.target)
    certificate = tb.check(fitted, key=0, allowance=allowance)
    used = evaluations_of(fitted.target) - before
    assert certificate.evaluations == used, "it counts what it uses"
    assert not overdrawn(used, allowance)
    if certificate.detail(NotExamined) is not None:
        assert certificate.verdict != "pass"
        assert certificate["not examined"].about is About.BUDGET


@pytest.mark.parametrize("case", CASES)
def test_without_an_allowance_everything_is_as_it_was(case):
    fitted = case()
    free, ample = (tb.check(fitted, key=0, allowance=n) for n in (None, 10**6))
    assert str(free) == str(ample)
    assert free.evaluations == ample.evaluations
    assert "not examined" not in free


def test_what_is_left_out_is_named_and_never_passes():
    for allowance in (0, 100, 1000):
        certificate = tb.check(exact(), key=0, allowance=allowance)
        # that the posterior is one is looked into where something is doubted, if it can be paid
        names = certificate.detail(NotExamined).names
        assert names[:2] == ("coverage", "optima")
        assert names[2:] == (() if allowance == 1000 else ("proper",))
        said = f"Not examined: {', '.join(names)}: the budget is spent."
        assert said in certificate.explain()
        assert certificate.verdict == "caution"
        others = [f for f in certificate.values() if f.about is not About.BUDGET]
        assert {f.verdict for f in others} == {Verdict.PASS}, "and nothing else is doubted"


def test_draws_make_room_for_what_can_be_examined():
    """5,500 gradients are too few for 4,000 draws and the searches; fewer draws pass."""
    fitted = exact()
    allowance = 5500
    assert 4000 + cost_of_findings(fitted) > allowance
    certificate = tb.check(fitted, key=0, allowance=allowance)
    assert certificate.verdict == "pass"
    assert "not examined" not in certificate


def test_a_rival_is_found_within_a_budget_that_pays_for_the_searches():
    certificate = tb.check(one_of_two_modes(), key=0, allowance=10_000)
    assert certificate["optima"].verdict != "pass"
    assert len(certificate.rivals) == 1


@pytest.fixture
def glutton():
    """A finding that says it costs nothing, and evaluates 5,000 points."""
    before = list(REGISTRY)

    def find(case):
        case.sample.density(np.zeros((2500, 3)))
        case.sample.density(np.zeros((2500, 3)))
        return Finding("glutton", 0.0, 0.0, None, Verdict.PASS, "It ate.", "a test")

    register("glutton", place=95)(find)
    yield
    REGISTRY[:] = before


def test_a_finding_that_costs_more_than_it_says_is_stopped(glutton):
    certificate = tb.check(exact(), key=0, allowance=6000)
    assert "glutton" not in certificate
    assert "glutton" in certificate.detail(NotExamined).names
    assert certificate.verdict == "caution"
    assert certificate.evaluations <= 6000
    assert "glutton" in tb.check(exact(), key=0, allowance=20_000)


def test_the_bound_is_broken_where_nothing_is_metered(glutton, monkeypatch):
    """The negative control of the bound above."""
    monkeypatch.setattr(Meter, "rationed", lambda meter: contextlib.nullcontext())
    certificate = tb.check(exact(), key=0, allowance=1000)
    assert overdrawn(certificate.evaluations, 1000)
