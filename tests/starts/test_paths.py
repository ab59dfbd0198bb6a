"""Where a fit starts.

Known modes and curvatures, the centred eight schools (which has no mode), what is said of no
start, and the broad start: it reaches the posterior of a centred hierarchical model, where paths up
the density collapse.
"""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import tightbound as tb
from tightbound._numerics import host_algebra, x64
from tightbound.plan.rungs import start as rung_zero
from tightbound.results import TargetError
from tightbound.starts.many_dimensions import find_start_large, hessian_diagonal
from tightbound.starts.paths import (
    broad_start,
    dispersed_points,
    explain_no_start,
    find_start,
    local_gaussians,
    local_roots,
)
from tightbound.targets import zoo
from tightbound.targets.batched import batched

pytestmark = pytest.mark.usefixtures("as_a_user")

MEAN, ROOT = np.array([1.0, -200.0]), np.array([[0.01, 0.0], [30.0, 10.0]])
COV = ROOT @ ROOT.T
PRECISION = np.linalg.inv(COV)
LOG_Z = np.log(2 * np.pi) + np.log(np.diag(ROOT)).sum()
DESIGN = np.random.default_rng(0).standard_normal((32, 2))


def gaussian(points):
    moved = points - MEAN
    return -0.5 * np.einsum("ni,ij,nj->n", moved, PRECISION, moved), -moved @ PRECISION


def test_a_gaussian_is_found_exactly():
    start = find_start(gaussian, dispersed_points(np.random.default_rng(1), 4, 2), DESIGN)[0]
    sd = np.sqrt(np.diag(COV))
    np.testing.assert_allclose((start.mean - MEAN) / sd, 0.0, atol=1e-4)
    np.testing.assert_allclose(start.root @ start.root.T, COV, rtol=1e-3)
    # log p - log q is constant: no spread. The ELBO's antithetic design has sample moments of its
    # own, hence none of log p
    assert start.spread < 1e-2


def test_the_elbo_of_a_local_gaussian():
    """At the exact posterior the ELBO over a design is log Z, plus (d - mean of |e|^2) / 2 of the
    design itself.
    """
    (local,) = local_gaussians(gaussian, MEAN[None], DESIGN, (1.0,))
    expected = LOG_Z + 0.5 * (2 - np.mean(np.sum(DESIGN**2, axis=1)))
    assert local.elbo == pytest.approx(expected, abs=1e-6)


def test_roots_are_those_of_the_inverse_curvature():
    (root,) = local_roots(gaussian, MEAN[None])
    np.testing.assert_allclose(root @ root.T, COV, rtol=1e-6)


def test_a_strong_correlation_is_tamed_unless_asked_for():
    """Curvature with correlation 0.9999.

    The smaller scaled eigenvalue is 1e-4, below the floor of a start.
    """
    curvature = np.array([[1.0, 0.9999], [0.9999, 1.0]])

    def ridge(z):
        return -0.5 * np.einsum("ni,ij,nj->n", z, curvature, z), -z @ curvature

    (tamed,), (exact,) = (
        local_roots(ridge, np.zeros((1, 2))),
        local_roots(ridge, np.zeros((1, 2)), floor=1e-9),
    )
    assert np.linalg.eigvalsh(tamed @ tamed.T).max() == pytest.approx(100.0, rel=1e-3)
    np.testing.assert_allclose(exact @ exact.T, np.linalg.inv(curvature), rtol=1e-4)


def test_roots_are_none_where_the_curvature_is_not_finite():
    assert local_roots(lambda z: (np.zeros(len(z)), np.full_like(z, np.nan)), np.zeros((2, 2))) == [
        None,
        None,
    ]


def test_two_modes_give_two_starts():
    known = zoo.two_modes(2, separation=10.0)
    found = rung_zero.starts_of(known.target, 0, 12)
    ends = {tuple(np.sign(s.mean[:1])) for s in found[:2]}
    assert {round(abs(s.mean[0])) for s in found[:2]} == {5}
    assert len(ends) <= 2
    assert found == sorted(found, key=lambda s: -s.elbo)


@pytest.mark.parametrize("key", range(5))
def test_the_centred_eight_schools_have_a_start_although_they_have_no_mode(key):
    """log p grows without bound as tau falls.

    The start is a point of the path, with an ELBO near the best Gaussian's.
    """
    known = zoo.eight_schools(centered=True)
    start = rung_zero.starts_of(known.target, key, 4)[0]
    best = tb.fit(known.target, solver=tb.solvers.NaturalGradient(), key=key)
    assert np.isfinite(start.elbo)
    assert start.elbo > best.elbo.value - 10.0
    log_tau = start.mean[list(known.target.coordinate_names).index("tau")]
    assert -3.0 < log_tau < 4.0, "not in the spike"


