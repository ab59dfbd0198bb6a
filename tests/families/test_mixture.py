"""Mixtures against SciPy: density, draws in the right shares, gradients of the logits, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st

from tightbound._numerics import to_device
from tightbound.estimators import Pathwise
from tightbound.families import Gaussian, Mixture, NestedGaussian
from tightbound.objectives import ELBO
from tightbound.results import PairingError
from tightbound.testing import GaussianTarget

LOGITS = np.array([0.0, 1.0, -1.0])
MEANS, SDS = np.array([-5.0, 0.0, 4.0]), np.array([0.5, 1.0, 2.0])
WEIGHTS = sp.softmax(LOGITS)


def line():
    return Mixture(
        [Gaussian.full(1).moved([m], s) for m, s in zip(MEANS, SDS, strict=True)], LOGITS
    )


def cdf(x):
    return st.norm.cdf((np.asarray(x)[:, None] - MEANS) / SDS) @ WEIGHTS


def test_density_and_weights():
    q = line()
    np.testing.assert_allclose(q.weights, WEIGHTS, rtol=1e-14)
    x = np.linspace(-20, 20, 101)
    expected = sp.logsumexp(st.norm.logpdf(x[:, None], MEANS, SDS), b=WEIGHTS, axis=1)
    np.testing.assert_allclose(q.log_prob_on_host(x[:, None]), expected, rtol=1e-12)
    np.testing.assert_allclose(q.log_prob(x[:, None]), expected, rtol=1e-12)


def test_it_integrates_to_one():
    x = np.linspace(-30, 30, 60_001)
    assert np.trapezoid(np.exp(line().log_prob_on_host(x[:, None])), x) == pytest.approx(
        1.0, abs=1e-9
    )


@pytest.mark.parametrize("how", ["draw", "sample"])
def test_draws_follow_it(how):
    q = line()
    if how == "draw":
        z, log_q = q.draw(4000, 2)
        np.testing.assert_allclose(log_q, q.log_prob(z), rtol=1e-10)
        z = np.random.default_rng(0).permutation(z)[:2000]  # without most of the antithetic pairs
    else:
        z = np.asarray(q.sample(2, shape=(4000,)))
    assert st.kstest(cdf(z[:, 0]), "uniform").pvalue > 1e-3


def test_each_component_gives_its_share_of_the_draws():
    z, _ = Mixture([Gaussian.full(1).moved([100.0 * k]) for k in range(3)], LOGITS).draw(1001, 3)
    counts = np.bincount(np.round(z[:, 0] / 100.0).astype(int), minlength=3)
    assert counts.sum() == 1001
    np.testing.assert_allclose(counts, 1001 * WEIGHTS, atol=1.5)


def test_a_component_without_weight_gives_no_draws():
    z, log_q = Mixture(
        [Gaussian.full(1), Gaussian.full(1).moved([50.0])], np.array([0.0, -800.0])
    ).draw(100, 0)
    assert z.max() < 10
    np.testing.assert_allclose(log_q, st.norm.logpdf(z[:, 0]), rtol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_draws(count):
    z, log_q = line().draw(count, 0)
    assert z.shape == (count, 1)
    assert log_q.shape == (count,)


def test_families_can_be_mixed_and_nested():
    knots = np.linspace(-4.0, 4.0, 17)
    nested = NestedGaussian.through(
        0, knots, -0.5 * knots**2, np.zeros((17, 1)), np.exp(0.2 * knots)[:, None, None]
    )
    q = Mixture([nested, Mixture([Gaussian.full(2), Gaussian.diagonal(2).moved([5.0, 0.0])])])
    z, log_q = q.draw(1000, 1)
    np.testing.assert_allclose(log_q, q.log_prob(z), rtol=1e-8)
    expected = np.logaddexp(
        np.log(0.5) + nested.log_prob_on_host(z),
        np.log(0.5) + q.components[1].log_prob_on_host(z),
    )
    np.testing.assert_allclose(log_q, expected, rtol=1e-10)
    assert np.mean(z[:, 0] > 2.5) == pytest.approx(0.25, abs=0.03)


def test_the_gradient_in_the_logits_is_responsibility_minus_weight():
    q, z = to_device(line()), jnp.array([0.7])
    gradient = jax.grad(lambda logits: Mixture(q.components, logits)._log_prob(z))(q.logits)
    each = st.norm.pdf(0.7, MEANS, SDS) * WEIGHTS
    np.testing.assert_allclose(gradient, each / each.sum() - WEIGHTS, rtol=1e-10)


def test_equal_weights_by_default():
    np.testing.assert_array_equal(Mixture([Gaussian.full(2)] * 4).weights, 0.25)


def test_errors():
    with pytest.raises(ValueError, match="`components` is empty"):
        Mixture([])
    with pytest.raises(ValueError, match=r"`components` differ in dimension: \[2, 3\]"):
        Mixture([Gaussian.full(2), Gaussian.full(3)])
    with pytest.raises(ValueError, match=r"`logits` must have shape \[2\], got \(3,\)"):
        Mixture([Gaussian.full(2)] * 2, np.zeros(3))


def test_pathwise_estimators_refuse_it():
    with pytest.raises(PairingError, match="Mixture"):
        Pathwise(8).check(GaussianTarget(Gaussian.full(1)), line(), ELBO())
