"""Whitened coordinates: those of a Gaussian, of draws, and what chains teach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tightbound._numerics import x64
from tightbound.families import Gaussian, Mixture
from tightbound.search.whitening import Whitening, whitened, whitening_of

ROOT = np.array([[2.0, 0.0, 0.0], [1.5, 0.5, 0.0], [-30.0, 2.0, 10.0]])
MEAN = np.array([1.0, -2.0, 300.0])


def test_a_gaussian_has_its_own_whitening_and_other_families_that_of_their_draws():
    q = Gaussian.from_root(MEAN, ROOT)
    centre, root = whitening_of(q)
    np.testing.assert_allclose(root @ root.T, ROOT @ ROOT.T, rtol=1e-12)
    np.testing.assert_array_equal(centre, MEAN)
    of_draws, root_of_draws = whitening_of(Mixture([q]))
    sd = np.sqrt(np.diag(ROOT @ ROOT.T))
    np.testing.assert_allclose(of_draws, MEAN, atol=4 / np.sqrt(4000) * sd.max())
    np.testing.assert_allclose(np.sqrt(np.diag(root_of_draws @ root_of_draws.T)) / sd, 1, atol=0.05)


def test_the_way_there_and_back():
    points = np.random.default_rng(0).standard_normal((5, 3))
    with x64():
        for root in (ROOT, np.diag(ROOT)):
            coordinates = Whitening.of(MEAN, root)
            u = coordinates.whiten(jnp.asarray(points))
            np.testing.assert_allclose(u, whitened(points, MEAN, root), rtol=1e-12)
            np.testing.assert_allclose(jax.vmap(coordinates.unwhiten)(u), points, rtol=1e-12)


@pytest.mark.parametrize("dense", [True, False], ids=["correlations", "scales"])
def test_positions_of_a_stretched_normal_teach_its_shape(dense):
    """Chains that see N(shift, stretch^2) in white coordinates learn it, to within their noise."""
    rng = np.random.default_rng(1)
    shift, stretch = np.array([1.0, -1.0, 0.5]), np.array([2.0, 0.5, 1.0])
    with x64():
        coordinates = Whitening.of(MEAN, ROOT if dense else np.diag(ROOT))
        for _ in range(500):
            u = shift + stretch * rng.standard_normal((4, 3))
            coordinates = coordinates.having_seen(jnp.asarray(u))
        learnt = coordinates.relearnt()
        centre = coordinates.unwhiten(jnp.asarray(shift))
        assert float(learnt.seen) == 0.0
        assert float(coordinates.forgetful().seen) == 0.0
    before = np.asarray(coordinates.root)
    expected = before * stretch  # columns of a root, or scales
    off = np.asarray(learnt.centre) - np.asarray(centre)
    sd = np.sqrt(np.sum(expected**2, axis=1)) if dense else expected
    assert np.all(np.abs(off) < 0.1 * sd)
    if dense:
        root = np.asarray(learnt.root)
        ratio = np.linalg.solve(expected, root)
        np.testing.assert_allclose(ratio @ ratio.T, np.eye(3), atol=0.15)
    else:
        np.testing.assert_allclose(np.asarray(learnt.root) / expected, 1, atol=0.05)


def test_scales_only_in_many_dimensions():
    centre, root = whitening_of(Gaussian.diagonal(501))
    assert root.shape == (501,)
    np.testing.assert_allclose(centre, 0, atol=4 / np.sqrt(5000) * 1.5)
