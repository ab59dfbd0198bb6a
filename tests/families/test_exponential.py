"""Exponential families against quadrature, enumeration, scipy, and the derivative of the
distribution function.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tightbound import families as F
from tightbound.estimators import Pathwise
from tightbound.objectives import ELBO
from tightbound.results import PairingError
from tightbound.targets import from_log_density

RNG = np.random.default_rng(3)
ROOT = RNG.standard_normal((2, 2, 2))
PRECISIONS = ROOT @ np.swapaxes(ROOT, -1, -2) + 0.5 * np.eye(2)

MEMBERS = {
    "Gamma": F.Gamma(1.7, 0.4),
    "InverseGamma": F.InverseGamma(3.0, 2.0),
    "Exponential": F.Exponential(2.5),
    "Beta": F.Beta(0.8, 2.5),
    "Dirichlet": F.Dirichlet(np.array([[0.7, 2.0, 4.0], [3.0, 1.0, 9.0]])),
    "Bernoulli": F.Bernoulli(0.7),
    "Categorical": F.Categorical(np.array([0.3, -1.0, 2.0])),
    "Poisson": F.Poisson(3.4),
    "Normal": F.Normal(1.5, 4.0),
    "MultivariateNormal": F.MultivariateNormal(np.array([1.0, -2.0]), PRECISIONS[0]),
    "Wishart": F.Wishart(6.5, PRECISIONS[0]),
    "NormalWishart": F.NormalWishart(np.array([1.0, 2.0]), np.array([0.5, 3.0]), 7.0, PRECISIONS),
    "VonMises": F.VonMises(0.9, 1.8),
    "DiscreteMarkovChain": F.DiscreteMarkovChain(
        RNG.standard_normal((4, 3)), RNG.standard_normal((3, 3, 3))
    ),
}


# -- densities of other libraries ------------------------------------------------------------------

SCIPY = {
    "Gamma": (F.Gamma(1.7, 0.4), scipy.stats.gamma(1.7, scale=2.5), [0.3, 5.0]),
    "InverseGamma": (F.InverseGamma(3.0, 2.0), scipy.stats.invgamma(3.0, scale=2.0), [0.3, 5.0]),
    "Beta": (F.Beta(0.8, 2.5), scipy.stats.beta(0.8, 2.5), [0.2, 0.7]),
    "VonMises": (F.VonMises(0.9, 1.8), scipy.stats.vonmises(1.8, loc=0.9), [-2.0, 1.0]),
    "Normal": (F.Normal(1.5, 4.0), scipy.stats.norm(1.5, 0.5), [-1.0, 2.0]),
}


@pytest.mark.parametrize("name", SCIPY)
def test_density_is_scipys(name):
    q, law, points = SCIPY[name]
    assert np.allclose(q.log_prob(np.array(points)[:, None]), law.logpdf(points), rtol=1e-12)
    assert np.isclose(q.entropy(), law.entropy(), rtol=1e-9)


def test_densities_on_simplex_and_matrices_are_scipys():
    z, precision = np.array([0.2, 0.3, 0.5]), np.array([[2.0, 0.3], [0.3, 1.0]])
    a = np.array([0.7, 2.0, 4.0])
    assert np.isclose(F.Dirichlet(a).log_prob(z), scipy.stats.dirichlet(a).logpdf(z), rtol=1e-12)
    law = scipy.stats.wishart(6.5, np.linalg.inv(PRECISIONS[0]))
    assert np.isclose(
        F.Wishart(6.5, PRECISIONS[0]).log_prob(precision.ravel()), law.logpdf(precision), rtol=1e-10
    )
    assert np.isclose(F.Wishart(6.5, PRECISIONS[0]).entropy(), law.entropy(), rtol=1e-10)
    q = F.NormalWishart(np.ones(2), 0.5, 6.5, PRECISIONS[0])
    mu = np.array([0.3, 1.9])
    expected = law.logpdf(precision) + scipy.stats.multivariate_normal(
        np.ones(2), np.linalg.inv(0.5 * precision)
    ).logpdf(mu)
    assert np.isclose(
        q.log_prob(q.flat({"mean": mu, "precision": precision})), expected, rtol=1e-10
    )


def test_outside_the_support_the_density_is_zero_and_its_gradient_finite():
    outside = {
        "Gamma": [-1.0],
        "Beta": [1.5],
        "Poisson": [2.5],
        "Categorical": [3.0],
        "VonMises": [4.0],
        "Bernoulli": [2.0],
    }
    for name, point in outside.items():
        assert MEMBERS[name].log_prob(np.array(point)) == -np.inf
    assert F.Dirichlet(np.ones(3)).log_prob(np.array([0.5, 0.5, 0.5])) == -np.inf
    assert np.isfinite(jax.grad(lambda z: MEMBERS["Gamma"]._log_prob(z))(jnp.array([-1.0]))).all()


# -- forward-backward
# --------------------------------------------------------------------------------------------------


def test_the_chains_mean_parameters_are_forward_backward():
    """Against the table of all 3^4 paths; and against the textbook recursions."""
    q = MEMBERS["DiscreteMarkovChain"]
    paths = np.array(list(itertools.product(range(3), repeat=4)))
    log_w = np.array(
        [q.unary[range(4), p].sum() + q.pair[range(3), p[:-1], p[1:]].sum() for p in paths]
    )
    assert np.isclose(q.log_partition(), scipy.special.logsumexp(log_w), rtol=1e-12)
    w = np.exp(log_w - scipy.special.logsumexp(log_w))
    marginals = np.stack([np.bincount(paths[:, t], w, 3) for t in range(4)])
    assert np.allclose(q.mean_parameters.marginals, marginals, atol=1e-12)
    pair = np.zeros((3, 3))
    np.add.at(pair, (paths[:, 1], paths[:, 2]), w)
    assert np.allclose(q.mean_parameters.pairs[1], pair, atol=1e-12)
    backward = np.zeros((4, 3))
    for t in (2, 1, 0):
        backward[t] = scipy.special.logsumexp(q.pair[t] + q.unary[t + 1] + backward[t + 1], axis=1)
    forward = [q.unary[0]]
    for t in range(3):
        forward.append(
            q.unary[t + 1] + scipy.special.logsumexp(forward[-1][:, None] + q.pair[t], axis=0)
        )
    assert np.allclose(
        np.exp(np.array(forward) + backward - q.log_partition()), marginals, atol=1e-12
    )


# -- draws that are smooth in the parameters -------------------------------------------------------


def test_the_gammas_implicit_derivative_is_that_of_the_inverse_distribution_function(key):
    """dz/da at fixed u = F(z; a), by central differences of scipy's gammaincinv."""
    shapes = np.array([0.6, 1.7, 30.0])
    for shape in shapes:
        z, slope = jax.value_and_grad(lambda a: F.Gamma(a, 1.0)._sample(key)[0])(jnp.asarray(shape))
        u, h = scipy.special.gammainc(shape, float(z)), 1e-5 * shape
        numeric = (
            scipy.special.gammaincinv(shape + h, u) - scipy.special.gammaincinv(shape - h, u)
        ) / (2 * h)
        assert np.isclose(slope, numeric, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "low", "high"), [(F.Beta, 0.0, 1.0), (F.InverseGamma, 0.0, np.inf)]
)
def test_pathwise_derivative_is_that_of_the_integral(family, low, high, key):
    """d/da E[log(1 + z)].

    The mean over 20,000 draws within 4 standard errors of the derivative of the quadrature.
    """
    a, b, laws = (
        2.2,
        1.6,
        {F.Beta: scipy.stats.beta, F.InverseGamma: lambda a, b: scipy.stats.invgamma(a, scale=b)},
    )

    def expectation(a):
        return scipy.integrate.quad(
            lambda z: np.log1p(z) * laws[family](a, b).pdf(z), low, high, epsabs=1e-12
        )[0]

    truth = (expectation(a + 1e-4) - expectation(a - 1e-4)) / 2e-4
    slope = jax.grad(lambda a, k: jnp.log1p(family(a, b)._sample(k)[0]))
    each = np.asarray(
        jax.jit(jax.vmap(slope, (None, 0)))(jnp.asarray(a), jax.random.split(key, 20_000))
    )
    assert abs(each.mean() - truth) < 4 * each.std() / np.sqrt(len(each))


