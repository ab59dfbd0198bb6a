"""The nested Gaussian.

Mass one, exact draws, three ways to the same density, and the Gaussian as a special case.
"""

import numpy as np
import pytest
import scipy.integrate as si
import scipy.stats as st

from tightbound._numerics import to_device
from tightbound.families import NestedGaussian

KNOTS = np.linspace(-4.0, 4.0, 17)


def funnel(dim=2, coordinate=0):
    """t ~ N(0, 1), the rest N(t / 2, exp(t / 2)^2) with correlated noise."""
    shape = np.eye(dim - 1) + 0.4 * np.tril(np.ones((dim - 1, dim - 1)), -1)
    means = 0.5 * KNOTS[:, None] * np.ones(dim - 1)
    roots = np.exp(0.5 * KNOTS)[:, None, None] * shape
    return NestedGaussian.through(coordinate, KNOTS, -0.5 * KNOTS**2, means, roots)


@pytest.mark.parametrize("coordinate", [0, 1])
def test_the_density_integrates_to_one(coordinate):
    """Over t by Simpson's rule out to where exp(-t^2 / 2) is nothing, over the rest by
    Gauss-Hermite around its mean.
    """
    q = funnel(coordinate=coordinate)
    t = np.linspace(-12.0, 12.0, 4001)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    rest = 0.5 * t[:, None] + np.exp(0.5 * t)[:, None] * nodes
    points = np.insert(rest.reshape(-1, 1), coordinate, np.repeat(t, 20), axis=1)
    ratio = (
        np.exp(q.log_prob_on_host(points).reshape(rest.shape) + 0.5 * nodes**2)
        * np.exp(0.5 * t)[:, None]
    )
    assert si.simpson(ratio @ weights, x=t) == pytest.approx(1.0, abs=2e-3)


def test_a_gaussian_with_a_linear_regression_is_exact():
    """A bivariate normal written as t and the rest given t."""
    cov = np.array([[4.0, 1.5], [1.5, 2.0]])
    knots = 2.0 * KNOTS
    slope, left = cov[1, 0] / cov[0, 0], np.sqrt(cov[1, 1] - cov[1, 0] ** 2 / cov[0, 0])
    q = NestedGaussian.through(
        0, knots, -0.5 * knots**2 / 4.0, slope * knots[:, None], np.full((17, 1, 1), left)
    )
    points = np.random.default_rng(0).multivariate_normal(np.zeros(2), cov, 50)
    # log q(t) is linear between nodes 1/32 of a knot apart: off by h^2 / 8 of its curvature at most
    np.testing.assert_allclose(
        q.log_prob_on_host(points),
        st.multivariate_normal(np.zeros(2), cov).logpdf(points),
        atol=5e-4,
    )


@pytest.mark.parametrize(("dim", "coordinate"), [(2, 0), (2, 1), (4, 2), (1, 0)])
def test_three_ways_to_the_density_of_a_draw_agree(dim, coordinate):
    q = funnel(dim, coordinate)
    z, log_q = q.draw(400, 3)
    assert z.shape == (400, dim)
    np.testing.assert_allclose(q.log_prob_on_host(z), log_q, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(q.log_prob(z), log_q, rtol=1e-9, atol=1e-9)
    far = z + 30.0 * np.random.default_rng(0).standard_normal(z.shape)  # beyond the knots as well
    np.testing.assert_allclose(q.log_prob(far), q.log_prob_on_host(far), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["draw", "sample"])
def test_draws_follow_the_density(how):
    """t is standard normal.

    Given t the whitened rest is standard normal too (Kolmogorov-Smirnov, 4,000 draws).
    """
    q = funnel(3, 1)
    z = q.draw(8000, 1)[0][:4000] if how == "draw" else np.asarray(q.sample(1, shape=(4000,)))
    t, rest = z[:, 1], np.delete(z, 1, axis=1)
    assert st.kstest(t, "norm").pvalue > 1e-3
    white = np.linalg.solve(
        np.array([[1.0, 0.0], [0.4, 1.0]]), (rest - 0.5 * t[:, None]).T
    ) * np.exp(-0.5 * t)
    for row in white:
        # C(t) linear between knots half a unit apart: under 1 % off
        assert st.kstest(row, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(white)[0, 1]) < 4 / np.sqrt(4000)


def test_draws_are_stratified_and_antithetic():
    """The mean of t is that of 1,000 strata, not of 1,000 independent draws."""
    z, _ = funnel().draw(2000, 5)
    np.testing.assert_array_equal(z[:1000, 0], z[1000:, 0])
    assert abs(z[:, 0].mean()) < 0.1 / np.sqrt(1000)
    # the conditional mean
    np.testing.assert_allclose(0.5 * (z[:1000, 1] + z[1000:, 1]), 0.5 * z[:1000, 0], atol=1e-8)


def test_on_the_line_no_draw_comes_twice():
    q = NestedGaussian.through(0, KNOTS, -0.5 * KNOTS**2, np.empty((17, 0)), np.empty((17, 0, 0)))
    assert len(np.unique(q.draw(1000, 0)[0])) == 1000


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_any_number_of_draws(count):
    z, log_q = funnel(3).draw(count, 0)
    assert z.shape == (count, 3)
    np.testing.assert_allclose(funnel(3).log_prob_on_host(z), log_q, rtol=1e-9)


def test_the_same_key_gives_the_same_draws():
    a, b, c = (funnel().draw(10, key)[0] for key in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_roots_of_any_sign_and_shape_give_the_same_member():
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    roots = np.exp(0.2 * KNOTS)[:, None, None] * np.array([[1.0, 0.0], [0.5, 2.0]])
    first, second = (
        NestedGaussian.through(0, KNOTS, -0.5 * KNOTS**2, np.zeros((17, 2)), r)
        for r in (roots, roots @ -rotation)
    )
    points = np.random.default_rng(1).standard_normal((20, 3))
    np.testing.assert_allclose(
        first.log_prob_on_host(points), second.log_prob_on_host(points), rtol=1e-9
    )


def test_it_cannot_be_differentiated_through_its_draws():
    assert not funnel().reparameterised
    assert to_device(funnel(4)).dim == 4
