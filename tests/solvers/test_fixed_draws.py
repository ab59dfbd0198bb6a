"""Deterministic VI on fixed draws: its gradient, and the known optima of Gaussian targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.families import Gaussian, LowRank
from tightbound.results import PairingError, Result
from tightbound.solvers.fixed_draws import FixedDraws, _Coordinates, fixed_draw_elbo, matched_noise
from tightbound.testing import GaussianTarget, check_solver

DIM, RANK = 5, 2


def curved(z):
    """A log density without symmetry."""
    return (
        -jnp.sum(jnp.cosh(z) - 1.0)
        + 0.3 * z[0] * z[1] * jnp.exp(-0.5 * jnp.sum(z**2))
        + jnp.sum(jnp.sin(z))
    )


def evaluate(points):
    values, scores = jax.vmap(jax.value_and_grad(curved))(jnp.asarray(points))
    return np.asarray(values), np.asarray(scores)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    at = _Coordinates(rng.standard_normal(DIM), np.exp(0.5 * rng.standard_normal(DIM)), RANK)
    half = matched_noise(rng, 16, DIM, RANK)
    x = 0.4 * rng.standard_normal(2 * DIM + DIM * RANK)
    return at, x, np.concatenate([half, -half])


def elbo(x, at, noise):
    """The same ELBO, written with autodiff in mind: entropy from the determinant of the covariance."""
    a, b, v = jnp.split(x, [DIM, 2 * DIM])
    mean, diagonal, factor = (
        at.mean + at.sd * a,
        at.sd * jnp.exp(b),
        at.sd[:, None] * v.reshape(DIM, RANK),
    )
    points = mean[None, :] + diagonal[None, :] * noise[:, :DIM] + noise[:, DIM:] @ factor.T
    cov = jnp.diag(diagonal**2) + factor @ factor.T
    entropy = 0.5 * jnp.linalg.slogdet(cov)[1] + 0.5 * DIM * (1 + np.log(2 * np.pi))
    return jnp.mean(jax.vmap(curved)(points)) + entropy


def test_value_and_gradient_equal_autodiff(problem):
    at, x, noise = problem
    value, gradient, scores = fixed_draw_elbo(evaluate, at, x, noise)
    expected, slope = jax.value_and_grad(elbo)(jnp.asarray(x), at, jnp.asarray(noise))
    assert value == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-10)
    assert scores.shape == (len(noise), DIM)


def test_gradient_equals_difference_quotients(problem):
    at, x, noise = problem
    _, gradient, _ = fixed_draw_elbo(evaluate, at, x, noise)
    for j, step in enumerate(1e-5 * np.eye(len(x))):
        up, down = (fixed_draw_elbo(evaluate, at, x + s * step, noise)[0] for s in (1, -1))
        assert gradient[j] == pytest.approx((up - down) / 2e-5, abs=1e-6)


def test_a_point_that_is_not_finite_is_infinitely_bad(problem):
    at, x, noise = problem
    bad = fixed_draw_elbo(lambda z: (np.full(len(z), np.nan), z), at, x, noise)
    assert bad[0] == -np.inf
    wide = x.copy()
    wide[DIM] = 50.0
    assert fixed_draw_elbo(evaluate, at, wide, noise)[0] == -np.inf


@pytest.mark.parametrize("pairs", [6, 9, 40])
def test_noise_without_room_for_all_columns_still_has_an_orthogonal_factor(pairs):
    noise = matched_noise(np.random.default_rng(1), pairs, 7, 2)
    np.testing.assert_allclose(noise[:, 7:].T @ noise[:, 7:] / pairs, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(noise[:, 7:].T @ noise[:, :7] / pairs, 0.0, atol=1e-12)
    np.testing.assert_allclose(np.mean(noise**2, axis=0), 1.0, rtol=1e-12)
    if pairs >= 9:
        np.testing.assert_allclose(noise.T @ noise / pairs, np.eye(9), atol=1e-12)


def test_search_variables_round_trip(problem):
    at, x, _ = problem
    np.testing.assert_allclose(at.join(*at.split(x)), x, rtol=1e-12)


def low_rank_posterior():
    rng = np.random.default_rng(3)
    return Gaussian(
        rng.standard_normal(12) * 3,
        LowRank(rng.standard_normal((12, 2)), 0.3 * rng.standard_normal(12)),
    )


def test_exact_where_the_posterior_is_in_the_family():
    """32 pairs for 14 columns of noise.

    All second moments are matched, and a quadratic density has no sampling error.
    """
    posterior = low_rank_posterior()
    fit = tb.fit(GaussianTarget(posterior, 1.0), Gaussian.low_rank(12, 2), solver=FixedDraws())
    assert fit.result is Result.converged
    np.testing.assert_allclose((fit.q.mean - posterior.mean) / posterior.sd, 0.0, atol=0.01)
    np.testing.assert_allclose(fit.q.sd / posterior.sd, 1.0, atol=0.01)
    assert np.all(np.diff(fit.trace.loss) <= 1e-9), "one design, monotone"


def test_mean_field_passes_the_battery_of_solvers():
    posterior = Gaussian.from_root(np.arange(4.0), np.eye(4) + 0.3)
    precisions = np.diag(np.linalg.inv(posterior.cov))
    check_solver(
        FixedDraws(), GaussianTarget(posterior), Gaussian.diagonal(4), mean=posterior.mean, sd=1 / np.sqrt(precisions),
        monotone=True,
    )  # fmt: skip


def test_a_skewed_posterior_needs_more_draws_or_says_noisy():
    """z = log of a Gamma(1, 1) variable, eight times.

    The design's error is above tol with few draws.
    """

    class LogExponential(GaussianTarget):
        def log_density(self, z):
            return jnp.sum(z - jnp.exp(z))

    target = LogExponential(Gaussian.full(8))
    noisy = tb.fit(target, Gaussian.diagonal(8), solver=FixedDraws(max_pairs=32), tol=0.005)
    assert noisy.result is Result.noisy
    fit = tb.fit(target, Gaussian.diagonal(8), solver=FixedDraws(max_pairs=2048), tol=0.02)
    assert fit.result is Result.converged
    # the optimum of the ELBO in closed form: E exp(z) = exp(m + s^2 / 2) = 1 and s^2 = 1, so m =
    # -1/2
    np.testing.assert_allclose(fit.q.mean, -0.5, atol=4 * 0.02)
    np.testing.assert_allclose(fit.q.sd, 1.0, atol=0.08)


def test_a_start_without_a_finite_density_is_nonfinite():
    class Nowhere(GaussianTarget):
        def log_density(self, z):
            return jnp.nan * z[0]

    fit = tb.fit(Nowhere(Gaussian.full(2)), Gaussian.diagonal(2), solver=FixedDraws(), throw=False)
    assert fit.result is Result.nonfinite


def test_the_default_above_300_dimensions():
    dim = 310
    target = tb.from_log_density(
        lambda p: -0.5 * jnp.sum((p["x"] - 2.0) ** 2), {"x": np.zeros(dim)}
    )
    fit = tb.fit(target, solver=FixedDraws())
    assert fit.q.scale.structure == "low_rank"
    np.testing.assert_allclose(fit.q.mean, 2.0, atol=0.02)


def test_refuses_what_it_cannot_move():
    target = GaussianTarget(Gaussian.full(3))
    with pytest.raises(PairingError, match="diagonal or low-rank scale"):
        tb.fit(target, Gaussian.full(3), solver=FixedDraws())
    with pytest.raises(PairingError, match="maximises the ELBO and nothing else, got IWELBO"):
        tb.fit(target, Gaussian.diagonal(3), tb.objectives.IWELBO(2), FixedDraws())