@pytest.mark.parametrize(
    "name", ["Bernoulli", "Categorical", "Poisson", "VonMises", "DiscreteMarkovChain"]
)
def test_pathwise_gradients_of_what_jumps_are_refused(name):
    q = MEMBERS[name]
    assert not q.reparameterised
    assert "jumps" in q.smooth_draws_no
    with pytest.raises(
        PairingError, match=f"{name} cannot be reparameterised: .*jumps.*Score.*Enumerate"
    ):
        Pathwise(2).check(
            from_log_density(lambda p: -jnp.sum(p["z"] ** 2), {"z": np.zeros(q.dim)}), q, ELBO()
        )


# -- conversions -----------------------------------------------------------------------------------


def test_extreme_mean_parameters_are_converted_back():
    hard = [
        F.Gamma(np.array([1e-3, 1e6]), 2.0),
        F.Dirichlet(np.array([[1e-2, 1.0, 300.0], [1e4, 1e4, 1e-1]])),
        F.Beta(np.array([1e-2, 5e4]), 3.0),
        F.Wishart(np.array([1.05, 1e5]), PRECISIONS),
        F.VonMises(1.0, np.array([1e-3, 1e4])),
        F.Poisson(np.array([1e-6, 1e4])),
    ]
    for q in hard:
        back = type(q).from_mean(q.mean_parameters)
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(q), strict=True):
            # a gap of 1e-6 carries ten digits, and less
            assert np.allclose(a, b, rtol=2e-4), type(q).__name__


