"""Expected forward KL against its closed form, and what the softmax-weighted loss really is."""

import jax.numpy as jnp
import numpy as np
import pytest

from tightbound.objectives import ELBO, IWELBO, Draws, ForwardKL, SoftmaxWeighted, Source


def test_forward_kl_is_the_mean_negative_log_density():
    rng = np.random.default_rng(0)
    z = rng.standard_normal(200_000)  # p = N(0, 1), q = N(0.5, 1.5^2): cross entropy in closed form
    log_q = -0.5 * ((z - 0.5) / 1.5) ** 2 - np.log(1.5) - 0.5 * np.log(2 * np.pi)
    exact = 0.5 * np.log(2 * np.pi) + np.log(1.5) + 0.5 * (1 + 0.25) / 2.25
    assert ForwardKL().loss(Draws(None, jnp.asarray(log_q))) == pytest.approx(
        exact, abs=4 * log_q.std() / len(z) ** 0.5
    )
    assert ForwardKL().drawn_from is Source.joint
    assert ForwardKL().needs == ("log_q",)


def log_weights(sd, n, k, seed=0):
    """log p/q at draws of q = N(0, sd^2), p = N(0, 1) exactly: log Z = 0."""
    z = sd * np.random.default_rng(seed).standard_normal((n, k))
    return -0.5 * z**2 - (-0.5 * (z / sd) ** 2 - np.log(sd))


def loss(objective, log_w):
    return float(objective.loss(Draws(jnp.asarray(log_w.ravel()), jnp.zeros(log_w.size))))


def test_with_one_draw_the_softmax_weighted_loss_is_the_elbo():
    log_w = log_weights(1.3, 50, 1)
    assert loss(SoftmaxWeighted(1), log_w) == pytest.approx(loss(ELBO(), log_w), abs=1e-12)


def test_with_many_draws_it_rewards_a_worse_q():
    """Its limit is -log Z - KL(p || q) = -KL(N(0, 1) || N(0, sd^2)), below the value at q = p,
    which is zero.
    """
    sd = 1.5
    forward = np.log(sd) + 0.5 / sd**2 - 0.5
    values = [loss(SoftmaxWeighted(20_000), log_weights(sd, 1, 20_000, seed)) for seed in range(20)]
    assert np.mean(values) == pytest.approx(-forward, abs=4 * np.std(values) / 20**0.5 + 1e-3)
    assert np.mean(values) < -0.05
    assert loss(SoftmaxWeighted(100), log_weights(1.0, 3, 100)) == pytest.approx(0.0, abs=1e-12)
    assert loss(IWELBO(100), log_weights(sd, 200, 100)) > 0  # while a bound stays on its side


def test_it_needs_a_draw():
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        SoftmaxWeighted(0)
