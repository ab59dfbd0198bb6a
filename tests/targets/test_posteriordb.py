"""NumPyro models of nineteen real posteriors against densities written by hand
(../shared/data/posteriordb).
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound._numerics import x64

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "posteriordb"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/data.json"))

pytestmark = pytest.mark.skipif(not NAMES, reason=f"{FOLDER} is not on this machine")


@pytest.fixture(scope="module")
def by_hand():
    sys.path.insert(0, str(FOLDER))
    try:
        import models
        import numpyro_models
    finally:
        sys.path.remove(str(FOLDER))
    return models.POSTERIORS, numpyro_models.MODELS


@pytest.mark.parametrize("name", NAMES)
def test_differs_from_the_hand_written_density_by_a_constant(name, by_hand):
    posteriors, numpyro_models = by_hand
    posterior = posteriors[name]
    data = posterior.load(FOLDER)
    target = tb.from_numpyro(numpyro_models[name], data)
    assert target.dim == posterior.dim
    assert not target.returns_float32

    @jax.jit
    @jax.vmap
    def both(theta):
        values, log_det = posterior.unpack(theta)
        expected = posterior.log_density(theta, data) - log_det
        # written in u = beta1 / (1 - alpha1), whose density has one more factor
        if name.startswith("garch"):
            values = {**values, "u": values["beta1"] / (1 - values["alpha1"])}
            expected += jnp.log1p(-values["alpha1"])
        return target.log_joint(values), expected

    with x64():
        ours, expected = map(
            np.asarray, both(0.5 * np.random.default_rng(0).standard_normal((4, posterior.dim)))
        )
    difference = ours - expected
    assert np.ptp(difference) <= 1e-12 * np.abs(expected).max() + 1e-11
    # log 2 for each half-Cauchy and half-normal that the hand leaves out
    assert np.abs(difference).max() < 3
