"""Expectation propagation.

Exact where it must be, close to the exact posterior elsewhere, honest when it fails.
"""

import dataclasses

import jax
import numpy as np
import pytest

import tightbound as tb
from tightbound._numerics import host_algebra, scoped
from tightbound.families import Gaussian
from tightbound.loop import run
from tightbound.objectives import ELBO
from tightbound.results import PairingError, Result
from tightbound.solvers import EP
from tightbound.solvers.ep import EPState, ep_log_evidence
from tightbound.targets import Clutter, LinearSites
from tightbound.testing import GaussianTarget, check_solver

RNG = np.random.default_rng(11)
A, Y = RNG.standard_normal((15, 3)), RNG.standard_normal(15)
N5 = [-3.6048, 1.1717, 2.9157, 0.3442, 2.2250]
N10 = [3.7161, 1.8442, 1.5167, -1.7605, 1.7936, -2.7840, 1.0120, 1.6812, 1.1503, 1.1121]


@scoped
def ep(target, **options):
    with host_algebra():
        return run(
            target,
            Gaussian.full(target.dim),
            None,
            EP(**options),
            key=0,
            tol=0.02,
            budget=tb.Budget(),
            max_steps=None,
        )


def contaminated(rng, n):
    """Half the points from N(2, 1), half from N(0, 10), as in Minka 2001, section 3.2.1."""
    inlier = rng.random(n) < 0.5
    return Clutter(np.where(inlier, 2 + rng.standard_normal(n), 10**0.5 * rng.standard_normal(n)))


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
def test_exact_for_gaussian_sites(parallel):
    """Linear regression with noise variance .5: moments and evidence in closed form."""
    target = LinearSites(A, lambda s, y: -((s - y) ** 2), Y)
    precision = 2 * A.T @ A + np.eye(3) / 100
    mean, cov = np.linalg.solve(precision, 2 * A.T @ Y), np.linalg.inv(precision)
    ran = check_solver(
        EP(parallel=parallel),
        target,
        Gaussian.full(3),
        mean=mean,
        sd=np.sqrt(np.diag(cov)),
        tol=1e-6,
    )
    total = 100 * A @ A.T + 0.5 * np.eye(15)
    log_z = (
        -0.5 * Y @ np.linalg.solve(total, Y)
        - 0.5 * np.linalg.slogdet(2 * np.pi * total)[1]
        + 7.5 * np.log(np.pi)
    )
    np.testing.assert_allclose(ran.q.cov, cov, rtol=1e-8, atol=1e-10)
    assert -ran.trace.loss[-1] == pytest.approx(log_z, abs=1e-8)


def test_both_orders_reach_the_paper_s_numbers():
    """KL(q || p) of EP as published for these points, to four digits."""
    for x, kl in ((N5, 0.1693), (N10, 0.003476)):
        target = Clutter(x)
        for parallel in (False, True):
            ran = ep(target, parallel=parallel)
            assert ran.result is Result.converged
            assert target.exact().kl(ran.q) == pytest.approx(kl, rel=1e-3)


def test_moments_and_evidence_on_random_data():
    """n = 20, 40 data sets.

    The reference has medians of .00097 (mean), .0155 (variance, relative), .0016 (log Z).
    """
    rng, rows, ended = np.random.default_rng(1020), [], []
    for _ in range(40):
        target = contaminated(rng, 20)
        exact, ran = target.exact(), ep(target)
        ended.append(ran.result)
        rows.append(
            (
                abs(ran.q.mean[0] - exact.mean[0]),
                abs(ran.q.cov[0, 0] / exact.cov[0, 0] - 1),
                abs(-ran.trace.loss[-1] - exact.log_evidence),
            )
        )
    mean_error, variance_error, evidence_error = np.median(rows, axis=0)
    assert mean_error < 2e-3
    assert variance_error < 0.03
    assert evidence_error < 2e-3
    assert np.mean([result is Result.converged for result in ended]) >= 0.9


def test_two_dimensions_with_weights():
    """n = 60 in the plane, a full noise covariance, points that count once or twice.

    Within 2 % of the grid.
    """
    rng = np.random.default_rng(5)
    vg = np.array([[1.0, 0.4], [0.4, 0.6]])
    inlier = rng.random(60) < 0.6
    x = np.where(
        inlier[:, None],
        rng.multivariate_normal([1.0, 0.0], vg, 60),
        4 * rng.standard_normal((60, 2)),
    )
    target = Clutter(x, vg=vg, vc=16.0, w=0.4, weights=rng.integers(1, 3, 60))
    exact = target.exact()
    for parallel in (False, True):
        ran = ep(target, parallel=parallel)
        assert ran.result is Result.converged
        np.testing.assert_allclose(
            ran.q.mean, exact.mean, atol=0.02 * np.sqrt(exact.cov.diagonal()).min()
        )
        np.testing.assert_allclose(ran.q.cov, exact.cov, atol=0.02 * exact.cov.max())
        assert -ran.trace.loss[-1] == pytest.approx(exact.log_evidence, abs=2e-3)


def test_a_point_that_counts_twice_is_two_points():
    once, twice = Clutter([*N10, N10[0]]), Clutter(N10, weights=[2.0] + [1.0] * 9)
    a, b = ep(once), ep(twice)
    np.testing.assert_allclose(a.q.mean, b.q.mean, atol=1e-4)
    assert a.trace.loss[-1] == pytest.approx(b.trace.loss[-1], abs=1e-6)