def test_poisson_entropy_where_the_sum_becomes_a_series():
    for rate in (0.3, 50.0, 159.0, 161.0, 2000.0):
        assert np.isclose(F.Poisson(rate).entropy(), scipy.stats.poisson(rate).entropy(), rtol=1e-9)


def test_gaussians_in_natural_form_are_the_gaussian(key):
    q = F.Gaussian.from_root(np.array([1.0, -1.0]), np.array([[1.0, 0.0], [0.6, 0.5]]))
    p = F.Gaussian.full(2)
    natural = F.MultivariateNormal.from_gaussian(q)
    z = np.array([0.3, 0.2])
    assert np.isclose(natural.log_prob(z), q.log_prob(z))
    assert np.allclose(natural.gaussian().cov, q.cov)
    assert np.isclose(natural.kl(F.MultivariateNormal.from_gaussian(p)), F.kl(q, p))
    diagonal = F.Gaussian.diagonal(2).moved(np.array([1.0, 2.0]), np.array([0.5, 3.0]))
    assert np.isclose(F.Normal.from_gaussian(diagonal).log_prob(z), diagonal.log_prob(z))
    assert np.isclose(F.Normal.from_gaussian(diagonal).gaussian().log_prob(z), diagonal.log_prob(z))


# -- products --------------------------------------------------------------------------------------


def product():
    return F.Product(
        mu=F.Normal(np.zeros(2), 1.0),
        tau=F.Gamma(2.0, 3.0),
        z=F.Categorical(RNG.standard_normal((5, 3))),
        local=("z",),
    )


def test_a_product_is_the_sum_of_its_factors(key):
    q = product()
    assert (q.dim, q.num_rows, list(q.globals.factors)) == (8, 5, ["mu", "tau"])
    z, log_q = q.draw(3, key)
    values = q.values(z)
    assert values["mu"].shape == (3, 2)
    assert values["z"].shape == (3, 5)
    assert np.array_equal(q.flat(values), z)
    parts = [q[name].log_prob(q[name].flat(values[name])) for name in q.factors]
    assert np.allclose(log_q, sum(parts))
    assert np.isclose(q.entropy(), sum(q[name].entropy() for name in q.factors))
    assert np.isclose(q.entropy(scale=2.0), q.entropy() + q["z"].entropy())
    assert not q.reparameterised
    assert q.globals.reparameterised
    assert q.take(np.array([1, 3]))["z"].plate == (2,)
    assert np.isclose(
        q.kl(q.with_factor("tau", F.Gamma(2.5, 3.0))), F.Gamma(2.0, 3.0).kl(F.Gamma(2.5, 3.0))
    )


# -- bad input -------------------------------------------------------------------------------------

BAD = {
    "`rate` must be positive": lambda: F.Gamma(1.0, [1.0, -2.0]),
    "plate. do not fit together": lambda: F.Gamma(np.ones(3), np.ones(2)),
    "`concentration` must have at least 1 axes": lambda: F.Dirichlet(2.0),
    "symmetric and positive definite": lambda: F.Wishart(3.0, -np.eye(2)),
    "`df` must exceed d - 1 = 1": lambda: F.Wishart(1.0, np.eye(2)),
    "disagree in size": lambda: F.MultivariateNormal(np.ones(3), np.eye(2)),
    "no factors": lambda: F.Product(),
    "which is not a factor": lambda: F.Product(mu=F.Normal(0.0, 1.0), local=("nu",)),
    "has no plate": lambda: F.Product(mu=F.Normal(0.0, 1.0), local=("mu",)),
    "plates of one length": lambda: F.Product(
        a=F.Normal(np.zeros(2), 1.0), b=F.Normal(np.zeros(3), 1.0), local=("a", "b")
    ),
    "between members of one family": lambda: F.Gamma(1.0, 1.0).kl(F.Beta(1.0, 1.0)),
    "shapes differ": lambda: F.Gamma(1.0, 1.0).kl(F.Gamma(np.ones(2), 1.0)),
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_input_is_named(sentence):
    with pytest.raises((ValueError, PairingError), match=sentence):
        BAD[sentence]()


def test_a_factor_must_be_of_an_exponential_family():
    with pytest.raises(
        PairingError,
        match="the factor 'mu' must be a member of an exponential family.*got Gaussian",
    ):
        F.Product(mu=F.Gaussian.full(2))
