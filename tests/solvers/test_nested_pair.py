"""The lattice rung.

Two scales at once, anything in the plane, the pair that matters, and what it refuses.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.families.gaussian import Gaussian
from tightbound.results import PairingError, Result
from tightbound.solvers.nested_pair import NestedPair, strongest_pair
from tightbound.targets import zoo

pytestmark = pytest.mark.usefixtures("as_a_user")


def two_scales():
    """s, t ~ N(0, 1) at 1 and 4; two of the rest N(0, e^(2s)), two N(0, e^(2t)).

    Log Z = 0, and q is in the family.
    """

    def log_density(p):
        s, t = p["z"][1], p["z"][4]
        rest, scales = p["z"][np.array([0, 2, 3, 5])], jnp.stack([s, s, t, t])
        return (
            -0.5 * (s**2 + t**2 + jnp.sum(rest**2 * jnp.exp(-2 * scales)))
            - jnp.sum(scales)
            - 3 * np.log(2 * np.pi)
        )

    return tb.from_log_density(log_density, {"z": np.zeros(6)})


def test_two_scales_are_in_the_family():
    target = two_scales()
    gaussian = tb.fit(target, solver=tb.solvers.NaturalGradient(), key=0, throw=False)
    fit = tb.fit(target, gaussian.q, solver=NestedPair(), key=0)
    assert fit.result is Result.converged
    assert fit.q.coordinates == (1, 4)
    # knots 1 sd apart: the roots' logs are linear, so exact between
    assert fit.elbo.value == pytest.approx(0.0, abs=0.01)
    z, _ = fit.q.draw(4000, 1)
    assert np.mean(z[:, [1, 4]] ** 2, axis=0) == pytest.approx(np.ones(2), abs=0.02)  # stratified


def test_tb_fit_climbs_to_it_and_passes():
    """One scale at a time leaves the other's funnel, and the Gaussian both."""
    fit = tb.fit(two_scales(), key=1)
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
    """Coordinate 1 couples as strongly as 2, but only to 0 itself: holding 0 explains it."""
    coupling = np.array(
        [[3.0, 0.0, 1.0, 0.0], [2.9, 0.0, 0.1, 0.0], [0.0, 0.2, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]
    )
    assert strongest_pair(coupling).tolist() == [0, 2]


def test_a_wide_posterior_coarsens_the_lattice():
    """A start five times too narrow.

    Every other line is dropped until the lattice spans the posterior.
    """
    known = zoo.gaussian(3)
    sd = np.asarray(known.sd["x"])
    narrow = Gaussian.from_root(np.asarray(known.mean["x"]), np.diag(sd / 5.0))
    fit = tb.fit(known.target, narrow, solver=NestedPair(coordinates=(0, 1)), key=0)
    assert fit.q.step >= 2.0
    assert fit.elbo.value == pytest.approx(known.log_evidence, abs=0.03)


@pytest.mark.parametrize(
    ("name", "log_density"),
    [
        ("tails of a power law", lambda p: -jnp.sum(jnp.log1p(p["x"] ** 2))),
        (
            "a thin ridge",
            lambda p: -0.5 * ((p["x"][0] * p["x"][1] - 1) / 0.02) ** 2 - jnp.sum(p["x"] ** 2) / 18,
        ),
    ],
)
def test_a_lattice_that_does_not_hold_the_posterior_is_refused(name, log_density):
    """Its draws would say nothing of what it lacks."""
    target = tb.from_log_density(log_density, {"x": np.ones(2)})
    start = Gaussian.from_root(
        np.ones(2), np.array([[0.2, 0.0], [-0.19, 0.05]]) if "ridge" in name else np.eye(2)
    )
    fit = tb.fit(target, start, solver=NestedPair(), key=0)
    assert fit.result is Result.unenclosed
    assert isinstance(fit.q, Gaussian)


def test_places_where_the_density_is_not_a_number_are_left_out():
    """A half plane of NaN costs the knots in it, not the grid: the truth is half of a normal."""
    cut = lambda p: jnp.where(p["x"][1] > -0.5, -0.5 * jnp.sum(p["x"] ** 2), jnp.nan)  # noqa: E731
    start = Gaussian.from_root(np.array([0.0, 0.4]), np.eye(2))
    fit = tb.fit(
        tb.from_log_density(cut, {"x": np.ones(2)}), start, solver=NestedPair(), key=0, throw=False
    )
    assert type(fit.q).__name__ == "NestedGaussianPair"
    z, _ = fit.q.draw(4000, 0)
    # of the truncated normal; the edge is up to a step off
    assert z[:, 1].mean() == pytest.approx(0.5092, abs=0.15)


def test_what_it_cannot_start_from():
    target = two_scales()
    with pytest.raises(PairingError, match="full-rank"):
        tb.fit(target, Gaussian.diagonal(6), solver=NestedPair())
    with pytest.raises(PairingError, match="two different indices"):
        tb.fit(target, Gaussian.full(6), solver=NestedPair(coordinates=(2, 2)))
    with pytest.raises(PairingError, match="takes no other objective"):
        tb.fit(target, Gaussian.full(6), tb.objectives.ELBO(), NestedPair())
    with pytest.raises(PairingError, match="use Nested"):
        tb.fit(zoo.beta_bernoulli().target, Gaussian.full(1), solver=NestedPair())