def test_dispersed_points_are_uniform():
    points = dispersed_points(np.random.default_rng(0), 20_000, 2)
    assert np.abs(points).max() <= 2.0
    np.testing.assert_allclose(points.mean(0), 0.0, atol=4 * np.sqrt(4 / 3 / 20_000))
    np.testing.assert_allclose(points.var(0), 4 / 3, rtol=0.03)


def test_the_plan_starts_at_the_mode_with_the_curvature_there():
    known = zoo.logistic_regression()
    chosen = rung_zero.gaussian(known.target, 0, None)
    values, scores = batched(known.target)(chosen.q.mean[None])
    assert np.isfinite(values[0])
    assert np.sqrt(np.mean((chosen.q.root.T @ scores[0]) ** 2)) < 1e-3, (
        "the whitened gradient at a mode"
    )
    assert chosen.q.scale.structure == "full"


def test_above_300_dimensions_it_is_low_rank_with_the_scales_of_the_target():
    dim = 400
    sd = np.exp(np.linspace(-3, 3, dim))
    target = tb.from_log_density(
        lambda p: -0.5 * jnp.sum(((p["x"] - 1.0) / sd) ** 2), {"x": np.zeros(dim)}
    )
    chosen = rung_zero.gaussian(target, 0, None)
    assert chosen.q.scale.structure == "low_rank"
    np.testing.assert_allclose((chosen.q.mean - 1.0) / sd, 0.0, atol=0.3)  # a start
    np.testing.assert_allclose(chosen.q.sd / sd, 1.0, atol=0.05)


def test_the_diagonal_of_the_curvature_is_found_by_probes():
    """Exact for a diagonal one.

    For another, the off-diagonal part is noise that eight probes average.
    """
    scale = np.array([1e-2, 1.0, 50.0])

    def separable(z):
        return -0.5 * np.sum((z / scale) ** 2, axis=1), -z / scale**2

    found = hessian_diagonal(separable, np.ones(3), 1e-3 * scale, np.random.default_rng(0))
    np.testing.assert_allclose(found, -1 / scale**2, rtol=1e-6)


def test_a_large_start_is_none_where_nothing_is_finite():
    nowhere = lambda z: (np.full(len(z), np.nan), np.full_like(z, np.nan))  # noqa: E731
    assert find_start_large(nowhere, np.zeros((3, 2)), np.random.default_rng(0)) is None
    assert find_start(nowhere, np.zeros((3, 2)), DESIGN) == []


