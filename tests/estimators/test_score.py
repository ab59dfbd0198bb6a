"""Baselines of the score function estimator against closed forms of its variance.

Unbiasedness is the battery's business.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tightbound._numerics import to_device
from tightbound.estimators import Score
from tightbound.estimators.baselines import check_baseline
from tightbound.families import Gaussian, Mixture
from tightbound.objectives import ELBO, IWELBO, AbstractObjective, Fisher, Source, WakePhase
from tightbound.results import PairingError
from tightbound.testing import GaussianTarget

C = 1.5  # q = N(0, 1), f = (z - k)^2 with mu - k = C


class Mean(AbstractObjective):
    """E_q f, with f for log p."""

    drawn_from: ClassVar[Source] = Source.q

    def loss(self, draws):
        return draws.average(draws.log_p)


class Square(GaussianTarget):
    def log_density(self, z):
        return jnp.sum((z + C) ** 2)


SQUARE = Square(Gaussian.full(1))


def gradients(estimator, repeats=4000, objective=None, target=SQUARE, q=None, warm=0):
    """Gradients in (mean, log sd) at `repeats` keys, after `warm` steps that only move the
    estimator's state.
    """
    q = to_device(Gaussian.diagonal(1) if q is None else q)
    objective = Mean() if objective is None else objective
    state = to_device(estimator.prepare(target, q, jr.key(1)))

    @eqx.filter_jit
    def run(state, keys):
        for key in jr.split(jr.key(3), warm):
            state = estimator.surrogate(objective, target, q, state, key)[1]
        one = eqx.filter_grad(
            lambda q, key: estimator.surrogate(objective, target, q, state, key)[0]
        )
        return jax.vmap(lambda key: one(q, key))(keys)

    tree = run(state, jr.split(jr.key(2), repeats))
    return np.concatenate(
        [np.asarray(leaf).reshape(repeats, -1) for leaf in jax.tree.leaves(tree)], axis=1
    )


def variance_is(estimator, expected, **options):
    """Per draw, within 5 standard errors of a variance estimate (whose kurtosis is read from the
    sample).
    """
    sample = gradients(estimator, **options)
    sample = sample - sample.mean(0)
    error = np.sqrt((sample**4).mean(0) - (sample**2).mean(0) ** 2) / np.sqrt(len(sample))
    assert np.all(np.abs((sample**2).mean(0) - np.asarray(expected)) < 5 * error), (
        (sample**2).mean(0),
        expected,
        error,
    )


def with_baseline(b):
    """Variance of (f - b) s with s the score in (mu, log sd), by Gauss-Hermite quadrature."""
    t, w = np.polynomial.hermite_e.hermegauss(40)
    w = w / w.sum()
    f, scores = (t + C) ** 2, np.stack([t, t**2 - 1])
    raw = (f - np.broadcast_to(b, (2,))[:, None]) * scores
    return raw**2 @ w - (raw @ w) ** 2


def best_baseline():
    t, w = np.polynomial.hermite_e.hermegauss(40)
    scores = np.stack([t, t**2 - 1]) ** 2
    return (scores * (t + C) ** 2) @ w / (scores @ w)


def test_without_a_baseline_the_variance_is_that_of_the_closed_form():
    """c^4 + 14 c^2 + 15 and 2 c^4 + 60 c^2 + 74, from the moments of a Gaussian."""
    expected = [C**4 + 14 * C**2 + 15, 2 * C**4 + 60 * C**2 + 74]
    np.testing.assert_allclose(with_baseline(0.0), expected, rtol=1e-12)
    variance_is(Score(1, baseline="none"), expected, repeats=40_000)


def test_a_moving_average_learns_the_mean_of_f():
    estimator, q = Score(64, baseline="moving_average"), to_device(Gaussian.diagonal(1))
    state = to_device(estimator.prepare(SQUARE, q, jr.key(0)))
    for i in range(40):
        _, state = eqx.filter_jit(estimator.surrogate)(Mean(), SQUARE, q, state, jr.key(i))
    total, mass = state[1]
    # E f = 1 + C^2; its standard error at memory .9 and 64 draws: sqrt(Var f / 64 / 19), Var f = 2
    # + 4 C^2
    assert abs(total / mass - (1 + C**2)) < 4 * np.sqrt((2 + 4 * C**2) / 64 / 19)


def test_leave_one_out_has_the_variance_of_the_mean_as_baseline():
    """With many draws the others' mean is E f.

    Times n, the variance of a mean over n is that of one draw.
    """
    sample = gradients(Score(64), repeats=4000)
    np.testing.assert_allclose(64 * sample.var(0), with_baseline(1 + C**2), rtol=0.12)


def test_the_optimal_baseline_has_the_least_variance():
    least = with_baseline(best_baseline())
    assert np.all(least < 0.9 * with_baseline(1 + C**2))
    np.testing.assert_allclose(
        512 * gradients(Score(512, baseline="optimal"), repeats=2000).var(0), least, rtol=0.15
    )


@pytest.mark.parametrize("noise", ["independent", "sobol"])
def test_the_taylor_baseline_leaves_no_noise_for_a_quadratic(noise):
    """d/dmu E f = 2 c and d/dlog sd E f = 2 sd^2, from two draws."""
    sample = gradients(Score(2, baseline="taylor", noise=noise), repeats=20, warm=2)
    np.testing.assert_allclose(sample, np.broadcast_to([2 * C, 2.0], sample.shape), rtol=1e-10)


@pytest.mark.slow
def test_the_taylor_baseline_knows_the_covariance_of_a_low_rank_q():
    """On a Gaussian target the ELBO is quadratic: exact gradients."""
    target = GaussianTarget(
        Gaussian.from_root(np.array([1.0, 2.0]), np.array([[1.0, 0.0], [0.5, 2.0]]))
    )
    q = Gaussian.low_rank(2, 1)
    sample = gradients(Score(4, baseline="taylor"), repeats=4, objective=ELBO(), target=target, q=q)
    truth = eqx.filter_jit(eqx.filter_grad(lambda q: ELBO().exact(target, q)))(to_device(q))
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(truth)])
    np.testing.assert_allclose(sample, np.broadcast_to(flat, sample.shape), rtol=1e-8, atol=1e-10)


def test_wake_phase_gradients_are_the_self_normalised_ones():
    """-sum (w_i / sum w - 1/n) grad log q(z_i).

    By hand from the draws, in the mean of a standard normal, where grad = z.
    """
    target = GaussianTarget(Gaussian(np.array([1.0]), Gaussian.diagonal(1).scale))
    q, estimator = to_device(Gaussian.diagonal(1)), Score(6, baseline="none")

    def loss(q):
        return estimator.surrogate(WakePhase(), target, q, (None, None), jr.key(4))[0]

    gradient = eqx.filter_jit(eqx.filter_grad(loss))(q)
    z = np.asarray(jr.normal(jr.key(4), (6, 1)))[:, 0]
    share = np.exp(z) / np.exp(z).sum()  # log w = z - 1/2
    np.testing.assert_allclose(gradient.mean, [-np.sum((share - 1 / 6) * z)], rtol=1e-12)


def test_mixtures_are_fitted_by_their_weights_too():
    """d KL / d logit of a mixture of N(-1, 1) and N(1, 1) against N(1, 1), by quadrature.

    4 standard errors.
    """
    parts = [Gaussian.diagonal(1).moved(np.array([m])) for m in (-1.0, 1.0)]
    q, target = Mixture(parts), GaussianTarget(parts[1])
    sample = gradients(Score(16), objective=ELBO(), target=target, q=q)
    t, w = np.polynomial.legendre.leggauss(400)
    z, w = 12 * t[:, None], 12 * w
    each = np.exp(np.stack([part.log_prob_on_host(z) for part in parts]))
    mixture = each.mean(0)
    share = 0.5 * each / mixture - 0.5  # grad log q in the logits
    truth = (share * mixture * (np.log(mixture) - np.log(each[1]))) @ w
    error = sample.std(0) / np.sqrt(len(sample))
    assert np.all(np.abs(sample.mean(0)[-2:] - truth) < 4 * error[-2:])


ARGUMENTS = {
    "no such baseline": (
        lambda: check_baseline("mean", "independent"),
        "must be one of 'none', 'moving_average'",
    ),
    "draws that hang together": (lambda: Score(4, noise="sobol"), "would bias the gradient"),
}


@pytest.mark.parametrize(("make", "sentence"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_bad_arguments_are_named(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


PAIRINGS = {
    "nobody else": (Score(1), Gaussian.full(1), ELBO(), "n of at least 2, got 1"),
    "no other pair": (
        Score(2, noise="antithetic"),
        Gaussian.full(1),
        ELBO(),
        "n of at least 4, got 2",
    ),
    "no other group": (Score(4), Gaussian.full(1), IWELBO(4), "n of at least 8, got 4"),
    "no mean": (
        Score(4, baseline="taylor"),
        Mixture([Gaussian.full(1)]),
        ELBO(),
        "needs the mean and the covariance",
    ),
    "no single draw": (
        Score(4, baseline="taylor"),
        Gaussian.full(1),
        IWELBO(2),
        "IWELBO is no average",
    ),
    "no values": (Score(4, baseline="taylor"), Gaussian.full(1), Fisher(), "Fisher is no average"),
}


@pytest.mark.parametrize(
    ("estimator", "q", "objective", "sentence"), PAIRINGS.values(), ids=PAIRINGS
)
def test_wrong_pairings_say_what_fits(estimator, q, objective, sentence):
    with pytest.raises(PairingError, match=sentence):
        estimator.check(SQUARE, q, objective)
