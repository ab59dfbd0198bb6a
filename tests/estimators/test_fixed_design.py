"""The fixed design.

Exact on quadratic log densities for every structure of scale, and an honest count of what it costs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tightbound.estimators import FixedDesign
from tightbound.families import Diagonal, Gaussian, LowRank
from tightbound.objectives import ELBO
from tightbound.targets.batched import batched
from tightbound.testing import GaussianTarget

RNG = np.random.default_rng(0)
TARGET = GaussianTarget(
    Gaussian.from_root(RNG.standard_normal(5), np.eye(5) + 0.4 * RNG.standard_normal((5, 5))), 1.5
)
MEMBERS = {
    "diagonal": Gaussian(np.ones(5), Diagonal(0.3 * RNG.standard_normal(5))),
    "full": Gaussian.from_root(np.ones(5), np.eye(5) + 0.2 * RNG.standard_normal((5, 5))),
    "low rank": Gaussian(np.ones(5), LowRank(RNG.standard_normal((5, 2)), np.zeros(5))),
}


@pytest.mark.parametrize("q", MEMBERS.values(), ids=MEMBERS)
def test_the_surrogate_is_exact_where_the_log_density_is_quadratic(q):
    estimator = FixedDesign()
    state = estimator.prepare(TARGET, q, 0)
    assert state.shape == (32, q.noise_dim)
    loss, _ = estimator.surrogate(ELBO(), TARGET, jax.tree.map(jnp.asarray, q), state, None)
    assert loss == pytest.approx(float(ELBO().exact(TARGET, q)), rel=1e-10)


def test_a_step_costs_both_draws_of_each_pair():
    assert FixedDesign(pairs=7).evaluations_per_step(TARGET) == 14
    assert FixedDesign().evaluations_per_step(TARGET) == 64
    q, before = MEMBERS["full"], batched(TARGET).evaluations
    FixedDesign(pairs=7).moments(TARGET, q.mean, q.root, FixedDesign(pairs=7).prepare(TARGET, q, 0))
    assert batched(TARGET).evaluations == before + 14
