"""Pathfinder: known posteriors, BlackJAX's implementation, and what each path came to."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import tightbound as tb
from tightbound.families import Gaussian, Mixture
from tightbound.families.gaussian import kl
from tightbound.solvers import Pathfinder
from tightbound.testing import GaussianTarget

pytestmark = pytest.mark.usefixtures("as_a_user")


def test_a_gaussian_posterior_of_few_dimensions_is_found():
    posterior = Gaussian.from_root(
        np.array([1.0, -2.0, 0.5]), np.array([[1.0, 0, 0], [0.5, 2.0, 0], [0, 0.3, 0.4]])
    )
    fit = tb.fit(GaussianTarget(posterior, 3.0), solver=Pathfinder(paths=1), key=3)
    assert isinstance(fit.q, Gaussian)
    assert fit.result is tb.Result.converged
    assert float(kl(fit.q, posterior)) < 0.1
    assert fit.elbo.value == pytest.approx(3.0, abs=0.1)
    assert fit.evaluations < 2000


def test_several_paths_find_both_modes_with_their_weights():
    """Two unit Gaussians six apart with weights .3 and .7.

    Both local Gaussians are exact, and so are their ELBOs.
    """
    known = tb.targets.zoo.two_modes(2, separation=6.0, weight=0.3)
    fit = tb.fit(known.target, solver=Pathfinder(paths=6), key=1)
    assert isinstance(fit.q, Mixture)
    right = np.array([q.mean[0] > 0 for q in fit.q.components])
    assert 0 < right.sum() < 6
    assert fit.q.weights[right].sum() == pytest.approx(0.3, abs=0.02), (
        "however many paths end at each"
    )
    draws = fit.sample(5, 1000, corrected=True, replace=False)["x"]
    assert len(np.unique(draws[:, 0])) == 1000
    np.testing.assert_allclose(draws.mean(axis=0), known.mean["x"], atol=0.35)


@pytest.mark.slow
def test_it_does_what_blackjax_does():
    """On a logistic posterior both reach an ELBO within .1 nat of each other, and means within .1
    sd.
    """
    pathfinder = pytest.importorskip("blackjax.vi.pathfinder")
    known = tb.targets.zoo.logistic_regression()
    fit = tb.fit(known.target, solver=Pathfinder(paths=1), key=2)
    with jax.enable_x64(True):
        log_density = lambda z: jnp.asarray(known.target.log_density(z))  # noqa: E731
        state, _ = pathfinder.approximate(
            jr.key(0), log_density, jnp.array([0.5, -0.5]), num_samples=200, maxiter=12
        )
        z, log_q = pathfinder.sample(jr.key(1), state, 4000)
        theirs = np.asarray(jax.vmap(log_density)(z) - log_q)
        position = np.asarray(z).mean(axis=0)
    assert fit.elbo.value == pytest.approx(theirs.mean(), abs=0.1)
    np.testing.assert_allclose(fit.q.mean / known.sd["beta"], position / known.sd["beta"], atol=0.2)
    assert known.log_evidence - fit.elbo.value < 0.15


def test_a_path_without_a_mode_stops_being_followed_where_the_elbo_is_best():
    """The centred funnel's density has no bound; the Gaussian chosen lies early on the path."""
    known = tb.targets.zoo.eight_schools(centered=True)
    fit = tb.fit(known.target, solver=Pathfinder(paths=2), key=0)
    assert fit.steps == 2
    assert np.all(fit.trace.change < 0.5), "the share of the path at which the best iterate stands"
    assert known.log_evidence - 12.0 < fit.elbo.value < known.log_evidence


def test_each_path_has_its_status_and_no_search_is_made_for_the_start():
    class OnlyRight(GaussianTarget):
        def log_density(self, z):  # no density left of -1
            return jnp.where(z[0] > -1.0, -0.5 * jnp.sum((z - 1.0) ** 2), jnp.nan)

    target = OnlyRight(Gaussian.full(2))
    fit = tb.fit(target, solver=Pathfinder(paths=8), key=0)
    assert fit.result is tb.Result.converged
    assert fit.steps < 8, "starts without a density have no path"
    one = tb.fit(GaussianTarget(Gaussian.full(2)), solver=Pathfinder(paths=1, draws=2), key=0)
    assert one.evaluations < 100
    with pytest.raises(tb.FitError, match="NaN or infinite"):
        tb.fit(target, Gaussian.full(2).moved(np.array([-50.0, 0.0])), solver=Pathfinder())


def test_refusals():
    target = GaussianTarget(Gaussian.full(2))
    with pytest.raises(tb.PairingError, match="takes no objective, got ELBO"):
        tb.fit(target, None, tb.objectives.ELBO(), Pathfinder())
    with pytest.raises(ValueError, match="`paths` must be at least 1, got 0"):
        Pathfinder(paths=0)
    with pytest.raises(tb.PairingError, match="too large for 2001 dimensions"):
        Pathfinder().check(GaussianTarget(Gaussian.diagonal(2001)), Gaussian.diagonal(2001), None)
