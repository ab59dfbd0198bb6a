"""The low-rank search on fixed draws: its loss and gradient against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tightbound.estimators.fixed_design import matched_noise
from tightbound.search.low_rank import Coordinates, fixed_draw_elbo

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
    at = Coordinates(rng.standard_normal(DIM), np.exp(0.5 * rng.standard_normal(DIM)), RANK)
    half = matched_noise(rng, 16, DIM, RANK)
    x = 0.4 * rng.standard_normal(2 * DIM + DIM * RANK)
    return at, x, np.concatenate([half, -half])


def elbo(x, at, noise):
    """The same ELBO for autodiff: entropy from the determinant of the covariance."""
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


def test_search_variables_round_trip(problem):
    at, x, _ = problem
    np.testing.assert_allclose(at.join(*at.split(x)), x, rtol=1e-12)
