"""The bilinear density on a rectangle.

Mass one, the interpolant's own values, draws that follow it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from tightbound._numerics import to_device
from tightbound.families.nested_pair import Bilinear

ORIGIN, STEP = np.array([-1.0, 2.0]), 0.5
LOG_VALUES = np.log(np.array([[0.2, 1.0, 3.0], [2.0, 0.5, 0.1], [0.3, 4.0, 1.0], [1.0, 1.0, 2.0]]))


@pytest.fixture
def density():
    return Bilinear.through(ORIGIN, STEP, LOG_VALUES)


def test_integrates_to_one(density):
    """Gauss-Legendre with two nodes per cell and axis is exact for a bilinear function."""
    x, _ = np.polynomial.legendre.leggauss(2)
    edges = [ORIGIN[k] + STEP * np.arange(LOG_VALUES.shape[k]) for k in (0, 1)]
    nodes = [(0.5 * (e[1:] + e[:-1])[:, None] + 0.25 * x).ravel() for e in edges]
    grid = np.stack(np.meshgrid(*nodes, indexing="ij"), axis=-1)
    assert np.exp(density.log_prob(grid)).sum() * (STEP / 2) ** 2 == pytest.approx(1.0, rel=1e-12)


def test_values_at_nodes_and_between(density):
    at_nodes = np.exp(
        density.log_prob(ORIGIN + STEP * np.array([[0, 0], [1, 2], [3, 1]]))
        - density.log_prob(ORIGIN)
    )
    np.testing.assert_allclose(at_nodes, np.array([0.2, 0.1, 1.0]) / 0.2, rtol=1e-12)
    middle = np.exp(
        density.log_prob(ORIGIN + STEP * np.array([0.5, 0.5])) - density.log_prob(ORIGIN)
    )
    assert middle == pytest.approx(np.mean([0.2, 1.0, 2.0, 0.5]) / 0.2)
    assert density.log_prob(ORIGIN - 0.1) == -np.inf


def test_quantiles_follow_the_density(density):
    """Shares of 20,000 draws in each cell within 4 standard errors of its mass.

    Both marginals by Kolmogorov-Smirnov.
    """
    y = density.inverse_cdf(np.random.default_rng(0).random((20_000, 3)))
    f = np.exp(LOG_VALUES)
    mass = (f[1:, 1:] + f[:-1, 1:] + f[1:, :-1] + f[:-1, :-1]).ravel()
    mass /= mass.sum()
    cell = np.floor((y - ORIGIN) / STEP).astype(int)
    share = np.bincount(cell[:, 0] * 2 + cell[:, 1], minlength=6) / len(y)
    assert np.all(np.abs(share - mass) < 4 * np.sqrt(mass / len(y)))
    for axis, line in ((0, f @ np.array([0.5, 1.0, 0.5])), (1, np.array([0.5, 1.0, 1.0, 0.5]) @ f)):
        edges = ORIGIN[axis] + STEP * np.arange(len(line))
        fine = np.linspace(edges[0], edges[-1], 4001)
        cdf = np.cumsum(np.interp(fine, edges, line))
        assert (
            st.kstest(
                y[:, axis], lambda t, fine=fine, cdf=cdf: np.interp(t, fine, cdf / cdf[-1])
            ).pvalue
            > 1e-3
        )


def test_numpy_and_jax_agree(density):
    u = np.random.default_rng(1).random((50, 3))
    y, on_device = density.inverse_cdf(u), to_device(density)
    np.testing.assert_allclose(jax.vmap(lambda u: on_device.inverse_cdf(u, jnp))(u), y, rtol=1e-12)
    np.testing.assert_allclose(
        jax.vmap(lambda y: on_device.log_prob(y, jnp))(y), density.log_prob(y), rtol=1e-10
    )
