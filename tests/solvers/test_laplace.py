"""Laplace: mode and curvature in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.families import Gaussian
from tightbound.results import PairingError, Result
from tightbound.solvers import Laplace

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.mark.parametrize(("shape", "rate"), [(1.0, 1.0), (3.0, 0.01), (250.0, 4.0)])
def test_a_gamma_posterior_in_log_coordinates(shape, rate):
    """x ~ Gamma(a, b), z = log x.

    Log density a z - b exp(z), mode log(a / b), curvature there a, so sd a^-1/2.
    """
    target = tb.from_log_density(
        lambda p: (shape - 1) * jnp.log(p["x"]) - rate * p["x"],
        {"x": 1.0},
        support={"x": "positive"},
    )
    fit = tb.fit(target, Gaussian.full(1), solver=Laplace())
    assert fit.result is Result.converged
    np.testing.assert_allclose(fit.q.mean, np.log(shape / rate), atol=1e-5)
    np.testing.assert_allclose(fit.q.sd, shape**-0.5, rtol=1e-5)


@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.9999, 1 - 1e-6])
def test_exact_on_a_gaussian_however_correlated(correlation):
    scale = np.array([1e-3, 50.0])
    cov = np.array([[1.0, correlation], [correlation, 1.0]]) * np.outer(scale, scale)
    precision, mean = np.linalg.inv(cov), np.array([5.0, -300.0])
    target = tb.from_log_density(
        lambda p: -0.5 * (p["x"] - mean) @ precision @ (p["x"] - mean), {"x": np.zeros(2)}
    )
    fit = tb.fit(target, solver=Laplace())
    assert fit.result is Result.converged
    np.testing.assert_allclose((fit.q.mean - mean) / fit.q.sd, 0.0, atol=1e-3)
    np.testing.assert_allclose(fit.q.cov, cov, rtol=1e-4)


def test_exact_on_a_gaussian_however_scaled():
    sd = np.geomspace(1e-6, 1e6, 5)
    target = tb.from_log_density(lambda p: -0.5 * jnp.sum((p["z"] / sd) ** 2), {"z": np.zeros(5)})
    fit = tb.fit(target, solver=tb.solvers.Laplace())
    np.testing.assert_allclose(fit.q.sd, sd, rtol=1e-6)


def test_the_evidence_is_laplaces():
    """Its ELBO on a Gaussian is the log evidence.

    The loss of its trace is minus the log density at the mode.
    """
    target = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["x"] ** 2) + 7.0, {"x": np.zeros(3)})
    fit = tb.fit(target, Gaussian.full(3).moved([1.0, 2.0, 3.0]), solver=Laplace())
    assert fit.trace.loss[-1] == pytest.approx(-7.0, abs=1e-9)
    assert fit.elbo.value == pytest.approx(7.0 + 1.5 * np.log(2 * np.pi), abs=1e-6)


def test_evaluations_are_counted():
    target = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["x"] ** 2), {"x": np.zeros(3)})
    before = tb.targets.batched.batched(target).evaluations
    fit = tb.fit(target, Gaussian.full(3).moved([1.0, 2.0, 3.0]), solver=Laplace())
    assert (
        fit.evaluations
        <= tb.targets.batched.batched(target).evaluations - before
        <= fit.evaluations + 1
    )


def test_a_start_without_a_finite_density_is_nonfinite():
    target = tb.from_log_density(lambda p: jnp.log(p["x"]) - p["x"], {"x": 1.0})
    fit = tb.fit(target, Gaussian.full(1).moved([-1.0]), solver=Laplace(), throw=False)
    assert fit.result is Result.nonfinite


def test_a_kink_at_the_mode_stalls():
    """-|x| has no curvature anywhere, and no gradient that vanishes."""
    target = tb.from_log_density(lambda p: -jnp.abs(p["x"] - 0.3), {"x": 0.0})
    fit = tb.fit(target, Gaussian.full(1).moved([1.0]), solver=Laplace(), throw=False)
    assert not fit.result.ok
    np.testing.assert_allclose(fit.q.mean, 0.3, atol=0.05)


def test_refuses_what_it_cannot_return():
    target = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["x"] ** 2), {"x": np.zeros(3)})
    with pytest.raises(PairingError, match="full-rank Gaussian"):
        tb.fit(target, Gaussian.diagonal(3), solver=Laplace())
    with pytest.raises(PairingError, match="takes no objective, got ELBO"):
        tb.fit(target, Gaussian.full(3), tb.objectives.ELBO(), Laplace())
