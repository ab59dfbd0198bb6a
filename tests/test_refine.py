"""Refinement at given data.

Each way ends at the exact posterior of a linear Gaussian model, from a rough start.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import tightbound as tb
from tightbound.results import PairingError

MIX, NOISE = np.array([[1.0, 0.5], [0.0, 1.0]]), 0.4
X = np.array([1.5, -0.6])
COV = np.linalg.inv(np.eye(2) + MIX.T @ MIX / NOISE**2)
MEAN = COV @ MIX.T @ X / NOISE**2


@pytest.fixture(scope="module")
def posterior():
    with jax.numpy_rank_promotion("allow"):
        target = tb.from_simulator(
            lambda key: {"a": jr.normal(key, (2,))},
            lambda key, p: MIX @ p["a"] + NOISE * jr.normal(key, (2,)),
            log_prior=lambda p: -0.5 * jnp.sum(p["a"] ** 2),
            log_likelihood=lambda p, x: -0.5 * jnp.sum((x - MIX @ p["a"]) ** 2) / NOISE**2,
        )
        q = tb.amortised.amortised(target, "diagonal", width=4, depth=1)
        return tb.fit(target, q, solver=tb.solvers.HeldOut(), max_steps=100).at(X)


@pytest.mark.slow
def test_the_elbo_keeps_the_basin_and_gains_the_correlation(posterior):
    closer = tb.refine(posterior, "elbo", key=0)
    np.testing.assert_allclose(closer.q.mean, MEAN, atol=0.02 * np.sqrt(COV.diagonal().min()))
    np.testing.assert_allclose(closer.q.cov, COV, rtol=0.02, atol=1e-3)
    assert closer.result.ok


def test_the_wake_phase_matches_the_moments(posterior):
    closer = tb.refine(posterior, "wake", key=0)
    sd = np.sqrt(np.diag(COV))
    np.testing.assert_array_less(np.abs(closer.q.mean - MEAN) / sd, 4 / np.sqrt(4000))
    np.testing.assert_allclose(closer.q.sd, sd, rtol=4 / np.sqrt(8000))
    assert closer.result is tb.Result.converged
    assert closer.evaluations >= 4000


def test_importance_weights_correct_the_draws(posterior):
    draws = posterior.sample(0, 4000, corrected=True)["a"]
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - MEAN) / np.sqrt(np.diag(COV)), 0.12)


@pytest.mark.slow
def test_nuts_started_from_it_samples_the_posterior(posterior, as_a_user):
    pytest.importorskip("blackjax")
    chains = tb.refine(posterior, "nuts", key=0)
    table = chains.summary()
    np.testing.assert_array_less(
        np.abs(table["mean"].to_numpy() - MEAN) / np.sqrt(np.diag(COV)), 0.15
    )


def test_what_cannot_be_refined_is_explained(posterior):
    with pytest.raises(ValueError, match="`how` must be one of 'elbo', 'wake', 'nuts'"):
        tb.refine(posterior, "mcmc")
    import dataclasses

    blind = tb.from_simulations(
        {"a": np.random.default_rng(0).standard_normal((200, 2))}, np.zeros((200, 2))
    )
    with pytest.raises(PairingError, match="pass `log_prior` and `log_likelihood`"):
        tb.refine(dataclasses.replace(posterior, simulator=blind))
    with pytest.raises(PairingError, match="needs the density of the posterior at x"):
        dataclasses.replace(posterior, simulator=blind).report("page.html")
