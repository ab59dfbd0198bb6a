"""Draws of the model: unbiased gradients, NaN left out, stored simulations split, and refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import tightbound as tb
from tightbound.estimators import FromModel
from tightbound.families import Gaussian
from tightbound.objectives import ELBO, ForwardKL
from tightbound.results import PairingError


@pytest.fixture(scope="module")
def target():
    return tb.from_simulator(
        lambda key: {"a": jr.normal(key)}, lambda key, p: 2 * p["a"] + jr.normal(key)
    )


@pytest.fixture(scope="module")
def q(target):
    return tb.amortised.amortised(target, "diagonal", width=1, depth=0, standardise=False)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_closed_form(target, q):
    """eta = (m, a) = W x + V x + b.

    E (a z - m)^2 / 2 - log a over (z, x) jointly normal, with a held constant in x.
    """
    linear = q.encoder.linear
    weight, bias = np.array([[0.7], [0.0]]), np.array([0.2, 1.5])
    q = eqx.tree_at(
        lambda q: (q.encoder.linear.weight, q.encoder.linear.bias, q.encoder.last.weight),
        q,
        (weight, bias, np.zeros_like(q.encoder.last.weight)),
    )
    assert linear.weight.shape == (2, 1)
    estimator = FromModel(500)

    def gradient(key):
        def value(q):
            return estimator.surrogate(ForwardKL(), target, q, estimator_state, key)[0]

        found = eqx.filter_grad(value)(q).encoder.linear
        return jnp.concatenate([found.weight[0], found.bias])

    estimator_state = estimator.prepare(target, q, jr.key(9))
    rows = np.asarray(jax.jit(jax.vmap(gradient))(jr.split(jr.key(0), 200)))
    # e = a z - w x - b with Var z = 1, Var x = 5, Cov = 2: d/dw = -E[e x], d/db = -E[e], d/da = E[e
    # z] - 1/a
    exact = np.array([-(1.5 * 2 - 0.7 * 5), 0.2, 1.5 - 0.7 * 2 - 1 / 1.5])
    np.testing.assert_array_less(
        np.abs(rows.mean(axis=0) - exact), 4 * rows.std(axis=0) / len(rows) ** 0.5
    )


def test_draws_with_nan_are_left_out_and_the_rest_is_the_conditional_law():
    target = tb.from_simulator(
        lambda key: {"a": jr.normal(key)},
        lambda key, p: jnp.where(p["a"] > 0.5, jnp.nan, p["a"]) + 0.01 * jr.normal(key),
    )
    estimator = FromModel(2000)
    state = estimator.prepare(target, None, jr.key(0))
    assert np.isfinite(state.held_x).all()
    z, x = estimator.batch(target, state, jr.key(1), np.float64)
    assert z.shape == (2000, 1)
    assert np.isfinite(x).all()
    # mean of N(0, 1) below 0.5
    truncated = -np.exp(-0.125) / np.sqrt(2 * np.pi) / 0.6914624612740131
    assert float(z.mean()) == pytest.approx(truncated, abs=4 * float(z.std()) / 1000**0.5)


def test_stored_simulations_are_split_and_never_mixed():
    a = np.arange(300.0)
    target = tb.from_simulations({"a": a}, a[:, None])
    state = FromModel(64).prepare(target, None, jr.key(0))
    train, held = set(np.asarray(state.train_z)[:, 0]), set(np.asarray(state.held_z)[:, 0])
    assert len(held) == 30
    assert not train & held
    assert train | held == set(a)
    z, x = FromModel(64).batch(target, state, jr.key(1), np.float64)
    assert set(np.asarray(z)[:, 0]) <= train
    np.testing.assert_array_equal(z[:, 0], x[:, 0])


def test_wrong_pairings_are_refused(target, q):
    with pytest.raises(PairingError, match="does not depend on data"):
        FromModel().check(target, Gaussian.full(1), ForwardKL())
    with pytest.raises(PairingError, match="ELBO is an expectation under q"):
        FromModel().check(target, q, ELBO())
    with pytest.raises(PairingError, match="the ability `simulator`"):
        FromModel().check(tb.targets.zoo.eight_schools().target, q, ForwardKL())
    with pytest.raises(ValueError, match="`held_out` must be an integer of at least 100"):
        FromModel(held_out=5)
