"""The Gaussian nested on two coordinates, and the bilinear density on a rectangle inside it.

Mass one, exact draws, a Gaussian and a bent law that it contains; the interpolant's own values.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from tightbound._numerics import to_device
from tightbound.families import NestedGaussianPair
from tightbound.families.nested_pair import Bilinear

STEPS = 11  # knots per axis, one unit apart
ORIGIN = np.array([-5.0, -5.0])
LATTICE = np.stack(
    np.meshgrid(ORIGIN[0] + np.arange(STEPS), ORIGIN[1] + np.arange(STEPS), indexing="ij"), axis=-1
)
PROFILE = -0.5 * np.sum(LATTICE**2, axis=-1)


def bent():
    """t standard normal along `axes`, the rest N(0.5 y1 + 0.2 y2^2, exp(0.4 y2)^2) twice."""
    mean = (0.5 * LATTICE[..., 0] + 0.2 * LATTICE[..., 1] ** 2)[..., None] * np.ones(2)
    roots = np.exp(0.4 * LATTICE[..., 1])[..., None, None] * np.array([[1.0, 0.0], [0.5, 1.0]])
    axes = np.array([[2.0, 0.0], [0.6, 0.5]])
    return NestedGaussianPair.through(
        (1, 3), np.array([1.0, -1.0]), axes, ORIGIN, 1.0, PROFILE, mean, roots
    )


def test_a_gaussian_is_exact_up_to_the_fineness_of_the_lattice():
    """Of four coordinates, from the regression of two on the others; the cells are 1/8 sd wide.

    So fine a lattice leaves h^2 / 8 of curvature.
    """
    rng = np.random.default_rng(0)
    root = np.eye(4) + 0.3 * np.tril(rng.standard_normal((4, 4)), -1)
    cov, pair, rest = root @ root.T, np.array([0, 2]), np.array([1, 3])
    slope = np.linalg.solve(cov[np.ix_(pair, pair)], cov[np.ix_(pair, rest)]).T
    left = cov[np.ix_(rest, rest)] - slope @ cov[np.ix_(pair, rest)]
    axes = np.linalg.cholesky(cov[np.ix_(pair, pair)])
    means = LATTICE @ axes.T @ slope.T
    roots = np.broadcast_to(np.linalg.cholesky(left), (STEPS, STEPS, 2, 2))
    q = NestedGaussianPair.through((0, 2), np.zeros(2), axes, ORIGIN, 1.0, PROFILE, means, roots)
    z = rng.multivariate_normal(np.zeros(4), cov, 200)
    np.testing.assert_allclose(
        q.log_prob_on_host(z), st.multivariate_normal(np.zeros(4), cov).logpdf(z), atol=0.02
    )


def test_the_density_integrates_to_one():
    """Importance sampling from a wider normal.

    40,000 draws know the mass to about 1 %, and 4 errors are allowed.
    """
    q = bent()
    z, _ = q.draw(4000, 0)
    wide = st.multivariate_normal(z.mean(axis=0), 4.0 * np.cov(z.T))
    points = wide.rvs(40_000, random_state=1)
    weights = np.exp(q.log_prob_on_host(points) - wide.logpdf(points))
    assert abs(weights.mean() - 1.0) < 4 * weights.std() / np.sqrt(len(weights)) < 0.08


@pytest.mark.parametrize("how", ["draw", "sample"])
def test_draws_follow_the_density(how):
    """y and the whitened rest are standard normal (Kolmogorov-Smirnov, 4,000 draws)."""
    q = bent()
    z = q.draw(8000, 1)[0][:4000] if how == "draw" else np.asarray(q.sample(1, shape=(4000,)))
    y = np.linalg.solve(q.axes, (z[:, [1, 3]] - q.centre).T)
    mean = 0.5 * y[0] + 0.2 * y[1] ** 2
    white = np.linalg.solve(
        np.array([[1.0, 0.0], [0.5, 1.0]]), (z[:, [0, 2]] - mean[:, None]).T
    ) * np.exp(-0.4 * y[1])
    for row in (*y, *white):
        # roots log-linear over a unit: 1 % of an sd off at most
        assert st.kstest(row, "norm").pvalue > 1e-3
    assert np.max(np.abs(np.corrcoef(np.concatenate([y, white])) - np.eye(4))) < 4.5 / np.sqrt(4000)


def test_three_ways_to_the_density_of_a_draw_agree():
    q = bent()
    z, log_q = q.draw(401, 3)
    np.testing.assert_allclose(q.log_prob_on_host(z), log_q, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(q.log_prob(z), log_q, rtol=1e-8, atol=1e-8)


def test_in_the_plane_it_is_a_grid():
    """Nothing is left beside the two coordinates: the density of the lattice itself."""
    q = NestedGaussianPair.through(
        (0, 1),
        np.zeros(2),
        np.eye(2),
        ORIGIN,
        1.0,
        PROFILE,
        np.empty((STEPS, STEPS, 0)),
        np.empty((STEPS, STEPS, 0, 0)),
    )
    z, log_q = q.draw(2000, 0)
    np.testing.assert_allclose(
        log_q, st.multivariate_normal(np.zeros(2)).logpdf(z), atol=0.06
    )  # in the tails; cells 1/8 wide
    np.testing.assert_allclose(z.std(axis=0), 1.0, atol=0.01)  # stratified
    assert len(np.unique(z, axis=0)) == len(z), (
        "no rest is left to mirror, so that no draw may come twice"
    )


# -- the bilinear density

CORNER, CELL = np.array([-1.0, 2.0]), 0.5
LOG_VALUES = np.log(np.array([[0.2, 1.0, 3.0], [2.0, 0.5, 0.1], [0.3, 4.0, 1.0], [1.0, 1.0, 2.0]]))


@pytest.fixture
def bilinear():
    return Bilinear.through(CORNER, CELL, LOG_VALUES)


def test_bilinear_integrates_to_one(bilinear):
    """Gauss-Legendre with two nodes per cell and axis is exact for a bilinear function."""
    x, _ = np.polynomial.legendre.leggauss(2)
    edges = [CORNER[k] + CELL * np.arange(LOG_VALUES.shape[k]) for k in (0, 1)]
    nodes = [(0.5 * (e[1:] + e[:-1])[:, None] + 0.25 * x).ravel() for e in edges]
    grid = np.stack(np.meshgrid(*nodes, indexing="ij"), axis=-1)
    assert np.exp(bilinear.log_prob(grid)).sum() * (CELL / 2) ** 2 == pytest.approx(1.0, rel=1e-12)


def test_bilinear_values_at_nodes_and_between(bilinear):
    at_nodes = np.exp(
        bilinear.log_prob(CORNER + CELL * np.array([[0, 0], [1, 2], [3, 1]]))
        - bilinear.log_prob(CORNER)
    )
    np.testing.assert_allclose(at_nodes, np.array([0.2, 0.1, 1.0]) / 0.2, rtol=1e-12)
    middle = np.exp(
        bilinear.log_prob(CORNER + CELL * np.array([0.5, 0.5])) - bilinear.log_prob(CORNER)
    )
    assert middle == pytest.approx(np.mean([0.2, 1.0, 2.0, 0.5]) / 0.2)
    assert bilinear.log_prob(CORNER - 0.1) == -np.inf


def test_bilinear_quantiles_follow_the_density(bilinear):
    """Shares of 20,000 draws in each cell within 4 standard errors of its mass.

    Both marginals by Kolmogorov-Smirnov.
    """
    y = bilinear.inverse_cdf(np.random.default_rng(0).random((20_000, 3)))
    f = np.exp(LOG_VALUES)
    mass = (f[1:, 1:] + f[:-1, 1:] + f[1:, :-1] + f[:-1, :-1]).ravel()
    mass /= mass.sum()
    cell = np.floor((y - CORNER) / CELL).astype(int)
    share = np.bincount(cell[:, 0] * 2 + cell[:, 1], minlength=6) / len(y)
    assert np.all(np.abs(share - mass) < 4 * np.sqrt(mass / len(y)))
    for axis, line in ((0, f @ np.array([0.5, 1.0, 0.5])), (1, np.array([0.5, 1.0, 1.0, 0.5]) @ f)):
        edges = CORNER[axis] + CELL * np.arange(len(line))
        fine = np.linspace(edges[0], edges[-1], 4001)
        cdf = np.cumsum(np.interp(fine, edges, line))
        assert (
            st.kstest(
                y[:, axis], lambda t, fine=fine, cdf=cdf: np.interp(t, fine, cdf / cdf[-1])
            ).pvalue
            > 1e-3
        )


def test_bilinear_numpy_and_jax_agree(bilinear):
    u = np.random.default_rng(1).random((50, 3))
    y, on_device = bilinear.inverse_cdf(u), to_device(bilinear)
    np.testing.assert_allclose(jax.vmap(lambda u: on_device.inverse_cdf(u, jnp))(u), y, rtol=1e-12)
    np.testing.assert_allclose(
        jax.vmap(lambda y: on_device.log_prob(y, jnp))(y), bilinear.log_prob(y), rtol=1e-10
    )
