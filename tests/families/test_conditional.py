"""Amortised families: scaling, conditioning, ensembles, and the start at a regression."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import tightbound as tb
from tightbound.amortised import encoders, heads
from tightbound.families import Conditional, Conditioned, Ensemble, Scaling
from tightbound.results import PairingError

MIX = np.array([[1.0, 0.5], [0.0, 2.0], [1.0, -1.0]])


@pytest.fixture(scope="module")
def target():
    """Linear and Gaussian: z ~ N((1, -2), diag(1, 9)), x = M z + 0.5 noise."""
    with jax.numpy_rank_promotion("allow"):
        return tb.from_simulator(
            lambda key: {
                "a": jnp.array([1.0, -2.0]) + jnp.array([1.0, 3.0]) * jr.normal(key, (2,))
            },
            lambda key, p: MIX @ p["a"] + 0.5 * jr.normal(key, (3,)),
        )


def posterior(x):
    precision = np.diag([1.0, 1 / 9]) + MIX.T @ MIX / 0.25
    cov = np.linalg.inv(precision)
    return cov @ (np.diag([1.0, 1 / 9]) @ [1.0, -2.0] + MIX.T @ x / 0.25), cov


@pytest.fixture(scope="module")
def network(target):
    return tb.amortised.amortised(target, width=4, depth=1)


def test_the_start_is_the_posterior_of_a_linear_gaussian_model(network):
    x = np.array([0.5, -3.0, 2.0])
    mean, cov = posterior(x)
    start = Conditional(network.encoder, network.head, network.scaling)
    # but for the network, whose last layer starts at a tenth, and the 2,048 pilot draws
    got, sd = start.at(x).moments
    np.testing.assert_allclose(sd, np.sqrt(np.diag(cov)), rtol=0.1)
    assert np.all(np.abs(got - mean) < 0.5 * np.sqrt(np.diag(cov)))


def test_ensemble_is_the_mixture_of_its_members(target):
    q = tb.amortised.amortised(target, width=4, depth=1, seeds=2)
    assert isinstance(q, Ensemble)
    x, z = np.array([0.5, -3.0, 2.0]), np.array([1.0, -1.0])
    each = [m.log_prob(z, x) for m in q.members]
    assert each[0] != each[1]
    assert q.log_prob(z, x) == pytest.approx(np.logaddexp(*each) - np.log(2), abs=1e-10)
    again = Ensemble.stack(q.members)
    assert again.log_prob(z, x) == q.log_prob(z, x)
    assert isinstance(q.at(x), Conditioned)


def test_heavy_tails_are_squashed_and_light_ones_are_not(target):
    rng = np.random.default_rng(0)
    a = rng.standard_normal(1000)
    heavy = tb.from_simulations({"a": a}, a[:, None] + rng.standard_cauchy((1000, 2)))
    assert tb.amortised.amortised(heavy, width=4).scaling.squash
    assert not tb.amortised.amortised(target, width=4).scaling.squash


def test_scaling_leaves_angles_alone_and_may_be_switched_off():
    rng = np.random.default_rng(0)
    table = {"angle": rng.uniform(-3, 3, 500), "b": 5 + 2 * rng.standard_normal(500)}
    target = tb.from_simulations(
        table, table["b"][:, None] * [1.0, 2.0], support={"angle": "circular"}
    )
    q = tb.amortised.amortised(target, width=4)
    assert isinstance(q.head, heads.Product)
    assert q.head.circular == (True, False)
    assert q.scaling.z_shift[0] == 0
    assert q.scaling.z_scale[1] == pytest.approx(2, rel=0.1)
    plain = tb.amortised.amortised(target, width=4, standardise=False)
    np.testing.assert_array_equal(plain.scaling.z_scale, 1.0)


@pytest.mark.slow
def test_the_encoder_follows_the_shape_of_x():
    rng, a = np.random.default_rng(0), np.random.default_rng(1).standard_normal(300)
    picture = tb.from_simulations({"a": a}, a[:, None, None] + rng.standard_normal((300, 12, 12)))
    assert isinstance(tb.amortised.amortised(picture, width=4).encoder, encoders.ConvNet)
    rows = tb.from_simulations({"a": a}, a[:, None] + rng.standard_normal((300, 12)))
    assert isinstance(tb.amortised.amortised(rows, width=4).encoder, encoders.MLP)
    assert isinstance(
        tb.amortised.amortised(rows, encoder="deep_sets", width=4).encoder, encoders.DeepSets
    )


WRONG = {
    "shape": (
        lambda q, t: q.at(np.zeros(4)),
        ValueError,
        "has shape (4,), but q was trained on (3,)",
    ),
    "structure": (lambda q, t: q.at({"x": np.zeros(3)}), ValueError, "`x` has the structure"),
    "no x": (lambda q, t: q.sample(0), ValueError, "condition it first: fit.at(x)"),
    "head": (
        lambda q, t: tb.amortised.amortised(t, "student"),
        ValueError,
        "`head` must be one of",
    ),
    "encoder": (
        lambda q, t: tb.amortised.amortised(t, encoder="rnn"),
        ValueError,
        "`encoder` must be one of",
    ),
    "dimension": (
        lambda q, t: tb.amortised.amortised(t, heads.Gaussian(3)),
        ValueError,
        "`head` has 3 coordinates, the target 2",
    ),
    "no simulator": (
        lambda q, t: tb.amortised.amortised(tb.targets.zoo.eight_schools().target),
        PairingError,
        "the ability `simulator`",
    ),
}


@pytest.mark.parametrize(("do", "kind", "sentence"), WRONG.values(), ids=WRONG)
def test_what_cannot_work_is_explained(do, kind, sentence, network, target):
    with pytest.raises(kind) as caught:
        do(network, target)
    assert sentence in str(caught.value)


def test_no_scaling_is_none():
    scaling = Scaling.none({"a": np.zeros(2), "b": np.zeros(())}, 3)
    np.testing.assert_array_equal(
        scaling.standardise({"a": jnp.array([1.0, 5.0]), "b": jnp.array(2.0)})["a"], [1.0, 5.0]
    )
