"""The Stein discrepancy.

Its kernel by autodiff, its null by replication, and what it sees and does not see.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tightbound.certify.draws import fresh_draws
from tightbound.certify.finding import Case, Verdict
from tightbound.certify.findings.stein import stein, stein_kernel
from tightbound.families import Gaussian
from tightbound.testing import GaussianTarget


def finding(q, target, key=0):
    sample = fresh_draws(SimpleNamespace(q=q, target=target), key, 2000)
    return stein(Case(q, sample, key))


def test_the_kernel_is_the_stein_operator_applied_twice():
    rng = np.random.default_rng(0)
    u, scores = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))

    def k(x, y):
        return (1.0 + jnp.sum((x - y) ** 2) / 3.0) ** -0.5

    def expected(x, y, s, t):
        cross = jnp.trace(jax.jacfwd(jax.grad(k, 1), 0)(x, y))
        return s @ t * k(x, y) + s @ jax.grad(k, 1)(x, y) + t @ jax.grad(k, 0)(x, y) + cross

    kernel = stein_kernel(u, scores)
    for i in range(4):
        for j in range(4):
            assert kernel[i, j] == pytest.approx(
                float(expected(*map(jnp.asarray, (u[i], u[j], scores[i], scores[j]))))
            )


def test_its_mean_under_the_target_is_zero():
    """E over both draws of p, by 2,000 independent pairs: 4 standard errors."""
    rng = np.random.default_rng(1)
    z = rng.standard_normal((2000, 2))
    kernel = stein_kernel(z, -z)
    one_each = kernel[np.arange(0, 2000, 2), np.arange(1, 2000, 2)]
    assert np.mean(one_each) == pytest.approx(0.0, abs=4 * one_each.std() / np.sqrt(1000))


@pytest.mark.slow
def test_p_values_are_uniform_where_q_is_the_posterior():
    """Eighty p-values: the share below .1 and .5 within 4 binomial standard errors."""
    root = np.array([[1.0, 0.0], [0.9, 0.3]])
    posterior = Gaussian.from_root(np.array([3.0, -1.0]), root)
    p = np.array(
        [finding(posterior, GaussianTarget(posterior), key).detail.p_value for key in range(80)]
    )
    for level in (0.1, 0.5):
        assert np.mean(p < level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 80))


def test_a_shift_is_seen_and_measured():
    posterior = Gaussian.from_root(np.zeros(5), np.diag([1e-3, 1.0, 1.0, 10.0, 1e3]))
    found = finding(posterior.moved(np.array([1e-3, 0, 0, 0, 0])), GaussianTarget(posterior))
    assert found.verdict is Verdict.CAUTION
    assert found.value == pytest.approx(0.8, abs=0.15), "one sd, in whatever units"
    assert found.detail.p_value < 0.01
    assert "contradict" in found.why
    small = finding(posterior.moved(np.array([1e-4, 0, 0, 0, 0])), GaussianTarget(posterior))
    assert small.verdict is Verdict.PASS


def test_a_q_that_is_much_too_wide_is_seen_in_many_dimensions():
    """Sds 1.6 times too wide in fifty dimensions, where all importance weights are worthless."""
    posterior = Gaussian.full(50)
    found = finding(posterior.moved(np.zeros(50), 1.6), GaussianTarget(posterior))
    assert found.verdict is Verdict.CAUTION


def test_it_is_blind_to_a_mode_without_draws():
    class TwoModes(GaussianTarget):
        def log_density(self, z):
            return jnp.logaddexp(-0.5 * jnp.sum(z**2), -0.5 * jnp.sum((z - 12.0) ** 2))

    found = finding(Gaussian.full(1), TwoModes(Gaussian.full(1)))
    assert found.verdict is Verdict.PASS


def test_nothing_is_said_of_too_few_draws():
    class Narrow(GaussianTarget):
        def log_density(self, z):
            return jnp.where(jnp.abs(z[0]) < 0.01, 0.0 * z[0], jnp.nan)

    found = finding(Gaussian.full(1), Narrow(Gaussian.full(1)))
    assert found.verdict is Verdict.PASS
    assert "Too few" in found.why
