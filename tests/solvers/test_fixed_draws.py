"""Deterministic VI on fixed draws: the known optima of Gaussian targets, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.estimators.fixed_design import matched_noise
from tightbound.families import Gaussian, LowRank
from tightbound.results import PairingError, Result
from tightbound.solvers import FixedDraws
from tightbound.testing import GaussianTarget, check_solver

DIM, RANK = 5, 2


@pytest.mark.parametrize("pairs", [6, 9, 40])
def test_noise_without_room_for_all_columns_still_has_an_orthogonal_factor(pairs):
    noise = matched_noise(np.random.default_rng(1), pairs, 7, 2)
    np.testing.assert_allclose(noise[:, 7:].T @ noise[:, 7:] / pairs, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(noise[:, 7:].T @ noise[:, :7] / pairs, 0.0, atol=1e-12)
    np.testing.assert_allclose(np.mean(noise**2, axis=0), 1.0, rtol=1e-12)
    if pairs >= 9:
        np.testing.assert_allclose(noise.T @ noise / pairs, np.eye(9), atol=1e-12)


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
        FixedDraws(),
        GaussianTarget(posterior),
        Gaussian.diagonal(4),
        mean=posterior.mean,
        sd=1 / np.sqrt(precisions),
        monotone=True,
    )


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
