"""Batch and match.

The update minimises what it says, Gaussian targets are reached exactly, and ends are named.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tightbound.account import Budget
from tightbound.families import Gaussian
from tightbound.loop import run
from tightbound.objectives import ELBO
from tightbound.results import PairingError, Result
from tightbound.solvers import BatchAndMatch
from tightbound.solvers.batch_and_match import match
from tightbound.targets.zoo import banana
from tightbound.testing import GaussianTarget


def search(target, q, **options):
    solver = BatchAndMatch(options.pop("batch", None))
    solver.check(target, q, None)
    return run(
        target,
        q,
        None,
        solver,
        key=0,
        tol=0.02,
        budget=Budget(),
        max_steps=options.pop("max_steps", None),
    )


@pytest.mark.parametrize("weight", [0.3, 20.0])
def test_the_update_is_the_minimum_of_the_batch_objective(weight):
    """The gradient of (1/B) sum |g_b - grad log q(z_b)|^2_cov(q) + (2 / weight) KL(N(0, I) || q)
    vanishes there.
    """
    rng = np.random.default_rng(0)
    z = rng.standard_normal((9, 3))
    scores = -0.7 * z @ rng.standard_normal((3, 3)) + rng.standard_normal((9, 3)) + 0.5
    mean, root = match(z, scores, weight)

    def objective(mean, half):
        cov = half @ half.T
        residual = scores + jnp.linalg.solve(cov, (z - mean[None, :]).T).T
        batch = jnp.mean(jnp.einsum("bi,ij,bj->b", residual, cov, residual))
        inverse = jnp.linalg.inv(cov)
        divergence = 0.5 * (
            jnp.trace(inverse) + mean @ inverse @ mean - 3 + jnp.linalg.slogdet(cov)[1]
        )
        return batch + 2 / weight * divergence

    slopes = jax.grad(objective, (0, 1))(
        jnp.asarray(mean), jnp.asarray(np.linalg.cholesky(root @ root.T))
    )
    for slope in slopes:
        np.testing.assert_allclose(slope, 0.0, atol=1e-9)


def test_a_gaussian_target_is_reached_to_many_digits():
    """Condition number 1e4 and a start 30 sds off: every score is explained in the end."""
    rng = np.random.default_rng(1)
    root = np.linalg.qr(rng.standard_normal((5, 5)))[0] * np.geomspace(0.1, 10.0, 5)
    posterior = Gaussian.from_root(np.full(5, 3.0), root)
    ran = search(GaussianTarget(posterior, 2.0), Gaussian.full(5))
    assert ran.result is Result.converged
    assert ran.steps < 200, ran.steps
    np.testing.assert_allclose(ran.q.mean, posterior.mean, atol=1e-2 * posterior.sd.max())
    np.testing.assert_allclose(ran.q.cov, posterior.cov, atol=1e-3 * np.max(posterior.cov))


def test_it_settles_on_a_target_that_is_no_gaussian():
    """The banana: x ~ N(0, 2^2) is reached; the run stops by itself."""
    known = banana(curvature=0.1, scale=1.0)
    ran = search(known.target, Gaussian.full(2))
    assert ran.result is Result.stationary
    np.testing.assert_allclose(ran.q.mean, 0.0, atol=0.1)
    np.testing.assert_allclose(ran.q.sd, [1.0, np.sqrt(1.02)], rtol=0.05)


class Nowhere(GaussianTarget):
    def log_density(self, z):
        return jnp.sum(z) * jnp.nan


def test_a_density_that_is_nowhere_finite_ends_the_run():
    assert search(Nowhere(Gaussian.full(2)), Gaussian.full(2)).result is Result.nonfinite


def test_wrong_pairings_and_arguments_say_what_fits():
    target = GaussianTarget(Gaussian.full(2))
    with pytest.raises(PairingError, match="takes no objective, got ELBO"):
        BatchAndMatch().check(target, Gaussian.full(2), ELBO())
    with pytest.raises(PairingError, match="pass q=tb.families.Gaussian.full"):
        BatchAndMatch().check(target, Gaussian.diagonal(2), None)
    with pytest.raises(ValueError, match="`batch` must be at least 2"):
        BatchAndMatch(1)
