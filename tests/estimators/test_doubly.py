"""Doubly reparameterised gradients: coefficients by hand, and less noise than Pathwise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tightbound._numerics import to_device
from tightbound.estimators import DoublyReparam, Pathwise
from tightbound.estimators.gauss_hermite import tensor_rule
from tightbound.families import Diagonal, Gaussian
from tightbound.objectives import ELBO, IWELBO, VRIWAE, ChiUpper, Draws, Fisher, Renyi
from tightbound.results import PairingError
from tightbound.testing import GaussianTarget

TARGET = GaussianTarget(Gaussian(np.array([0.4]), Diagonal(np.array([-0.3]))), 0.8)
Q = Gaussian(np.array([-0.2]), Diagonal(np.array([0.2])))
COEFFICIENTS = {
    "IWELBO": (IWELBO(4), lambda share: share**2),
    "VRIWAE": (VRIWAE(0.3, 4), lambda share: 0.3 * share + 0.7 * share**2),
    "ELBO": (ELBO(), lambda share: 0.25 * jnp.ones_like(share)),
    "ChiUpper": (ChiUpper(), lambda share: -(2 * share**2 - share)),
}


@pytest.mark.parametrize(("objective", "coefficient"), COEFFICIENTS.values(), ids=COEFFICIENTS)
def test_coefficients_are_the_published_ones(objective, coefficient):
    """-sum c_i dlog w_i/dmean, with shares of w^(1 - alpha); Tucker et al. 2019, eq. 8.

    Daudel et al. 2023, theorem 2.
    """
    q, target = to_device(Q), to_device(TARGET)
    power = {"IWELBO": 1.0, "VRIWAE": 0.7, "ELBO": 0.0, "ChiUpper": 2.0}[type(objective).__name__]
    estimator = DoublyReparam(4)
    gradient = eqx.filter_jit(
        eqx.filter_grad(lambda q: estimator.surrogate(objective, target, q, None, jr.key(2))[0])
    )(q)
    z = q.mean[None, :] + q.sd[None, :] * jr.normal(jr.key(2), (4, 1))
    log_w = jax.vmap(lambda z: target.log_density(z) - q._log_prob(z))
    share = jax.nn.softmax(power * log_w(z))
    slope = (z[:, 0] - q.mean[0]) / q.sd[0] ** 2 - (
        z[:, 0] - target.gaussian.mean[0]
    ) / target.gaussian.sd[0] ** 2
    np.testing.assert_allclose(gradient.mean, [-jnp.sum(coefficient(share) * slope)], rtol=1e-10)


def sample(estimator, objective, repeats):
    q, target = to_device(Q), to_device(TARGET)
    one = eqx.filter_grad(lambda q, key: estimator.surrogate(objective, target, q, None, key)[0])
    tree = eqx.filter_jit(jax.vmap(lambda key: one(q, key)))(jr.split(jr.key(3), repeats))
    return np.stack([np.asarray(leaf)[:, 0] for leaf in jax.tree.leaves(tree)], axis=1)


def test_noise_falls_with_k_where_that_of_pathwise_does_not_beside_its_signal():
    """Signal to noise of the mean's gradient from k = 4 to 64 draws: up here.

    Down for Pathwise (Rainforth et al. 2018).
    """

    def ratio(estimator, k):
        gradients = sample(estimator(k), IWELBO(k), 1000)[:, 0]
        return abs(gradients.mean()) / gradients.std()

    assert ratio(DoublyReparam, 64) > 2 * ratio(DoublyReparam, 4)
    assert ratio(Pathwise, 64) < ratio(Pathwise, 4)


def test_a_loss_that_is_no_average_takes_all_draws_as_one_group():
    """The gradient of the Renyi bound with 512 draws, by quadrature; bias and 4 standard errors."""
    rule = tensor_rule(100, 1)

    def exact(q):
        z = q.mean[None, :] + q.sd[None, :] * jnp.asarray(rule.nodes)
        log_q = jax.vmap(q._log_prob)(z)
        return Renyi(0.5).loss(
            Draws(
                jax.vmap(TARGET.log_density)(z),
                log_q,
                log_weights=jnp.log(jnp.asarray(rule.weights)),
            )
        )

    truth = eqx.filter_jit(eqx.filter_grad(exact))(to_device(Q))
    gradients = sample(DoublyReparam(512), Renyi(0.5), 200)
    error = 4 * gradients.std(0) / np.sqrt(200) + 1 / 512
    assert np.all(np.abs(gradients.mean(0) - [truth.mean[0], truth.scale.log_sd[0]]) < error)


def test_scores_are_refused():
    with pytest.raises(PairingError, match="Fisher reads log_q, score_p, score_q; use Pathwise"):
        DoublyReparam(4).check(TARGET, Q, Fisher())