def tilted_moments(log_site, precision, shift, axis):
    """Mean and covariance of N(natural parameters) times exp(log_site) on a grid in the plane."""
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log_p = -0.5 * np.einsum("kd,de,ke->k", grid, precision, grid) + grid @ shift + log_site(grid)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = p @ grid
    return mean, (grid - mean).T @ ((grid - mean) * p[:, None])


def test_logistic_regression_is_at_the_fixed_point_and_near_the_posterior():
    """Every cavity times its site has the moments of q (1e-5, on a grid).

    q is within 3 % of an sd of the posterior.
    """
    rng = np.random.default_rng(2)
    a = rng.standard_normal((30, 2))
    y = np.where(rng.random(30) < 1 / (1 + np.exp(-a @ np.array([1.0, -0.5]))), 1.0, -1.0)
    target, solver = LinearSites(a, lambda s, y: jax.nn.log_sigmoid(s * y), y, prior_var=4.0), EP()
    q = Gaussian.full(2)
    state = solver.init(target, q, None, 0, 1e-4)
    while state.result is None:
        _, q, state, _ = solver.step(target, q, None, state, 0)
    assert state.result is Result.converged
    axis, log_site = np.linspace(-8, 8, 601), lambda z, i: -np.logaddexp(0, -y[i] * (z @ a[i]))
    for i in (0, 7, 29):
        cavity = state.precision - state.site_precisions[i], state.shift - state.site_shifts[i]
        mean, cov = tilted_moments(lambda z: log_site(z, i), *cavity, axis)  # noqa: B023
        np.testing.assert_allclose(mean, q.mean, atol=1e-5)
        np.testing.assert_allclose(cov, q.cov, atol=1e-5)
    mean, cov = tilted_moments(
        lambda z: sum(log_site(z, i) for i in range(30)), np.eye(2) / 4, np.zeros(2), axis
    )
    sd = np.sqrt(cov.diagonal())
    np.testing.assert_allclose((q.mean - mean) / sd, 0, atol=0.03)
    np.testing.assert_allclose(q.sd / sd, 1, atol=0.03)


def test_by_fit_and_certificate():
    fit = tb.fit(Clutter(N10), Gaussian.full(1), solver=EP())
    assert fit.result is Result.converged
    assert fit.certificate.log_evidence[0] == pytest.approx(-fit.trace.loss[-1], abs=0.02)


# -- results and refusals
# -------------------------------------------------------------------------------------------


def test_out_of_sweeps_is_said():
    assert ep(Clutter(N10), max_sweeps=2).result is Result.max_steps


def test_sites_that_cannot_be_matched_are_said():
    """Sites exp(-2.5 s^2) and exp(2.25 s^2).

    After a sweep the first one's cavity is improper, and nothing moves.
    """
    target = LinearSites(np.ones((2, 1)), lambda s, y: -0.5 * y * s**2, np.array([5.0, -4.5]))
    ran = ep(target)
    assert ran.result is Result.unmatched
    assert np.isnan(ran.trace.loss[-1])
    np.testing.assert_allclose(ran.q.cov, 1 / (0.01 + 5.0 - 4.5), rtol=1e-6)


def test_a_parallel_sweep_without_a_proper_cavity_leaves_q_alone():
    prior = np.array([[0.01]]), np.zeros(1)
    state = EPState(
        np.array([[1.0]]), np.zeros(1), np.array([[[5.0]]]), np.zeros((1, 1)), prior, 0.5, 0.02
    )
    _, q, new, info = EP(parallel=True).step(Clutter([0.0]), Gaussian.full(1), None, state, 0)
    assert new.skipped == 1
    assert new.result is Result.unmatched
    assert np.isnan(float(info.loss))
    np.testing.assert_allclose(q.cov, 1.0)


def test_conflicting_points_never_give_a_broken_q():
    """n = 5, where plain EP fails in half of the data sets: q is always finite, nothing raises."""
    rng = np.random.default_rng(1005)
    for _ in range(10):
        for parallel in (False, True):
            ran = ep(contaminated(rng, 5), parallel=parallel, max_sweeps=60)
            assert np.isfinite(ran.q.mean).all()
            assert ran.q.cov[0, 0] > 0
            assert ran.result in (Result.converged, Result.unmatched, Result.max_steps)


def test_evidence_is_nan_where_a_cavity_is_improper():
    target = Clutter(N10)
    state = EP().init(target, Gaussian.full(1), None, 0, 0.02)
    broken = dataclasses.replace(state, site_precisions=state.site_precisions + 1.0)
    assert np.isfinite(ep_log_evidence(target, state))
    assert np.isnan(ep_log_evidence(target, broken))


def test_pairings():
    with pytest.raises(PairingError, match="EP needs a target with the ability"):
        tb.fit(GaussianTarget(Gaussian.full(2)), Gaussian.full(2), solver=EP())
    with pytest.raises(PairingError, match="takes no objective"):
        tb.fit(Clutter(N5), Gaussian.full(1), ELBO(), EP())
    with pytest.raises(PairingError, match="full-rank"):
        tb.fit(Clutter(N5), Gaussian.diagonal(1), solver=EP())
    with pytest.raises(ValueError, match="damping"):
        EP(damping=0.0)
