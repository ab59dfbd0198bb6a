"""Every family passes its battery; families broken on purpose fail it.

FAMILIES: name -> a function that makes (member, its check). Adding a family is one line.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import tightbound as tb
from tightbound import families as F
from tightbound.families import Diagonal, Full, Gaussian, LowRank
from tightbound.families.nested import NestedGaussian
from tightbound.families.nested_pair import NestedGaussianPair
from tightbound.targets.conjugate.base import layout_of
from tightbound.testing import (
    check_conditional,
    check_empirical,
    check_exponential_family,
    check_family,
    check_product,
)

RNG = np.random.default_rng(3)
HALF = RNG.standard_normal((2, 2, 2))
PRECISIONS = HALF @ np.swapaxes(HALF, -1, -2) + 0.5 * np.eye(2)
BENT = Gaussian.from_root(np.array([1.0, 2.0]), np.array([[2.0, 0.0], [1.0, 0.5]]))
XS = (np.array([0.5, -3.0, 2.0]), np.array([-1.0, 0.0, 4.0]))


def nested():
    knots = np.linspace(-4.0, 4.0, 17)
    means, roots = 0.3 * knots[:, None] ** 2, np.exp(0.2 * knots)[:, None, None] * np.ones((1, 1))
    return NestedGaussian.through(0, knots, -0.5 * knots**2, means, roots)


def nested_pair():
    """On a lattice of 9 x 9 knots.

    An independent normal pair, and one more coordinate that follows both.
    """
    lattice = np.stack(
        np.meshgrid(np.linspace(-4.0, 4.0, 9), np.linspace(-4.0, 4.0, 9), indexing="ij"), axis=-1
    )
    profile, means = -0.5 * np.sum(lattice**2, axis=-1), 0.3 * lattice[..., :1] * lattice[..., 1:]
    roots = np.exp(0.2 * lattice[..., 0])[..., None, None] * np.ones((1, 1))
    axes = np.array([[1.0, 0.0], [0.4, 0.8]])
    return NestedGaussianPair.through(
        (0, 2), np.zeros(2), axes, np.array([-4.0, -4.0]), 1.0, profile, means, roots
    )


def flow():
    """Two layers of narrow splines, bent away from the Gaussian that they start at."""
    pytest.importorskip("flowjax", reason="the extra for flows is not installed")
    start = F.Flow.around(BENT, layers=2, width=2, knots=3)
    weights = start.weights + 0.1 * np.random.default_rng(1).standard_normal(start.weights.shape)
    return F.Flow(start.base, weights, start.layers, start.width, start.knots)


def transported():
    """A normal and a waiting time on (0, inf), seen from R^2."""
    product = F.Product(m=F.Normal(0.4, 2.0), r=F.Exponential(0.7))
    return F.Transported(product, layout_of(product))


@functools.cache
def network(seeds):
    """For a linear Gaussian simulator: at its start already a posterior for any x."""
    mix = np.array([[1.0, 0.5], [0.0, 2.0], [1.0, -1.0]])
    with jax.numpy_rank_promotion("allow"):
        target = tb.from_simulator(
            lambda key: {"a": jnp.array([1.0, -2.0]) + jr.normal(key, (2,))},
            lambda key, p: mix @ p["a"] + 0.5 * jr.normal(key, (3,)),
        )
        return tb.amortised.amortised(target, width=4, depth=1, seeds=seeds)


def empirical():
    return F.Empirical(np.random.default_rng(0).standard_normal((3, 10, 2)))


# Gamma draws compile for seconds; their derivatives are compared with those of the distribution
# function in tests/families/test_exponential.py.
native = functools.partial(check_exponential_family, gradients=False)
at_data = functools.partial(check_conditional, xs=XS)

FAMILIES = {
    # on R^dim
    "Gaussian diagonal 1": lambda: (
        Gaussian(np.array([0.7]), Diagonal(np.array([-1.0]))), check_family),
    "Gaussian diagonal 2": lambda: (
        Gaussian(np.array([1.0, -3.0]), Diagonal(np.array([1.0, -0.5]))), check_family),
    "Gaussian full 1": lambda: (Gaussian(np.array([0.7]), Full(np.array([[0.4]]))), check_family),
    "Gaussian full 2": lambda: (
        Gaussian.from_root(np.array([5.0, 0.0]), np.array([[2.0, 0.0], [0.9, 0.5]])), check_family),
    "Gaussian full 4": lambda: (
        Gaussian.from_root(np.arange(4.0), np.random.default_rng(1).standard_normal((4, 4))),
        check_family),
    "Gaussian low rank 2": lambda: (
        Gaussian(np.array([1.0, 2.0]), LowRank(np.array([[0.8], [-0.6]]), np.array([-0.3, 0.2]))),
        check_family),
    "Gaussian low rank 4": lambda: (
        Gaussian(
            np.zeros(4), LowRank(np.random.default_rng(2).standard_normal((4, 2)), np.zeros(4))),
        check_family),
    "Mixture 2": lambda: (
        F.Mixture(
            [Gaussian.full(2), Gaussian.full(2).moved(np.array([2.0, 1.0]), 0.5)],
            np.array([0.3, -0.3])),
        check_family),
    "NestedGaussian 2": lambda: (nested(), check_family),
    "NestedGaussianPair 3": lambda: (nested_pair(), check_family),
    "StudentT full 2": lambda: (
        F.StudentT.around(
            Gaussian.from_root(np.array([5.0, 0.0]), np.array([[2.0, 0.0], [0.9, 0.5]])), 6.0),
        check_family),
    "Warped 2": lambda: (
        F.Warped(BENT, np.array([0.4, -0.2]), np.array([0.1, -0.2])), check_family),
    "Flow 2": lambda: (flow(), functools.partial(check_family, draws=1000)),
    "Transported 2": lambda: (transported(), check_family),
    # on native values
    "Gamma": lambda: (F.Gamma(1.7, 0.4), native),
    "InverseGamma": lambda: (F.InverseGamma(3.0, 2.0), native),
    "Exponential": lambda: (F.Exponential(2.5), check_exponential_family),
    "Beta": lambda: (F.Beta(0.8, 2.5), native),
    "Dirichlet plate": lambda: (
        F.Dirichlet(np.array([[0.7, 2.0, 4.0], [3.0, 1.0, 9.0]])), native),
    "Bernoulli": lambda: (F.Bernoulli(0.7), check_exponential_family),
    "Categorical": lambda: (
        F.Categorical(np.array([0.3, -1.0, 2.0])), check_exponential_family),
    "Poisson": lambda: (F.Poisson(3.4), check_exponential_family),
    "Normal": lambda: (F.Normal(1.5, 4.0), check_exponential_family),
    "MultivariateNormal": lambda: (
        F.MultivariateNormal(np.array([1.0, -2.0]), PRECISIONS[0]), check_exponential_family),
    "Wishart": lambda: (F.Wishart(6.5, PRECISIONS[0]), native),
    "NormalWishart plate": lambda: (
        F.NormalWishart(np.array([1.0, 2.0]), np.array([0.5, 3.0]), 7.0, PRECISIONS), native),
    "VonMises": lambda: (F.VonMises(0.9, 1.8), check_exponential_family),
    "DiscreteMarkovChain": lambda: (
        F.DiscreteMarkovChain(
            np.random.default_rng(4).standard_normal((4, 3)),
            np.random.default_rng(5).standard_normal((3, 3, 3))),
        check_exponential_family),
    "Product": lambda: (
        F.Product(b=F.Bernoulli(0.3), m=F.Normal(0.4, 2.0), r=F.Exponential(0.7)), check_product),
    "Product of plates": lambda: (
        F.Product(mu=F.Normal(np.zeros(2), 1.0), z=F.Categorical(np.eye(3)), local=("z",)),
        check_product),
    # given data
    "Conditional": lambda: (network(1), at_data),
    "Ensemble": lambda: (network(2), at_data),
    "Conditioned": lambda: (network(1).at(XS[0]), check_family),
    # without a density
    "Empirical": lambda: (empirical(), check_empirical),
}  # fmt: skip


# the compiler takes some fifteen seconds for the inverses of its splines
SLOW = {"Flow 2"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAMILIES]
)
def test_family(name, key):
    member, check = FAMILIES[name]()
    check(member, key=key)


# -- negative controls


class Tampered(F.AbstractFamily):
    """A standard normal of two coordinates with one thing wrong."""

    inner: Gaussian
    fault: str = eqx.field(static=True)

    @property
    def dim(self):
        return 2

    def _sample(self, key, x=None):
        z = self.inner._sample(key)
        if self.fault == "stopped draws":  # the gradient through the draws is lost
            return jax.lax.stop_gradient(z)
        return z * 1.15 if self.fault == "draws too wide" else z

    def _log_prob(self, z, x=None):
        return self.inner._log_prob(z) + (0.05 if self.fault == "normalisation" else 0.0)

    def retract(self, step):
        extra = 0.1 if self.fault == "a step of zero moves" else 0.0
        moved = eqx.apply_updates(self.inner, step.inner)
        return Tampered(Gaussian(moved.mean + extra, moved.scale), self.fault)

    def entropy(self):
        return self.inner.entropy() + (0.3 if self.fault == "entropy" else 0.0)


FAULTS = {
    "normalisation": "integrates to 1.05",
    "draws too wide": "does not follow the density|disagree",
    "stopped draws": "pathwise and score-function gradients",
    "entropy": "`entropy` is not the mean",
    "a step of zero moves": "`retract` of a zero step",
}


@pytest.mark.parametrize(("fault", "sentence"), FAULTS.items(), ids=FAULTS)
def test_family_battery_catches(fault, sentence, key):
    with pytest.raises(AssertionError, match=sentence):
        check_family(Tampered(Gaussian.full(2), fault), key)


def test_family_battery_passes_the_same_family_untampered(key):
    check_family(Tampered(Gaussian.full(2), ""), key)


class Shifted(F.Gamma):
    """A gamma whose A is off by a function of the shape, as if its base measure were forgotten."""

    @classmethod
    def _log_partition(cls, eta):
        return F.Gamma._log_partition(eta) + 0.1 * eta.log


def test_exponential_battery_catches_a_wrong_log_partition(key):
    q = object.__new__(Shifted)
    object.__setattr__(q, "shape", np.array(1.7))
    object.__setattr__(q, "rate", np.array(0.4))
    with pytest.raises(AssertionError, match="is not grad A"):
        check_exponential_family(q, key)


class Coupled(F.Product):
    """A product with a term that two factors share."""

    def _log_prob(self, z, x=None):
        return F.Product._log_prob(self, z) + 0.01 * z[0]


def test_product_battery_catches_a_density_that_is_no_product(key):
    broken = Coupled(b=F.Bernoulli(0.3), m=F.Normal(0.4, 2.0))
    with pytest.raises(AssertionError, match="not the sum of those of the factors|mean of -log q"):
        check_product(broken, key)


class Unscaled(F.Conditional):
    """The density of standardised z, which forgets what standardising it does to a volume."""

    def _log_prob(self, z, x=None):
        return self.head.log_prob(self.eta(x), self._standard(z)) + 0.1


class Deaf(F.Conditional):
    """The same posterior whatever the data."""

    def eta(self, x):
        return F.Conditional.eta(self, jax.tree.map(jnp.zeros_like, x))


@pytest.mark.parametrize(
    ("kind", "sentence"), [(Unscaled, "integrates to"), (Deaf, "ignores x")], ids=["scale", "deaf"]
)
def test_conditional_battery_catches(kind, sentence, key):
    q = network(1)
    with pytest.raises(AssertionError, match=sentence):
        check_conditional(kind(q.encoder, q.head, q.scaling), XS, key)


class Forgetful(F.Empirical):
    """The last chain is never drawn."""

    def _sample(self, key, x=None):
        return jnp.asarray(self.flat)[jr.randint(key, (), 0, len(self.flat) - self.draws.shape[1])]


def test_empirical_battery_catches_draws_that_are_left_out(key):
    with pytest.raises(AssertionError, match="prefers some of the draws"):
        check_empirical(Forgetful(empirical().draws), key)
