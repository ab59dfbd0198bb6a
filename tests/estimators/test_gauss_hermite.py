"""Gauss-Hermite moments.

Exact for polynomials, honest about their own error, and monotone under natural gradients.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.estimators import GaussHermite
from tightbound.estimators.gauss_hermite import tensor_rule
from tightbound.families import Gaussian
from tightbound.objectives import IWELBO
from tightbound.results import PairingError, Result
from tightbound.solvers import NaturalGradient
from tightbound.targets import Clutter, Density
from tightbound.testing import GaussianTarget

N20 = [
    -1.3252,
    -2.3011,
    -5.0710,
    -1.4873,
    0.4896,
    1.1387,
    2.9932,
    2.7633,
    1.4019,
    2.6568,
    0.5034,
    1.6761,
    1.0904,
    -3.4887,
]
N20 += [1.3403, 2.3313, -0.4575, -1.1529, -1.7524, 0.3278]


class Quartic(Density):
    """log p = -|z|^4 / 4 + z_0: moments under a Gaussian in closed form."""

    dimension: int = eqx.field(static=True)

    @property
    def dim(self):
        return self.dimension

    @property
    def coordinate_names(self):
        return tuple(f"z[{i}]" for i in range(self.dim))

    def constrain(self, z):
        return {"z": z}

    def unconstrain(self, values):
        return values["z"]

    def log_density(self, z):
        return -0.25 * jnp.sum(z**4) + z[0]


def test_exact_for_polynomials():
    """E z^3 = m^3 + 3 m s, E z^4 = m^4 + 6 m^2 s + 3 s^2, E 3 z^2 = 3 (m^2 + s).

    Five nodes are enough for each.
    """
    mean, root = np.array([0.5, -1.0]), np.array([[0.8, 0.0], [0.3, 0.6]])
    cov, estimator = root @ root.T, GaussHermite(5)
    found = estimator.moments(
        Quartic(2), mean, root, estimator.prepare(Quartic(2), Gaussian.full(2), 0)
    )
    s = cov.diagonal()
    gradient = -(mean**3 + 3 * mean * s) + np.array([1.0, 0.0])
    entropy = np.log(np.linalg.det(root)) + 1 + np.log(2 * np.pi)
    np.testing.assert_allclose(found.gradient, root.T @ gradient, atol=1e-13)
    np.testing.assert_allclose(
        found.curvature, root.T @ np.diag(3 * (mean**2 + s)) @ root, atol=1e-13
    )
    assert float(found.elbo) == pytest.approx(
        -0.25 * np.sum(mean**4 + 6 * mean**2 * s + 3 * s**2) + mean[0] + entropy
    )
    assert found.evaluations == 25


def test_own_error_is_the_last_coefficients():
    """A score of degree 3 has none beyond: nothing left with 6 nodes.

    With 4 its third one shows, -root^4 sqrt(6).
    """
    root = np.array([[0.7]])
    for count, rest in ((6, 0.0), (4, 0.7**4 * np.sqrt(6))):
        found = GaussHermite(count).moments(Quartic(1), np.zeros(1), root, tensor_rule(count, 1))
        np.testing.assert_allclose(found.gradient_spread[0] - found.gradient, [rest], atol=1e-12)
        np.testing.assert_allclose(found.curvature_stderr, rest, atol=1e-12)


def test_a_quadratic_target_leaves_nothing_to_doubt():
    q = Gaussian.from_root(np.array([1.0, 2.0]), np.array([[1.0, 0.0], [0.4, 0.5]]))
    found = GaussHermite(5).moments(GaussianTarget(q, 3.0), q.mean, q.scale.root, tensor_rule(5, 2))
    np.testing.assert_allclose(found.gradient, 0, atol=1e-12)
    np.testing.assert_allclose(found.curvature, np.eye(2), atol=1e-12)
    assert float(found.elbo) == pytest.approx(3.0, abs=1e-12)


@pytest.mark.parametrize("count", [15, 31, 63, 127, 241])
def test_rules_have_the_moments_of_a_normal(count):
    """E u^2 = 1, E u^4 = 3, E u^8 = 105, E cos u = exp(-1/2), after nodes of negligible weight are
    left out.
    """
    rule = tensor_rule(count, 1)
    u, w = rule.nodes[:, 0], rule.weights
    np.testing.assert_allclose(
        [w @ u**2, w @ u**4, w @ u**8, w @ np.cos(u)], [1, 3, 105, np.exp(-0.5)], rtol=1e-10
    )


def test_nodes_grow_until_the_error_is_below_tol():
    """v / vg of 25 in the end: 15 nodes step over the kernels, and are doubled."""
    target = Clutter([-4.0, 5.0], prior_var=25.0, w=0.9)
    fit = tb.fit(
        target,
        Gaussian.from_root(np.zeros(1), np.array([[4.0]])),
        solver=NaturalGradient(GaussHermite()),
        tol=0.01,
    )
    assert fit.result is Result.converged
    used = np.diff(np.r_[0, fit.trace.evaluations])
    assert used[-1] > 15
    assert target.exact().kl(fit.q) < 0.2


def test_out_of_nodes_is_noisy():
    """Five nodes that may not grow are too few for a q wider than the kernels, and the result says
    so.
    """
    target, start = (
        Clutter([-4.0, 5.0], prior_var=25.0, w=0.9),
        Gaussian.from_root(np.zeros(1), np.array([[4.0]])),
    )
    fit = tb.fit(target, start, solver=NaturalGradient(GaussHermite(5), max_doublings=0), tol=0.01)
    assert fit.result is Result.noisy
    assert GaussHermite().enlarged(tensor_rule(15, 1), 10.0, None).count == 31
    assert GaussHermite().enlarged(tensor_rule(241, 1), 10.0, None) is None


def test_pairings():
    with pytest.raises(PairingError, match="one or two dimensions, q has 3"):
        tb.fit(
            GaussianTarget(Gaussian.full(3)),
            Gaussian.full(3),
            solver=NaturalGradient(GaussHermite()),
        )
    with pytest.raises(PairingError, match="gives the ELBO and no other"):
        GaussHermite().surrogate(
            IWELBO(2), GaussianTarget(Gaussian.full(1)), Gaussian.full(1), tensor_rule(5, 1), 0
        )
    with pytest.raises(ValueError, match="at least 3"):
        GaussHermite(2)
