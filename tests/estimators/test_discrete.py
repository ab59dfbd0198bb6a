"""Discrete latents.

Enumeration against sums by hand, Score and MeasureValued against it, Relaxed biased, Pathwise
refused.
"""

import itertools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tightbound import from_log_density
from tightbound._numerics import to_device
from tightbound.estimators import Enumerate, MeasureValued, Pathwise, Relaxed, Score
from tightbound.estimators.finite import Coordinates, coordinates
from tightbound.estimators.weak_derivatives import AbstractWeakDerivative, weak_derivatives
from tightbound.families import (
    AbstractFamily,
    Bernoulli,
    Categorical,
    Exponential,
    Gaussian,
    Normal,
    Poisson,
    Product,
)
from tightbound.objectives import ELBO, IWELBO, VRIWAE, ChiUpper, Fisher, Renyi, WakePhase
from tightbound.results import PairingError
from tightbound.testing import GaussianTarget


class Coins(AbstractFamily):
    """Two independent Bernoulli coordinates."""

    logits: jax.Array
    reparameterised: ClassVar = False
    dim: ClassVar = 2

    def _sample(self, key, x=None):
        return jr.bernoulli(key, jax.nn.sigmoid(self.logits)).astype(self.logits.dtype)

    def _log_prob(self, z, x=None):
        return jnp.sum(
            z * jax.nn.log_sigmoid(self.logits) + (1 - z) * jax.nn.log_sigmoid(-self.logits)
        )


class Faces(AbstractFamily):
    """A one-hot Categorical of three."""

    logits: jax.Array
    reparameterised: ClassVar = False
    dim: ClassVar = 3

    def _sample(self, key, x=None):
        return jax.nn.one_hot(jr.categorical(key, self.logits), 3, dtype=self.logits.dtype)

    def _log_prob(self, z, x=None):
        return z @ jax.nn.log_softmax(self.logits)


class Counts(AbstractFamily):
    """Poisson, one coordinate."""

    log_rate: jax.Array
    reparameterised: ClassVar = False
    dim: ClassVar = 1

    def _sample(self, key, x=None):
        return jr.poisson(key, jnp.exp(self.log_rate), (1,)).astype(self.log_rate.dtype)

    def _log_prob(self, z, x=None):
        return jnp.sum(
            z * self.log_rate - jnp.exp(self.log_rate) - jax.scipy.special.gammaln(z + 1)
        )


class CoinFlip(AbstractWeakDerivative):
    """d/dp E f = f(1) - f(0)."""

    def parameter(self, q):
        return jax.nn.sigmoid(q.logits)

    def constant(self, q):
        return jnp.ones(q.dim)

    def pair(self, q, normals, key, coupled):
        return jnp.ones(q.dim), jnp.zeros(q.dim)


class OneMore(AbstractWeakDerivative):
    """d/drate E f = E f(z + 1) - E f(z)."""

    def parameter(self, q):
        return jnp.exp(q.log_rate)

    def constant(self, q):
        return jnp.ones(q.dim)

    def pair(self, q, normals, key, coupled):
        first, second = jr.split(key)
        z = q._sample(first)
        return z + 1, z if coupled else q._sample(second)


@coordinates.register
def _(q: Coins):
    log_probs = jnp.stack([jax.nn.log_sigmoid(-q.logits), jax.nn.log_sigmoid(q.logits)], axis=1)
    return (Coordinates(jnp.array([[0.0], [1.0]]), log_probs),)


@coordinates.register
def _(q: Faces):
    return (Coordinates(jnp.eye(3), jax.nn.log_softmax(q.logits)[None, :]),)


@weak_derivatives.register
def _(q: Coins):
    return (CoinFlip(),)


@weak_derivatives.register
def _(q: Counts):
    return (OneMore(),)


class Table(GaussianTarget):
    """log p = a'z + b (sum z)^2, any z."""

    slope: np.ndarray = None

    def log_density(self, z):
        return jnp.dot(self.slope, z) + 0.7 * jnp.sum(z) ** 2


COINS, FACES, COUNTS = (
    Coins(np.array([0.3, -0.8])),
    Faces(np.array([0.1, -0.5, 0.9])),
    Counts(np.array([0.4])),
)
PAIR = Table(Gaussian.full(1), slope=np.array([0.5, -1.0]))
TRIPLE = Table(Gaussian.full(1), slope=np.array([0.5, -1.0, 0.2]))
POINTS = {2: list(itertools.product([0.0, 1.0], repeat=2)), 3: [list(row) for row in np.eye(3)]}
OBJECTIVES = (ELBO(), IWELBO(2), VRIWAE(0.5, 2), Renyi(0.5), ChiUpper(), WakePhase())


def surrogate(estimator, objective, target, q, key):
    return estimator.surrogate(
        objective, target, q, to_device(estimator.prepare(target, q, jr.key(0))), key
    )[0]


def gradients(estimator, objective, target, q, repeats=4000):
    one = eqx.filter_grad(lambda q, key: surrogate(estimator, objective, target, q, key))
    tree = eqx.filter_jit(jax.vmap(lambda key: one(to_device(q), key)))(
        jr.split(jr.key(7), repeats)
    )
    return np.asarray(jax.tree.leaves(tree)[0])


