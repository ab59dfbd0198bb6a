"""The lattice rung: two scales at once, anything in the plane, the pair that matters, and what it refuses."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.families.gaussian import Gaussian
from tightbound.results import PairingError, Result
from tightbound.solvers.nested_pair import NestedPair, strongest_pair
from tightbound.targets import zoo
from tightbound.targets.base import Density

pytestmark = pytest.mark.usefixtures("as_a_user")


class TwoScales(Density):
    """s, t ~ N(0, 1); x ~ N(0, e^(2s)), y ~ N(0, e^(2t)) twice each: log Z = 0, E x^2 = e^2, and q is in the family."""

    held: tuple[int, int] = eqx.field(static=True, default=(1, 4))

    @property
    def dim(self):
        return 6

    @property
    def coordinate_names(self):
        return tuple(f"z[{i}]" for i in range(self.dim))

    def constrain(self, z):
        return {"z": z}

    def unconstrain(self, values):
        return values["z"]

    def log_density(self, z):
        s, t = z[self.held[0]], z[self.held[1]]
        rest = jnp.delete(z, np.array(self.held), assume_unique_indices=True)
        scales = jnp.array([s, s, t, t])
        return -0.5 * (s**2 + t**2 + jnp.sum(rest**2 * jnp.exp(-2 * scales))) - jnp.sum(scales) - 3 * jnp.log(2 * jnp.pi)


def test_two_scales_are_in_the_family():
    target = TwoScales()
    gaussian = tb.fit(target, solver=tb.solvers.NaturalGradient(), key=0, throw=False)
    fit = tb.fit(target, gaussian.q, solver=NestedPair(), key=0)
    assert fit.result is Result.converged
    assert fit.q.coordinates == (1, 4)
    assert fit.elbo.value == pytest.approx(0.0, abs=0.01)  # knots 1 sd apart: the roots' logs are linear, so exact between
    z, _ = fit.q.draw(4000, 1)
    assert np.mean(z[:, [1, 4]] ** 2, axis=0) == pytest.approx(np.ones(2), abs=0.02)  # stratified


def test_tb_fit_climbs_to_it_and_passes():
    """One scale at a time leaves the other's funnel, and the Gaussian both."""
    fit = tb.fit(TwoScales(), key=1)
    assert type(fit.q).__name__ == "NestedGaussianPair"
    lower, upper = fit.certificate.log_evidence
    assert lower <= 0.0 <= upper


def test_a_banana_and_a_ring_are_grids_in_the_plane():
    for known in (zoo.banana(), zoo.ring()):
        gaussian = tb.fit(known.target, solver=tb.solvers.NaturalGradient(), key=0, throw=False)
        fit = tb.fit(known.target, gaussian.q, solver=NestedPair(), key=0)
        assert fit.evaluations < 8_000
        assert fit.elbo.value == pytest.approx(known.log_evidence, abs=0.005)


def test_the_pair_is_strongest_once_the_first_is_held():
    """Coordinate 1 couples as strongly as 2, but only to 0 itself, so that holding 0 explains it."""
    coupling = np.array([[3.0, 0.0, 1.0, 0.0], [2.9, 0.0, 0.1, 0.0], [0.0, 0.2, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    pair, strength = strongest_pair(coupling)
    assert pair.tolist() == [0, 2]
    assert strength == pytest.approx(0.2**2 + 2.0**2)


def test_a_wide_posterior_coarsens_the_lattice():
    """A start five times too narrow: every other line is dropped until the lattice spans the posterior."""
    known = zoo.gaussian(3)
    sd = np.asarray(known.sd["x"])
    narrow = Gaussian.from_root(np.asarray(known.mean["x"]), np.diag(sd / 5.0))
    fit = tb.fit(known.target, narrow, solver=NestedPair(coordinates=(0, 1)), key=0)
    assert fit.q.step >= 2.0
    assert fit.elbo.value == pytest.approx(known.log_evidence, abs=0.03)


def test_what_it_cannot_start_from():
    target = TwoScales()
    with pytest.raises(PairingError, match="full-rank"):
        tb.fit(target, Gaussian.diagonal(6), solver=NestedPair())
    with pytest.raises(PairingError, match="two different indices"):
        tb.fit(target, Gaussian.full(6), solver=NestedPair(coordinates=(2, 2)))
    with pytest.raises(PairingError, match="takes no other objective"):
        tb.fit(target, Gaussian.full(6), tb.objectives.ELBO(), NestedPair())
    with pytest.raises(PairingError, match="use Nested"):
        tb.fit(zoo.beta_bernoulli().target, Gaussian.full(1), solver=NestedPair())