POINTS = dispersed_points(np.random.default_rng(0), 4, 2)
SENTENCES = {
    "everywhere NaN": (
        lambda z: np.full(len(z), np.nan),
        ["is NaN at all 4 start points", "Check the data for NaN"],
    ),
    "everywhere -inf": (lambda z: np.full(len(z), -np.inf), ["is -inf or NaN at all 4"]),
    "one decides": (
        lambda z: np.where(z[:, 1] > 50, 0.0, np.nan),
        ["finite when `b` is moved to 100", "need a `support`"],
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_what_is_said_where_there_is_no_start(name):
    values, words = SENTENCES[name]
    error = explain_no_start(lambda z: (values(z), np.zeros_like(z)), POINTS, ("a", "b"))
    assert isinstance(error, TargetError)
    for word in words:
        assert word in str(error)
    assert ("It becomes finite" in str(error)) == (name == "one decides")


def test_a_gradient_that_is_nowhere_finite_is_named():
    def evaluate(z):
        return np.zeros(len(z)), np.stack([np.zeros(len(z)), np.full(len(z), np.nan)], axis=1)

    error = explain_no_start(evaluate, POINTS, ("a", "b"))
    assert "its gradient is not, in: b." in str(error)


# -- the broad start

GROUPS, EACH = 30, 5
RNG = np.random.default_rng(3)
Y = RNG.normal(240.0, 14.0, GROUPS)[:, None] + RNG.normal(0.0, 6.0, (GROUPS, EACH))


def normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd)


def one_way(p):
    """y_ij ~ N(a_j, s), a_j ~ N(m, t), m ~ N(0, 300), s and t half-normal with scale 50."""
    prior = normal(p["m"], 0.0, 300.0) - 0.5 * (p["s"] ** 2 + p["t"] ** 2) / 50.0**2
    return (
        prior
        + jnp.sum(normal(p["a"], p["m"], p["t"]))
        + jnp.sum(normal(Y, p["a"][:, None], p["s"]))
    )


def exact_moments():
    """Mean and sd of log s and log t: a and m are integrated by hand, the rest on a grid."""
    log_s, log_t = np.linspace(1.4, 2.2, 121), np.linspace(2.0, 3.4, 121)
    logs = np.empty((121, 121))
    for i, s in enumerate(np.exp(log_s)):
        within = -GROUPS * (EACH - 1) * np.log(s) - 0.5 * Y.var(axis=1).sum() * EACH / s**2
        for j, t in enumerate(np.exp(log_t)):
            cov = (t**2 + s**2 / EACH) * np.eye(GROUPS) + 300.0**2
            between = scipy.stats.multivariate_normal(np.zeros(GROUPS), cov).logpdf(Y.mean(axis=1))
            logs[i, j] = within + between - 0.5 * (s**2 + t**2) / 50.0**2 + log_s[i] + log_t[j]
    mass = np.exp(logs - logs.max())
    mass /= mass.sum()
    out = {}
    for name, values, weights in (("s", log_s, mass.sum(axis=1)), ("t", log_t, mass.sum(axis=0))):
        mean = float(values @ weights)
        out[name] = (mean, float(np.sqrt((values - mean) ** 2 @ weights)))
    return out


@pytest.fixture(scope="module")
def target():
    example = {"a": np.zeros(GROUPS), "m": 0.0, "s": 1.0, "t": 1.0}
    return tb.from_log_density(one_way, example, support={"s": "positive", "t": "positive"})


@pytest.mark.parametrize("key", [0, 1])
def test_the_broad_start_reaches_a_hierarchical_posterior_that_is_hundreds_away(target, key):
    with x64(), host_algebra():
        found = broad_start(target, key)
    names, sd = target.coordinate_names, np.sqrt(np.sum(found.root**2, axis=1))
    for name, (mean, exact_sd) in exact_moments().items():
        j = names.index(name)
        assert found.mean[j] == pytest.approx(mean, abs=0.3 * exact_sd)
        assert sd[j] == pytest.approx(exact_sd, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("key", range(3))
def test_the_default_fit_starts_at_the_broad_start(target, key):
    fit = tb.fit(target, key=key)
    assert fit.certificate.verdict == "pass"
    draws = fit.sample(0, 20_000, corrected=True)
    for name, (mean, exact_sd) in exact_moments().items():
        assert np.log(draws[name]).mean() == pytest.approx(
            mean, abs=0.06 * exact_sd
        )  # tol, and Monte Carlo error of .007 sd
        assert np.log(draws[name]).std() == pytest.approx(exact_sd, rel=0.06)


def test_the_broad_start_is_the_posterior_where_that_is_gaussian():
    known = zoo.gaussian(5, condition=1e4)
    with x64(), host_algebra():
        found = broad_start(known.target, 0)
    np.testing.assert_allclose(found.mean, known.mean["x"], atol=1e-6)
    assert found.elbo == pytest.approx(known.log_evidence, abs=1e-6)
    assert found.spread == pytest.approx(0.0, abs=1e-6)


def test_a_density_that_is_finite_nowhere_near_has_no_broad_start():
    target = tb.from_log_density(lambda p: jnp.where(p["x"] > 1e9, -p["x"], jnp.nan), {"x": 2e9})
    with x64(), host_algebra():
        assert broad_start(target, 0) is None


def test_the_check_finds_a_collapsed_q_by_this_search_alone(target, monkeypatch):
    """q where t has collapsed to .1, a hundred nats below.

    The ends of paths up the density are kept from the check.
    """
    monkeypatch.setattr(
        sys.modules["tightbound.certify.findings.optima"], "_local_rivals", lambda *_: []
    )
    names = target.coordinate_names
    z = np.array(
        [np.log(15.0) if n == "s" else np.log(0.1) if n == "t" else Y.mean() for n in names]
    )
    sd = np.array(
        [
            0.06 if n == "s" else 0.2 if n == "t" else 0.1 if n.startswith("a") else 1.2
            for n in names
        ]
    )

    class Collapsed:
        q = tb.families.Gaussian.full(len(names)).moved(z, sd)

    Collapsed.target = target
    found = tb.check(Collapsed, key=0)["optima"]
    assert found.verdict == "fail"
    assert "q sits on the wrong one" in found.why