def by_hand(objective, target, q, z):
    """The loss as a sum over the support, in the words of the objective's own formula."""
    z = jnp.asarray(z)
    log_q = jax.vmap(q._log_prob)(z)
    log_w, prob = jax.vmap(target.log_density)(z) - log_q, jnp.exp(log_q)
    w, both = jnp.exp(log_w), prob[:, None] * prob[None, :]
    mean_of = lambda power: (  # noqa: E731
        jnp.sum(both * jnp.log((w[:, None] ** power + w[None, :] ** power) / 2)) / power
    )
    return {
        ELBO: lambda: -jnp.sum(prob * log_w),
        IWELBO: lambda: -mean_of(1.0),
        VRIWAE: lambda: -mean_of(0.5),
        Renyi: lambda: -jnp.log(jnp.sum(prob * w**0.5)) / 0.5,
        ChiUpper: lambda: 0.5 * jnp.log(jnp.sum(prob * w**2)),
        WakePhase: lambda: jnp.sum(prob * w * log_w) / jnp.sum(prob * w),
    }[type(objective)]()


@pytest.mark.parametrize(
    ("q", "target", "objectives"),
    [(COINS, PAIR, OBJECTIVES[:2]), (FACES, TRIPLE, OBJECTIVES)],
    ids=["coins", "faces"],
)
def test_enumeration_is_the_sum_by_hand(q, target, objectives):
    q = to_device(q)
    for objective in objectives:
        both = (
            eqx.filter_value_and_grad(
                lambda q, o=objective: surrogate(Enumerate(), o, target, q, jr.key(0))
            ),
            eqx.filter_value_and_grad(lambda q, o=objective: by_hand(o, target, q, POINTS[q.dim])),
        )
        (value, gradient), (expected, truth) = eqx.filter_jit(
            lambda q, both=both: [f(q) for f in both]
        )(q)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(gradient.logits, truth.logits, rtol=1e-10, atol=1e-14)


UNBIASED = (Score(8), MeasureValued(4))


@pytest.mark.parametrize("estimator", UNBIASED, ids=repr)
@pytest.mark.parametrize("objective", [ELBO(), IWELBO(2)], ids=repr)
def test_draws_have_the_mean_of_the_enumeration(estimator, objective):
    """Within 4 standard errors of 4,000 keys."""
    truth = eqx.filter_grad(lambda q: surrogate(Enumerate(), objective, PAIR, q, jr.key(0)))(
        to_device(COINS)
    ).logits
    sample = gradients(estimator, objective, PAIR, COINS)
    error = sample.std(0) / np.sqrt(len(sample))
    assert np.all(np.abs(sample.mean(0) - truth) < 4 * error)
    assert np.all(error < 0.02)


@pytest.mark.parametrize(
    ("q", "target", "straight_through"),
    [(COINS, PAIR, False), (FACES, TRIPLE, True)],
    ids=["relaxed", "straight through"],
)
def test_relaxed_gradients_are_biased_as_they_say(q, target, straight_through):
    """By more than 6 standard errors, and less so at a lower temperature where the backward pass is
    that of the forward one.
    """
    truth = eqx.filter_grad(lambda q: surrogate(Enumerate(), ELBO(), target, q, jr.key(0)))(
        to_device(q)
    ).logits
    off = []
    for temperature in (1.0, 0.2):
        sample = gradients(Relaxed(8, temperature, straight_through), ELBO(), target, q)
        error = sample.std(0) / np.sqrt(len(sample))
        off.append(np.abs(sample.mean(0) - truth))
        if temperature == 1.0:
            assert np.max(off[0] / error) > 6
    assert Relaxed().unbiased_for == ()
    if not straight_through:
        assert np.max(off[1]) < np.max(off[0])


def test_weak_derivatives_of_a_poisson():
    """E z^2 = r + r^2.

    d/dlog r of -(a E z + .7 E z^2) = -r (a + .7 (1 + 2r)), and of E log q by a long sum.
    """
    target = Table(Gaussian.full(1), slope=np.array([0.5]))

    def exact(q):
        return by_hand(ELBO(), target, q, np.arange(60.0)[:, None])

    truth = eqx.filter_grad(exact)(to_device(COUNTS)).log_rate
    sample = gradients(MeasureValued(4, coupled=False), ELBO(), target, COUNTS)
    error = sample.std(0) / np.sqrt(len(sample))
    assert np.all(np.abs(sample.mean(0) - truth) < 4 * error)
    assert np.all(error < 0.2)


