"""The nested Gaussian.

Settles a funnel exactly, finds the coordinate that matters, refuses what it cannot start from.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st

import tightbound as tb
from tightbound.families.gaussian import Gaussian
from tightbound.results import PairingError, Result
from tightbound.search.conditionals import third_order_coupling
from tightbound.solvers.nested import Nested
from tightbound.targets.base import Density


class Funnel(Density):
    """t ~ N(0, 1) at `position`, the rest N(0, exp(t)^2): log Z = 0, E z_k^2 = exp(2)."""

    dimension: int = eqx.field(static=True)
    position: int = eqx.field(static=True, default=0)

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
        t, rest = z[self.position], jnp.delete(z, self.position, assume_unique_indices=True)
        normal = -0.5 * jnp.sum(rest**2) * jnp.exp(-2 * t) - t * (self.dimension - 1)
        return -0.5 * t**2 + normal - 0.5 * self.dimension * jnp.log(2 * jnp.pi)


def test_a_funnel_is_in_the_family():
    target = Funnel(4, position=2)
    gaussian = tb.fit(target, solver=tb.solvers.NaturalGradient())
    fit = tb.fit(target, gaussian.q, solver=Nested())
    assert fit.result is Result.converged
    assert fit.q.coordinate == 2
    assert gaussian.elbo.value < -0.3, "no Gaussian is close to a funnel"
    assert fit.elbo.value == pytest.approx(0.0, abs=0.02)
    z, _ = fit.q.draw(20_000, 1)
    # stratified: only the interpolation is left
    assert z[:, 2].mean() == pytest.approx(0.0, abs=0.03)
    assert z[:, 2].std() == pytest.approx(1.0, abs=0.03)
    assert st.kstest(z[:10_000, 0] * np.exp(-z[:10_000, 2]), "norm").pvalue > 1e-3


def test_the_coupling_tensor_vanishes_on_gaussians_and_points_at_the_scale():
    rng = np.random.default_rng(0)
    precision = np.diag([1.0, 4.0, 9.0])
    root = np.diag([1.0, 0.5, 1 / 3])

    def gaussian(z):
        return -0.5 * np.einsum("ni,ij,nj->n", z, precision, z), -z @ precision

    np.testing.assert_allclose(
        third_order_coupling(gaussian, np.zeros(3), root, rng), 0.0, atol=1e-10
    )

    def funnel(z):
        t, rest = z[:, :1], z[:, 1:]
        scale = np.exp(-2 * t)
        score = np.concatenate(
            [-t + (rest**2 * scale).sum(1, keepdims=True) - 2, -rest * scale], axis=1
        )
        return -0.5 * t[:, 0] ** 2 - 0.5 * (rest**2 * scale).sum(1) - 2 * t[:, 0], score

    coupling = np.sum(third_order_coupling(funnel, np.zeros(3), 0.5 * np.eye(3), rng) ** 2, axis=1)
    assert np.argmax(coupling) == 0


def test_gains_nothing_where_the_gaussian_is_exact():
    class Standard(Funnel):
        def log_density(self, z):
            return -0.5 * z @ z

    fit = tb.fit(Standard(3), Gaussian.full(3), solver=Nested())
    assert fit.elbo.value == pytest.approx(1.5 * np.log(2 * np.pi), abs=0.01)


def test_in_one_dimension_it_is_the_posterior_on_a_grid():
    """z = log of a Gamma(3, 1) variable.

    Log density 3 z - exp(z), log Z = log Gamma(3) = log 2, mean digamma(3).
    """

    class LogGamma(Funnel):
        def log_density(self, z):
            return 3 * z[0] - jnp.exp(z[0])

    fit = tb.fit(LogGamma(1), Gaussian.full(1), solver=Nested())
    assert fit.elbo.value == pytest.approx(np.log(2), abs=5e-3)
    z, _ = fit.q.draw(20_000, 0)
    assert z.mean() == pytest.approx(sp.digamma(3), abs=0.01)
    assert z.std() == pytest.approx(np.sqrt(sp.polygamma(1, 3)), rel=0.01)


def test_refuses_what_it_cannot_start_from():
    with pytest.raises(PairingError, match="starts from a full-rank Gaussian, not Gaussian"):
        tb.fit(Funnel(3), Gaussian.diagonal(3), solver=Nested())
    with pytest.raises(PairingError, match=r"`coordinate` must lie in 0..2, got 5"):
        tb.fit(Funnel(3), Gaussian.full(3), solver=Nested(coordinate=5))
    with pytest.raises(PairingError, match="takes no other objective"):
        tb.fit(Funnel(3), Gaussian.full(3), tb.objectives.ELBO(), Nested())
