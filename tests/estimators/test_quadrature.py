"""Quadrature: exact for polynomials of its degree, along projections, and what it refuses."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tightbound._numerics import to_device
from tightbound.estimators import Quadrature
from tightbound.families import Gaussian, Mixture
from tightbound.objectives import (
    ELBO,
    IWELBO,
    AbstractObjective,
    ChiUpper,
    Fisher,
    Renyi,
    Source,
    WakePhase,
)
from tightbound.results import PairingError
from tightbound.targets import LinearSites
from tightbound.testing import GaussianTarget


class Power(GaussianTarget):
    """log p = -z^6."""

    def log_density(self, z):
        return -jnp.sum(z**6)


class Mean(AbstractObjective):
    drawn_from: ClassVar[Source] = Source.q

    def loss(self, draws):
        return draws.average(draws.log_p)


def value_and_gradient(estimator, objective, target, q):
    both = eqx.filter_value_and_grad(
        lambda q: estimator.surrogate(objective, target, q, None, jr.key(0))[0]
    )
    return eqx.filter_jit(both)(to_device(q))


def test_polynomials_of_degree_2k_minus_1_are_exact_and_others_are_not():
    """E z^6 of N(m, s^2) = m^6 + 15 m^4 s^2 + 45 m^2 s^4 + 15 s^6, with its gradient."""
    q, target = Gaussian.diagonal(1).moved(np.array([0.7]), 1.3), Power(Gaussian.full(1))

    def exact(q):
        m, v = q.mean[0], q.sd[0] ** 2
        return -(m**6 + 15 * m**4 * v + 45 * m**2 * v**2 + 15 * v**3)

    value, gradient = value_and_gradient(Quadrature(4), Mean(), target, q)
    expected, truth = eqx.filter_jit(eqx.filter_value_and_grad(exact))(to_device(q))
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    np.testing.assert_allclose(gradient.mean, truth.mean, rtol=1e-12)
    np.testing.assert_allclose(gradient.scale.log_sd, truth.scale.log_sd, rtol=1e-12)
    assert abs(value_and_gradient(Quadrature(3), Mean(), target, q)[0] - expected) > 1.0


@pytest.mark.parametrize(
    "objective", [ELBO(), Renyi(0.5), ChiUpper(1.5), WakePhase(), Fisher()], ids=repr
)
def test_every_objective_of_single_draws_equals_its_closed_form(objective):
    target = GaussianTarget(
        Gaussian.from_root(np.array([0.3, -0.2]), np.array([[1.0, 0.0], [0.4, 0.8]])), 1.1
    )
    q = Gaussian.full(2)
    value, gradient = value_and_gradient(Quadrature(40), objective, target, q)
    expected, truth = eqx.filter_jit(
        eqx.filter_value_and_grad(lambda q: objective.exact(target, q))
    )(to_device(q))
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    for mine, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-7, atol=1e-10)


def logistic(rows, dim):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((rows, dim))
    return LinearSites(
        x, lambda s, y: jax.nn.log_sigmoid((2.0 * y - 1.0) * s), (x[:, 0] > 0) * 1.0, 0.5, 4.0
    )


def test_projections_give_the_same_as_the_tensor_rule():
    """Logistic regression in the plane: nodes along x_i against a tensor rule of 40^2 nodes."""
    target, q = (
        logistic(6, 2),
        Gaussian.from_root(np.array([0.2, -0.1]), np.array([[0.8, 0.0], [0.3, 0.5]])),
    )
    value, gradient = value_and_gradient(Quadrature(40), ELBO(), target, q)

    class Plain(GaussianTarget):
        def log_density(self, z):
            return target.log_density(z)

    expected, truth = value_and_gradient(Quadrature(40), ELBO(), Plain(Gaussian.full(2)), q)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    for mine, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-7, atol=1e-9)


def test_projections_serve_any_dimension_and_low_rank_scales():
    """Gaussian sites in 50 dimensions: the ELBO in closed form."""
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((20, 50)), rng.standard_normal(20)
    target = LinearSites(x, lambda s, y: -0.5 * (y - s) ** 2, y, 0.0, 2.0)
    q = Gaussian.low_rank(50, 2)
    Quadrature(3).check(target, q, ELBO())
    value, _ = value_and_gradient(Quadrature(3), ELBO(), target, q)
    cov = np.asarray(q.cov)
    expected = -0.5 * np.sum((y - x @ q.mean) ** 2 + np.einsum("id,de,ie->i", x, cov, x))
    expected += (
        -0.5 * (np.trace(cov) + q.mean @ q.mean) / 2 - 25 * np.log(2 * np.pi * 2) + q.entropy()
    )
    np.testing.assert_allclose(value, -expected, rtol=1e-12)


PAIRINGS = {
    "too many points": (
        Quadrature(20),
        Gaussian.full(5),
        ELBO(),
        "3.2e.06 points, more than 50,000; pass a smaller `k`",
    ),
    "too many draws": (Quadrature(20), Gaussian.full(2), IWELBO(2), "1.6e.05 points"),
    "a mixture": (Quadrature(20), Mixture([Gaussian.full(2)]), ELBO(), "Mixture"),
}


@pytest.mark.parametrize(
    ("estimator", "q", "objective", "sentence"), PAIRINGS.values(), ids=PAIRINGS
)
def test_wrong_pairings_say_what_fits(estimator, q, objective, sentence):
    with pytest.raises(PairingError, match=sentence):
        estimator.check(GaussianTarget(Gaussian.full(q.dim)), q, objective)


def test_k_is_positive():
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        Quadrature(0)
