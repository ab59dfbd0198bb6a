"""Pairings of MeasureValued.

Its variance is held against closed forms in the experiment, its mean in the batteries.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tightbound._numerics import to_device
from tightbound.estimators import MeasureValued
from tightbound.estimators.weak_derivatives import GaussianMean, GaussianSd, weak_derivatives
from tightbound.families import Gaussian, Mixture
from tightbound.objectives import ELBO, IWELBO, Renyi
from tightbound.results import PairingError
from tightbound.testing import GaussianTarget

TARGET = GaussianTarget(Gaussian.full(2))


@pytest.mark.parametrize("coupled", [True, False])
def test_pairs_have_the_moments_of_the_two_parts(coupled):
    """Rayleigh: E R^2 = 2; double-sided Maxwell: E M^2 = 3, E M = 0.

    To within four standard errors of 400 draws.
    """
    q, rng = (
        Gaussian.diagonal(2).moved(np.array([1.0, -2.0]), np.array([0.5, 3.0])),
        np.random.default_rng(0),
    )
    white = {}
    for part in (GaussianMean(), GaussianSd()):
        normals = rng.standard_normal((200, 2, part.normals))
        pair = jax.vmap(lambda e, part=part: part.pair(to_device(q), e, jr.key(0), coupled))
        white[type(part)] = [
            (np.asarray(side) - q.mean) / q.sd for side in pair(jnp.asarray(normals))
        ]
    up, down = white[GaussianMean]
    assert np.all(up > 0)
    assert np.all(down < 0)
    assert np.allclose(up, -down) == coupled
    assert abs((up**2).mean() - 2) < 4 * 2 / np.sqrt(400)  # R^2 / 2 is exponential
    maxwell, gaussian = white[GaussianSd]
    assert abs((maxwell**2).mean() - 3) < 4 * np.sqrt(6 / 400)
    assert abs(maxwell.mean()) < 4 * np.sqrt(3 / 400)
    assert abs((gaussian**2).mean() - 1) < 4 * np.sqrt(2 / 400)
    assert (np.corrcoef(maxwell.ravel(), gaussian.ravel())[0, 1] > 0.5) == coupled


PAIRINGS = {
    "correlated": (
        MeasureValued(4),
        Gaussian.full(2),
        ELBO(),
        "Gaussian with the scale Full; use .*Gaussian.diagonal",
    ),
    "a mixture": (
        MeasureValued(4),
        Mixture([Gaussian.diagonal(2)]),
        ELBO(),
        "is known for Mixture",
    ),
    "no average": (
        MeasureValued(4),
        Gaussian.diagonal(2),
        Renyi(0.5),
        "Renyi is no average of such; use Score, or VRIWAE",
    ),
    "half a group": (MeasureValued(4), Gaussian.diagonal(2), IWELBO(3), "multiple of 3"),
}


@pytest.mark.parametrize(
    ("estimator", "q", "objective", "sentence"), PAIRINGS.values(), ids=PAIRINGS
)
def test_wrong_pairings_say_what_fits(estimator, q, objective, sentence):
    with pytest.raises(PairingError, match=sentence):
        estimator.check(TARGET, q, objective)


def test_evaluations_count_both_sides_of_both_parameters():
    assert MeasureValued(3).evaluations_per_step(TARGET) == 3 * (1 + 4 * 2)
    assert len(weak_derivatives(Gaussian.diagonal(2))) == 2
