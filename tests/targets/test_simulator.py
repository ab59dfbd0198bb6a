"""Simulators: draws, supports, angles, and every wrong input with its sentence."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats

import tightbound as tb
from tightbound.results import PairingError


def prior(key):
    a, b = jr.split(key)
    return {"scale": jr.exponential(a), "angle": jr.uniform(b, (), float, 0.0, 2 * jnp.pi)}


def simulate(key, params):
    return params["scale"] * jnp.cos(params["angle"]) + jr.normal(key, (2,))


SUPPORT = {"scale": "positive", "angle": "circular"}


@pytest.fixture(scope="module")
def target():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return tb.from_simulator(
            prior,
            simulate,
            support=SUPPORT,
            log_prior=lambda p: -p["scale"],
            log_likelihood=lambda p, x: -0.5 * jnp.sum((x - p["scale"] * jnp.cos(p["angle"])) ** 2),
        )


def test_draws_are_unconstrained_and_angles_stay_angles(target):
    assert target.coordinate_names == ("angle", "scale")
    assert target.circular == (True, False)
    z, x = jax.vmap(target.draw)(jr.split(jr.key(0), 4000))
    assert x.shape == (4000, 2)
    assert np.abs(z[:, 0]).max() <= np.pi
    assert (
        scipy.stats.kstest(np.asarray(z[:, 0]), scipy.stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue
        > 1e-4
    )
    scale = np.asarray(jax.vmap(lambda z: target.constrain(z)["scale"])(z))
    assert scipy.stats.kstest(scale, "expon").pvalue > 1e-4


def test_angles_wrap_and_come_back(target):
    z = target.unconstrain({"angle": 4.0, "scale": 2.0})
    assert z[0] == pytest.approx(4.0 - 2 * np.pi)
    values = target.constrain(z + np.array([2 * np.pi, 0.0]))
    assert values["angle"] == pytest.approx(4.0 - 2 * np.pi)
    assert values["scale"] == pytest.approx(2.0)


def test_the_posterior_at_data_is_prior_times_likelihood_times_jacobian(target):
    x, z = np.array([0.3, -1.0]), np.array([0.5, 0.2])
    scale = target.constrain(z)["scale"]
    assert scale == pytest.approx(np.exp(0.2), abs=1e-12)
    mean = scale * np.cos(0.5)
    expected = -scale - 0.5 * np.sum((x - mean) ** 2) + 0.2  # scale = exp(0.2): its log-Jacobian
    assert target.at(x).log_density(z) == pytest.approx(float(expected), abs=1e-10)


def test_stored_simulations_are_the_ones_given():
    rng = np.random.default_rng(0)
    scale = rng.exponential(size=300)
    stored = tb.from_simulations(
        {"scale": scale}, {"y": scale[:, None] + 1.0}, support={"scale": "positive"}
    )
    z, x = stored.take(jnp.array([3, 7]))
    np.testing.assert_allclose(
        [float(stored.constrain(v)["scale"]) for v in z], scale[[3, 7]], rtol=1e-7
    )
    np.testing.assert_allclose(x["y"][:, 0], scale[[3, 7]] + 1.0)
    drawn, _ = stored.draw(jr.key(0))
    assert np.min(np.abs(np.asarray(stored.z) - drawn)) == 0


def test_python_floats_and_integers_are_numbers(as_a_user):
    target = tb.from_simulator(
        lambda key: {"a": jr.normal(key)},
        lambda key, p: [2.0, jr.poisson(key, jnp.exp(p["a"])), p["a"] + jr.normal(key)],
    )
    _, x = target.draw(jr.key(0))
    assert [leaf.dtype.kind for leaf in x] == ["f", "f", "f"]


normal = lambda key: {"a": jr.normal(key)}  # noqa: E731
noisy = lambda key, p: p["a"] + jr.normal(key)  # noqa: E731
calls = []


def growing(key, params):
    calls.append(1)
    return jnp.zeros(len(calls)) + jr.normal(key)


BAD = {
    "prior ignores its key": (
        lambda: tb.from_simulator(lambda key: {"a": 1.0}, noisy),
        "`draw_prior` returned the same 'a'",
    ),
    "simulator ignores its key": (
        lambda: tb.from_simulator(normal, lambda key, p: p["a"] ** 2),
        "it ignores its key",
    ),
    "NaN": (
        lambda: tb.from_simulator(normal, lambda key, p: jnp.log(p["a"] - 3 + 0 * jr.normal(key))),
        "NaN or infinity in",
    ),
    "NaN in the prior": (
        lambda: tb.from_simulator(lambda key: {"a": jnp.log(jr.normal(key))}, noisy),
        "returned NaN or infinity for 'a'",
    ),
    "varying shapes": (lambda: tb.from_simulator(normal, growing), "different shapes in two calls"),
    "NumPy": (
        lambda: tb.from_simulator(
            normal, lambda key, p: np.random.default_rng(0).normal(float(p["a"]))
        ),
        "tb.from_simulations",
    ),
    "nothing": (lambda: tb.from_simulator(normal, lambda key, p: None), "is its `return` missing"),
    "a name": (lambda: tb.from_simulator(normal, lambda key, p: p["b"]), "raised KeyError: 'b'"),
    "support": (
        lambda: tb.from_simulator(normal, noisy, support={"a": "positive"}),
        "which is outside its support 'positive'",
    ),
    "support of nobody": (
        lambda: tb.from_simulator(normal, noisy, support={"b": "circular"}),
        "`support` names 'b'",
    ),
    "likelihood": (
        lambda: tb.from_simulator(normal, noisy, log_likelihood=lambda p, x: x[None]),
        "is one number in nats",
    ),
    "too few": (
        lambda: tb.from_simulations({"a": np.zeros(50)}, np.zeros(50)),
        "too few to learn from",
    ),
    "lengths": (
        lambda: tb.from_simulations({"a": np.zeros(200)}, np.zeros(201)),
        "leading axes differ",
    ),
    "ragged": (
        lambda: tb.from_simulations({"a": np.zeros(2)}, [np.zeros(3), np.zeros(4)]),
        "must be padded to the longest",
    ),
    "stored support": (
        lambda: tb.from_simulations({"a": -np.ones(200)}, np.zeros(200), support={"a": "positive"}),
        "outside its support",
    ),
}


@pytest.mark.parametrize(("make", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_is_explained(make, sentence, as_a_user):
    with pytest.raises(tb.TargetError, match=sentence):
        make()


def test_a_few_draws_with_nan_do_no_harm(as_a_user):
    tb.from_simulator(
        normal, lambda key, p: jnp.where(p["a"] > 1.5, jnp.nan, p["a"]) + jr.normal(key)
    )


def test_without_densities_data_cannot_be_fixed(as_a_user):
    with pytest.raises(PairingError, match="needs `log_prior`"):
        tb.from_simulator(normal, noisy).at(1.0)
