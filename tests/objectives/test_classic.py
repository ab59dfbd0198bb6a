"""ELBO and IWELBO against closed forms."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from tightbound.families import Diagonal, Gaussian, kl
from tightbound.objectives import ELBO, IWELBO, Draws, KnownGaussian
from tightbound.targets.base import Density
from tightbound.testing import GaussianTarget

POSTERIOR = Gaussian.from_root(np.array([1.0, -2.0]), np.array([[1.0, 0.0], [0.7, 0.5]]))
TARGET = GaussianTarget(POSTERIOR, 3.0)


class KnowsItsMoments(Density):
    """A target that is no Gaussian but has a mean, a covariance and an evidence."""

    mean: ClassVar = np.zeros(2)
    cov: ClassVar = np.eye(2)
    log_evidence: ClassVar = 0.0
    dim = 2
    coordinate_names = ("a", "b")
    constrain = unconstrain = staticmethod(lambda z: z)

    def log_density(self, z):
        return -jnp.sum(jnp.abs(z))


def test_exact_elbo_is_the_evidence_less_the_kl():
    """log Z - ELBO = KL(q || posterior) to rounding.

    The identity that variational inference rests on.
    """
    q = Gaussian(np.array([0.5, 0.5]), Diagonal(np.array([0.3, -0.4])))
    np.testing.assert_allclose(
        TARGET.log_evidence + ELBO().exact(TARGET, q), kl(q, POSTERIOR), rtol=1e-14
    )
    np.testing.assert_allclose(ELBO().exact(TARGET, POSTERIOR), -3.0, atol=1e-14)


def test_exact_is_none_without_a_closed_form():
    assert not isinstance(KnowsItsMoments(), KnownGaussian)
    assert ELBO().exact(KnowsItsMoments(), POSTERIOR) is None
    assert IWELBO(5).exact(TARGET, POSTERIOR) is None


def test_iwelbo_of_one_is_the_elbo():
    draws = Draws(jnp.array([0.3, -2.0, 7.0]), jnp.array([1.0, 0.5, -1.0]))
    np.testing.assert_allclose(IWELBO(1).loss(draws), ELBO().loss(draws), rtol=1e-15)


def test_iwelbo_by_hand():
    log_w = np.log(np.array([1.0, 3.0, 2.0, 6.0]))
    expected = -(np.log(2.0) + np.log(4.0)) / 2
    np.testing.assert_allclose(
        IWELBO(2).loss(Draws(jnp.asarray(log_w), jnp.zeros(4))), expected, rtol=1e-15
    )


def test_iwelbo_ignores_draws_of_zero_density_in_a_group_that_has_others():
    draws = Draws(jnp.array([-jnp.inf, 0.0]), jnp.zeros(2))
    np.testing.assert_allclose(IWELBO(2).loss(draws), np.log(2.0), rtol=1e-15)


def test_draws_that_do_not_fill_a_group_are_refused():
    with pytest.raises(ValueError, match="multiple of 3, got 4"):
        IWELBO(3).loss(Draws(jnp.zeros(4), jnp.zeros(4)))


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        IWELBO(0)
