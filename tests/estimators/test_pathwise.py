"""Noise and pairings of the pathwise estimators; the battery tests that they are unbiased."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import kstest

from tightbound._numerics import to_device
from tightbound.estimators import Pathwise, StickTheLanding
from tightbound.estimators.draws import draw, prepare_noise
from tightbound.families import AbstractFamily, Gaussian
from tightbound.objectives import ELBO, IWELBO
from tightbound.results import PairingError
from tightbound.testing import GaussianTarget

TARGET = GaussianTarget(
    Gaussian.from_root(np.array([1.0, 2.0]), np.array([[1.0, 0.0], [0.5, 2.0]]))
)
NOISES = ("independent", "antithetic", "sobol")


class Exponential(AbstractFamily):
    """A family with draws that are no function of standard normals, here of two independent
    coordinates.
    """

    log_rate: jax.Array

    @property
    def dim(self):
        return 2

    def _sample(self, key, x=None):
        return jr.exponential(key, (2,), self.dtype) * jnp.exp(-self.log_rate)

    def _log_prob(self, z, x=None):
        return jnp.sum(self.log_rate - jnp.exp(self.log_rate) * z)


class Falling(GaussianTarget):
    """log p = -(z1 + z2)."""

    def log_density(self, z):
        return -jnp.sum(z)


class Rounded(Exponential):
    reparameterised = False


def gradients(estimator, q, objective=None, repeats=400, target=TARGET):
    """Gradients at `repeats` keys, as `[repeats, P]`."""
    q, state = to_device(q), estimator.prepare(target, q, jr.key(1))
    objective = ELBO() if objective is None else objective
    one = eqx.filter_grad(
        lambda q, key: estimator.surrogate(objective, to_device(target), q, state, key)[0]
    )
    tree = eqx.filter_jit(jax.vmap(lambda key: one(q, key)))(jr.split(jr.key(2), repeats))
    return np.concatenate(
        [np.asarray(leaf).reshape(repeats, -1) for leaf in jax.tree.leaves(tree)], axis=1
    )


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("noise", NOISES)
def test_every_draw_is_standard_normal_and_a_group_is_independent(noise, group):
    """KS test per position over 2,000 keys.

    Correlations within a group of zero (standard error .022).
    """
    q = to_device(Gaussian.full(2))
    points = prepare_noise(noise, 8, q, jr.key(3))
    z = jax.vmap(lambda key: draw(q, noise, points, 8, group, key))(jr.split(jr.key(4), 2000))
    for position in range(8):
        for coordinate in range(2):
            assert kstest(z[:, position, coordinate], "norm").pvalue > 1e-4
    grouped = np.asarray(z).reshape(2000, 8 // group, group, 2)
    for i in range(1, group):
        assert abs(np.mean(grouped[:, :, 0, 0] * grouped[:, :, i, 0])) < 4 * 0.022


def test_antithetic_noise_leaves_none_in_the_mean_of_a_gaussian_target():
    noise = gradients(Pathwise(8, noise="antithetic"), Gaussian.full(2))[:, :2]
    assert noise.std(0).max() < 1e-12


def test_sobol_noise_has_less_variance_than_independent_noise():
    plain, sobol = (
        gradients(Pathwise(64, noise=noise), Gaussian.full(2)).var(0).sum()
        for noise in ("independent", "sobol")
    )
    assert sobol < plain / 20


def test_pathwise_noise_remains_at_the_optimum_where_stick_the_landing_has_none():
    assert gradients(Pathwise(8), TARGET.gaussian).std(0).max() > 0.1
    assert np.abs(gradients(StickTheLanding(8), TARGET.gaussian)).max() < 1e-12


def test_variance_falls_with_the_number_of_draws():
    """As 1/n; a ratio of two variance estimates from 2,000 keys has a relative error of .045."""
    few, many = (gradients(Pathwise(n), Gaussian.diagonal(2), repeats=2000).var(0) for n in (2, 32))
    np.testing.assert_allclose(few / many, 16.0, rtol=0.2)


def test_same_key_same_bits():
    estimator = Pathwise(4, noise="sobol")
    assert np.array_equal(
        gradients(estimator, Gaussian.full(2), repeats=3),
        gradients(estimator, Gaussian.full(2), repeats=3),
    )


def test_families_without_normal_noise_use_their_own_draws():
    """E log p of an exponential under an exponential.

    d/d log rate of E[-z] + entropy = 1/rate - 1, at rate 2: -1/2.
    """
    q = Exponential(np.log(np.array([2.0, 2.0])))
    estimates = gradients(Pathwise(8), q, repeats=2000, target=Falling(Gaussian.full(2)))
    error = estimates.std(0) / np.sqrt(2000)
    assert np.all(np.abs(estimates.mean(0) - 0.5) < 4 * error)


def test_evaluations_are_the_draws():
    assert Pathwise(12).evaluations_per_step(TARGET) == 12


BAD_ARGUMENTS = {
    "odd pairs": (lambda: Pathwise(3, noise="antithetic"), "must be even, got 3"),
    "sobol of 6": (lambda: StickTheLanding(6, noise="sobol"), "powers of 2"),
    "none": (lambda: Pathwise(0), "`n` must be at least 1"),
}


@pytest.mark.parametrize(("make", "sentence"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments_are_named(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


PAIRINGS = {
    "a group that 8 draws do not fill": (
        Pathwise(8),
        Gaussian.full(2),
        IWELBO(5),
        "multiple of 5 independent draws, got n=8",
    ),
    "pairs inside a group": (
        Pathwise(4, noise="antithetic"),
        Gaussian.full(2),
        IWELBO(4),
        "multiple of 8 antithetic",
    ),
    "no normal noise": (
        Pathwise(4, noise="sobol"),
        Exponential(np.zeros(2)),
        ELBO(),
        'use noise="independent"',
    ),
    "draws that do not move": (
        Pathwise(4),
        Rounded(np.zeros(2)),
        ELBO(),
        "Use Score, MeasureValued or Enumerate",
    ),
    "too many coordinates": (
        Pathwise(4, noise="sobol"),
        Gaussian.diagonal(30_000),
        ELBO(),
        "at most 21201 coordinates",
    ),
}


@pytest.mark.parametrize(
    ("estimator", "q", "objective", "sentence"), PAIRINGS.values(), ids=PAIRINGS
)
def test_wrong_pairings_say_what_fits(estimator, q, objective, sentence):
    with pytest.raises(PairingError, match=sentence):
        estimator.check(TARGET, q, objective)


def test_noise_that_a_family_does_not_have_is_refused_by_the_family_too():
    with pytest.raises(PairingError, match="not a function of standard normal noise"):
        Exponential(np.zeros(2))._from_noise(np.zeros(2))
