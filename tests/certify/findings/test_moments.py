"""What q still wants to move, and what the weights correct: closed forms of Gaussians."""

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.certify.finding import Verdict
from tightbound.certify.fitted import Pair
from tightbound.families.gaussian import Gaussian

pytestmark = pytest.mark.usefixtures("as_a_user")

STANDARD = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(3)})
STANDARD_2 = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(2)})


def gaussian(mean=0.0, sd=1.0, dim=3):
    return Gaussian.from_root(np.full(dim, float(mean)), sd * np.eye(dim))


def test_converged_measures_the_natural_gradient_in_sds():
    """q = N(0.3, 1) for a standard normal: the ELBO pulls each mean back by 0.3 sd exactly."""
    certificate = tb.check(Pair(gaussian(mean=0.3), STANDARD), key=2)
    assert certificate["converged"].value == pytest.approx(
        0.3, abs=4 * certificate["converged"].stderr + 0.01
    )


@pytest.mark.parametrize(
    ("sd", "verdict"),
    [(0.1, Verdict.FAIL), (0.85, Verdict.CAUTION), (1.0, Verdict.PASS), (2.0, Verdict.FAIL)],
)
def test_converged_measures_the_pull_on_each_sd(sd, verdict):
    """q = N(0, sd^2) for a standard normal.

    d ELBO / d log sd = 1 - sd^2, though no mean wants to move.
    """
    finding = tb.check(Pair(gaussian(sd=sd, dim=2), STANDARD_2), key=2)["converged"]
    assert finding.verdict is verdict
    if verdict is not Verdict.PASS:
        assert finding.value == pytest.approx(abs(1 - sd**2), abs=4 * finding.stderr)


def test_moments_measures_the_correction():
    """q = N(0, 0.9^2): the weights multiply each sd by 1 / 0.9."""
    certificate = tb.check(Pair(gaussian(sd=0.85), STANDARD), key=3)
    ratios = np.exp(certificate["moments"].detail.log_sd_ratio)
    np.testing.assert_allclose(ratios, 1 / 0.85, rtol=0.05)