PAIRINGS = {
    "jumps": (
        Pathwise(4),
        COINS,
        ELBO(),
        r"Coins cannot be reparameterised: .*Score, MeasureValued or Enumerate \(unb",
    ),
    "no finite support": (
        Enumerate(),
        COUNTS,
        ELBO(),
        "finite support, which Counts is not known to have; use Score",
    ),
    "no scores": (Enumerate(), COINS, Fisher(), "Fisher compares derivatives in z"),
    "too many": (Enumerate(), Coins(np.zeros(40)), ELBO(), "1.1e.12 points, more than 100,000"),
    "too many together": (Enumerate(), COINS, IWELBO(10), "1.05e.06 points"),
    "nothing to soften": (Relaxed(4), Gaussian.full(1), ELBO(), "use Pathwise"),
    "half a group": (Relaxed(4), COINS, IWELBO(3), "multiple of 3"),
    "scores of relaxed draws": (Relaxed(4), COINS, Fisher(), "Fisher compares derivatives in z"),
    "no normals": (
        Score(4, baseline="none", noise="sobol"),
        COINS,
        ELBO(),
        'use noise="independent"',
    ),
}


@pytest.mark.parametrize(
    ("estimator", "q", "objective", "sentence"), PAIRINGS.values(), ids=PAIRINGS
)
def test_wrong_pairings_say_what_fits(estimator, q, objective, sentence):
    with pytest.raises(PairingError, match=sentence):
        estimator.check(PAIR, q, objective)


def test_bad_arguments_are_named():
    for make, sentence in (
        (lambda: Relaxed(0), "`n` must be at least 1"),
        (lambda: Relaxed(4, temperature=0.0), "`temperature` must be positive"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()


# -- products of the library's own factors

MIXED = Product(
    b=Bernoulli(np.array([0.3, -0.8])),
    m=Normal(np.array([0.4]), 2.0),
    n=Poisson(np.array([1.5])),
    r=Exponential(np.array([0.7])),
)


def mixed_target():
    """log p = .5 n - r + m^2 + (sum b) n - .2 r m."""

    def log_density(v):
        return jnp.sum(
            0.5 * v["n"] - v["r"] - v["m"] ** 2 + jnp.sum(v["b"]) * v["n"] - 0.2 * v["r"] * v["m"]
        )

    example = {"b": np.zeros(2), "m": np.zeros(1), "n": np.ones(1), "r": np.ones(1)}
    return from_log_density(log_density, example, support={"r": "positive"})


def exact_mixed(q):
    rate, mean, precision = q["n"].rate[0], q["m"].mean[0], q["m"].precision[0]
    waiting = 1 / q["r"].rate[0]
    expected = (
        0.5 * rate
        - waiting
        - mean**2
        - 1 / precision
        + jnp.sum(jax.nn.sigmoid(q["b"].logits)) * rate
    )
    return -(expected - 0.2 * waiting * mean + q.entropy())


@pytest.mark.slow
def test_weak_derivatives_of_a_product_of_four_kinds(as_a_user):
    """Against the closed form of the ELBO, in every parameter.

    4,000 keys of 4 draws, 4 standard errors.
    """
    target = mixed_target()
    with jax.enable_x64(True):
        q, estimator = to_device(MIXED), MeasureValued(4)
        estimator.check(target, q, ELBO())

        def flat(tree):
            return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])

        truth = np.asarray(flat(eqx.filter_grad(exact_mixed)(q)))
        one = eqx.filter_grad(lambda q, key: estimator.surrogate(ELBO(), target, q, None, key)[0])
        sample = np.asarray(
            eqx.filter_jit(jax.vmap(lambda key: flat(one(q, key))))(jr.split(jr.key(8), 4000))
        )
    error = sample.std(0) / np.sqrt(len(sample))
    assert sample.shape == (4000, 6)
    assert np.all(np.abs(sample.mean(0) - truth) < 4 * error + 1e-12)
    assert np.all(error < 0.1)


def test_enumeration_of_a_product_of_coins_and_labels(as_a_user):
    """log p = table[c] + b1 b2 c: the ELBO by a loop over the 12 points."""
    table = np.array([0.3, -0.2, 0.9])

    def log_density(v):
        c = v["c"].astype(int)
        return jnp.asarray(table)[c] + v["b"][0] * v["b"][1] * v["c"]

    target = from_log_density(log_density, {"b": np.zeros(2), "c": 0.0})
    q = Product(b=Bernoulli(np.array([0.3, -0.8])), c=Categorical(np.array([0.1, 0.5, -0.4])))
    Enumerate().check(target, q, ELBO())
    with pytest.raises(PairingError, match="labels, with nothing in between"):
        Relaxed(4).check(target, q, ELBO())
    with jax.enable_x64(True):
        loss = eqx.filter_jit(Enumerate().surrogate)(ELBO(), target, to_device(q), None, jr.key(0))[
            0
        ]
    heads, labels = 1 / (1 + np.exp(-np.array([0.3, -0.8]))), np.exp([0.1, 0.5, -0.4])
    labels /= labels.sum()
    expected = 0.0
    for b1, b2, c in itertools.product([0, 1], [0, 1], range(3)):
        prob = np.prod(np.where([b1, b2], heads, 1 - heads)) * labels[c]
        expected += prob * (np.log(prob) - table[c] - b1 * b2 * c)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_pathwise_through_a_bernoulli_says_why():
    with pytest.raises(
        PairingError,
        match=r"factor 'b', a draw is a whole number.*Score, MeasureValued or Enumerate \(unb",
    ):
        Pathwise(4).check(mixed_target(), MIXED, ELBO())
