"""The mean-field search.

Its derivatives by autodiff, and the known optimum at any scale and in many dimensions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.families import Gaussian, LowRank
from tightbound.results import Result
from tightbound.search.mean_field import MeanFieldSearch
from tightbound.solvers import FixedDraws
from tightbound.targets.batched import batched
from tightbound.testing import GaussianTarget


class Skewed(GaussianTarget):
    def log_density(self, z):
        return jnp.sum(z - jnp.exp(z)) + 0.3 * jnp.sin(z[0] * z[1])


@pytest.mark.slow
def test_gradient_and_hessian_products_equal_autodiff():
    target = Skewed(Gaussian.full(3))
    rng = np.random.default_rng(0)
    half, mean, sd = rng.standard_normal((5, 3)), rng.standard_normal(3), np.array([0.5, 1.0, 2.0])
    noise = np.concatenate([half, -half])
    search = MeanFieldSearch(batched(target), mean, sd, noise, 1e-3)

    def loss(x):
        points = mean[None, :] + sd[None, :] * (x[None, :3] + jnp.exp(x[None, 3:]) * noise)
        entropy = jnp.sum(x[3:]) + np.log(sd).sum() + 1.5 * (1 + np.log(2 * np.pi))
        return -jnp.mean(jax.vmap(target.log_density)(points)) - entropy

    assert search.loss == pytest.approx(float(loss(jnp.zeros(6))), rel=1e-12)
    np.testing.assert_allclose(search.at.gradient, jax.grad(loss)(jnp.zeros(6)), rtol=1e-9)
    v = rng.standard_normal(6)
    np.testing.assert_allclose(search._product(v), jax.hessian(loss)(jnp.zeros(6)) @ v, rtol=1e-8)


@pytest.mark.parametrize("condition", [1e6, 1e10])
def test_sds_at_any_condition_from_a_unit_start(condition):
    """The best mean-field Gaussian of a Gaussian has sds 1 / sqrt(diag of the precision), on
    matched draws exactly.
    """
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    scales = 10.0 ** rng.uniform(-2, 2, 6)
    posterior = Gaussian.from_root(
        50 * scales, scales[:, None] * (basis * np.geomspace(condition**-0.25, condition**0.25, 6))
    )
    fit = tb.fit(GaussianTarget(posterior), Gaussian.diagonal(6), solver=FixedDraws(), tol=0.01)
    sd = posterior.scale.precision_diagonal() ** -0.5
    assert fit.result is Result.converged
    np.testing.assert_allclose(fit.q.sd, sd, rtol=0.01)
    np.testing.assert_allclose((fit.q.mean - posterior.mean) / sd, 0.0, atol=0.02)
    assert np.all(np.diff(fit.trace.loss) <= 1e-9 * np.abs(fit.trace.loss[1:]))


def test_a_low_rank_fit_from_a_unit_start_finds_the_scales_first():
    rng = np.random.default_rng(2)
    scales = 10.0 ** rng.uniform(-3, 3, 40)
    posterior = Gaussian(
        10 * scales, LowRank(rng.standard_normal((40, 2)), np.zeros(40)).stretched(scales)
    )
    fit = tb.fit(GaussianTarget(posterior), Gaussian.low_rank(40, 2), solver=FixedDraws(), tol=0.01)
    assert fit.result is Result.converged
    np.testing.assert_allclose(fit.q.sd / posterior.sd, 1.0, atol=0.02)
    np.testing.assert_allclose((fit.q.mean - posterior.mean) / posterior.sd, 0.0, atol=0.05)


def test_ten_thousand_dimensions():
    """A chain with correlation .8 between neighbours: mean 1, precisions 1.64 but at the ends."""
    dim = 10_000

    def log_density(p):
        z = p["z"] - 1.0
        return -0.5 * jnp.sum((z[1:] - 0.8 * z[:-1]) ** 2) - 0.18 * z[0] ** 2

    target = tb.from_log_density(log_density, {"z": np.zeros(dim)})
    fit = tb.fit(target, Gaussian.diagonal(dim), solver=FixedDraws(), tol=0.05)
    precision = np.full(dim, 1.64)
    precision[[0, -1]] = 1.0
    assert fit.result is Result.converged
    np.testing.assert_allclose(fit.q.mean, 1.0, atol=0.05)
    # 32 pairs: an sd has an error of 1 / sqrt(2 * 32 * 2) = 9 % without matching; unit second
    # moments leave the neighbours'
    np.testing.assert_allclose(
        np.sqrt(np.mean((fit.q.sd * np.sqrt(precision) - 1) ** 2)), 0.0, atol=0.1
    )
