"""Mean shift.

Every end is a mode of the density, and the Gaussians made from them are the right ones.
"""

import jax
import numpy as np
import pytest

from tightbound._numerics import x64
from tightbound.search.modes import modes, starts_at_modes
from tightbound.targets import Clutter

VG = np.array([[1.0, 0.3], [0.3, 2.0]])
X = np.array([[0.0, 0.0], [0.3, -0.2], [6.0, 6.0], [6.5, 5.0], [-7.0, 3.0]])


def test_ends_are_modes_with_laplace_s_evidence():
    """Score zero and curvature by autodiff at each end.

    Evidence against each other in the target's coordinates.
    """
    target = Clutter(X, vg=VG, vc=30.0, weights=[1.0, 2.0, 1.0, 1.0, 1.0])
    k = target.kernels()
    found = modes(k)
    assert len(found) == 3
    with x64():
        score, hess = (
            jax.jit(jax.grad(target.log_density)),
            jax.jit(jax.hessian(target.log_density)),
        )
        laplace = []
        for mode in found:
            z = k.root @ mode.mean
            cov = k.root @ mode.cov @ k.root.T
            np.testing.assert_allclose(score(z), 0, atol=5e-3)
            np.testing.assert_allclose(
                -np.linalg.inv(np.asarray(hess(z))), cov, rtol=1e-2, atol=1e-3
            )
            laplace.append(
                float(target.log_density(z)) + 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]
            )
    given = [mode.log_evidence for mode in found]
    np.testing.assert_allclose(laplace, target.log_background() + np.array(given), atol=1e-4)


def test_the_wide_start_has_the_moments_of_the_posterior():
    """Two modes ten kernel sds apart: mean and covariance within a few per cent of the truth."""
    target = Clutter([-5.0, -5.2, 5.0, 5.3], prior_var=50.0)
    exact, start = target.exact(), starts_at_modes(target.kernels(), modes(target.kernels()))[-1]
    assert start.cov[0, 0] == pytest.approx(exact.cov[0, 0], rel=0.1)
    assert start.mean[0] == pytest.approx(exact.mean[0], abs=0.1 * exact.cov[0, 0] ** 0.5)


def test_many_points_are_thinned_and_points_without_background_allowed():
    rng = np.random.default_rng(0)
    x = np.where(
        rng.random(50_000) < 0.5,
        2.0 + rng.standard_normal(50_000),
        10**0.5 * rng.standard_normal(50_000),
    )
    (mode,) = modes(Clutter(x).kernels())
    assert mode.mean[0] == pytest.approx(2.0, abs=0.1)
    assert mode.cov[0, 0] == pytest.approx(1.0 / 13_000, rel=0.1)
    certain = modes(Clutter([1.0, 9.0], log_clutter=[-np.inf, -3.0]).kernels())
    assert certain[0].mean[0] == pytest.approx(1.0, abs=0.05)
