"""The piecewise log-linear density against quadrature and its own inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from tightbound.families.log_linear import LogLinear

NODES = np.linspace(-4, 5, 200)


def mass(density, a, b):
    """Integral over (a, b) by Gauss-Legendre in each cell and both tails, exact to rounding for
    exponentials.
    """
    x, w = np.polynomial.legendre.leggauss(12)
    edges = np.concatenate([np.linspace(a, NODES[0], 200), NODES, np.linspace(NODES[-1], b, 200)])
    edges = np.unique(np.clip(edges, a, b))
    middle, half = 0.5 * (edges[1:] + edges[:-1])[:, None], 0.5 * np.diff(edges)[:, None]
    return float(np.sum(half * w * np.exp(density.log_prob(middle + half * x))))


@pytest.fixture
def normal():
    return LogLinear.through(NODES, st.norm.logpdf(NODES))


def test_integrates_to_one_with_its_tails(normal):
    assert mass(normal, -12, 12) == pytest.approx(1.0, abs=1e-7)


def test_is_close_to_the_normal_that_it_interpolates(normal):
    t = np.linspace(-3, 3, 50)
    # linear interpolation of a log density with second derivative -1 over cells of h = .045: error
    # at most h^2 / 8
    np.testing.assert_allclose(normal.log_prob(t), st.norm.logpdf(t), atol=0.045**2 / 8 + 1e-3)


def test_inverse_cdf_inverts_the_integral_of_the_density(normal):
    for u in (1e-6, 0.01, 0.3, 0.5, 0.9, 1 - 1e-6):
        t = float(normal.inverse_cdf(np.array(u)))
        below = mass(normal, -14, t)
        assert below == pytest.approx(u, abs=1e-7)


def test_flat_cells_and_numpy_equals_jax():
    uniform = LogLinear.through(np.array([0.0, 1.0, 2.0]), np.zeros(3))
    u = np.linspace(0.01, 0.99, 37)
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            uniform.inverse_cdf(jnp.asarray(u), jnp), uniform.inverse_cdf(u), rtol=1e-12
        )
        np.testing.assert_allclose(
            uniform.log_prob(jnp.asarray(u), jnp), uniform.log_prob(u), rtol=1e-12
        )
