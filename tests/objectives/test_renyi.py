"""Renyi bounds against quadrature, enumeration and their limits."""

import jax.numpy as jnp
import numpy as np
import pytest

from tightbound.estimators.gauss_hermite import tensor_rule
from tightbound.families import Diagonal, Full, Gaussian
from tightbound.objectives import ELBO, IWELBO, VRIWAE, ChiUpper, Draws, Fisher, Renyi, WakePhase
from tightbound.testing import GaussianTarget

TARGET = GaussianTarget(Gaussian(np.array([0.4]), Diagonal(np.array([-0.3]))), 0.8)
NARROW = Gaussian(np.array([-0.2]), Diagonal(np.array([-0.4])))
WIDE = Gaussian(np.array([-0.2]), Diagonal(np.array([0.2])))
DRAWS = Draws(jnp.array([0.3, -2.0, 7.0, 1.0]), jnp.array([1.0, 0.5, -1.0, 0.0]))


def at_nodes(q, count=200):
    """The draws of a Gauss-Hermite rule under q, with their weights."""
    rule = tensor_rule(count, 1)
    z = q.mean + q.sd * rule.nodes
    score_p, score_q = (-(z - g.mean) / g.sd**2 for g in (TARGET.gaussian, q))
    log_p = TARGET.gaussian.log_prob_on_host(z) + TARGET.log_evidence
    values = (log_p, q.log_prob_on_host(z), score_p, score_q, np.log(rule.weights))
    return Draws(*(jnp.asarray(value) for value in values))


OBJECTIVES = (ELBO(), Renyi(0.5), Renyi(1.2), ChiUpper(), ChiUpper(1.5), WakePhase(), Fisher())


@pytest.mark.parametrize("q", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_exact_is_the_loss_by_quadrature(objective, q):
    np.testing.assert_allclose(objective.exact(TARGET, q), objective.loss(at_nodes(q)), rtol=1e-6)


def test_exact_in_several_dimensions_sums_over_independent_coordinates():
    """A rotation leaves every divergence but changes no coordinate's marginal alone."""
    angle = np.array([[0.8, -0.6], [0.6, 0.8]])
    p, q = (
        Gaussian(np.array([0.4, 1.0]), Diagonal(np.log(np.array(sd))))
        for sd in ([1.0, 2.0], [0.8, 2.5])
    )
    turned = [
        Gaussian(angle @ g.mean, Full.from_covariance(angle @ np.diag(g.sd**2) @ angle.T))
        for g in (p, q)
    ]
    parts = [
        [Gaussian(g.mean[i : i + 1], Diagonal(np.log(g.sd[i : i + 1]))) for i in range(2)]
        for g in (p, q)
    ]
    for objective in (Renyi(0.5), ChiUpper(), Fisher(), WakePhase()):
        by_part = sum(objective.exact(GaussianTarget(a), b) for a, b in zip(*parts, strict=True))
        np.testing.assert_allclose(
            objective.exact(GaussianTarget(turned[0]), turned[1]), by_part, rtol=1e-12
        )


def test_the_chi_bound_of_a_gaussian_that_is_too_narrow_is_infinite():
    """order / var_p <= (order - 1) / var_q: at order 2, q narrower than p by more than sqrt 2."""
    p = GaussianTarget(Gaussian.diagonal(1))
    assert ChiUpper().exact(p, Gaussian(np.zeros(1), Diagonal(np.log(np.array([0.70]))))) == np.inf
    assert np.isfinite(
        ChiUpper().exact(p, Gaussian(np.zeros(1), Diagonal(np.log(np.array([0.72])))))
    )


def test_limits_are_the_elbo_and_the_importance_weighted_bound():
    np.testing.assert_allclose(Renyi(1 + 1e-7).loss(DRAWS), ELBO().loss(DRAWS), rtol=1e-5)
    np.testing.assert_allclose(
        Renyi(1 + 1e-7).exact(TARGET, WIDE), ELBO().exact(TARGET, WIDE), rtol=1e-5
    )
    np.testing.assert_allclose(VRIWAE(0.0, 2).loss(DRAWS), IWELBO(2).loss(DRAWS), rtol=1e-14)
    np.testing.assert_allclose(VRIWAE(0.4, 1).loss(DRAWS), ELBO().loss(DRAWS), rtol=1e-14)
    np.testing.assert_allclose(VRIWAE(0.4, 4).loss(DRAWS), Renyi(0.4).loss(DRAWS), rtol=1e-14)


def test_by_hand():
    log_w = jnp.log(jnp.array([1.0, 3.0]))
    draws = Draws(log_w, jnp.zeros(2))
    np.testing.assert_allclose(ChiUpper().loss(draws), 0.5 * np.log(5.0), rtol=1e-14)  # (1 + 9) / 2
    np.testing.assert_allclose(Renyi(2.0).loss(draws), np.log((1 + 1 / 3) / 2), rtol=1e-14)
    np.testing.assert_allclose(WakePhase().loss(draws), 0.75 * np.log(3.0), rtol=1e-14)


BAD = {
    "an order below 0": (lambda: Renyi(-1.0), "use ChiUpper"),
    "the ELBO": (lambda: Renyi(1.0), "use ELBO"),
    "the ELBO of k": (lambda: VRIWAE(1.0, 4), "alpha = 1 is ELBO"),
    "no draws": (lambda: VRIWAE(0.5, 0), "`k` must be at least 1"),
    "no upper bound": (lambda: ChiUpper(1.0), "`order` must be above 1"),
    "half a group": (lambda: VRIWAE(0.5, 3).loss(DRAWS), "multiple of 3, got 4"),
}


@pytest.mark.parametrize(("make", "sentence"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
