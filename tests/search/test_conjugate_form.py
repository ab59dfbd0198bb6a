"""Conjugacy found in NumPyro models, against closed forms and the same model written by hand.

Refusals that name the site.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from scipy.special import betaln, gammaln

import tightbound as tb
from tightbound import families as F
from tightbound import targets as T
from tightbound._numerics import x64
from tightbound.loop import run
from tightbound.objectives import ELBO
from tightbound.results import PairingError
from tightbound.search.conjugate_form import as_conjugate
from tightbound.solvers import CoordinateAscent, Gibbs

RNG = np.random.default_rng(2)
COUNTS, HITS, TABLE = np.array([3.0, 5.0, 2.0]), np.array([4.0, 7.0]), np.array([5.0, 10.0, 5.0])
X = RNG.standard_normal((20, 2))
Y = X @ np.array([1.0, -2.0]) + RNG.standard_normal(20)
GROUP = np.repeat(np.arange(4), 5)
VALUES = RNG.normal(np.repeat(RNG.normal(0.0, 3.0, 4), 5), 1.0)


def pieces():
    """Gamma-Poisson, beta-binomial, Dirichlet-multinomial, inverse gamma-normal and
    linear-Gaussian, side by side.
    """
    rate = numpyro.sample("rate", dist.Gamma(2.0, 0.5))
    numpyro.sample("counts", dist.Poisson(rate).expand([3]), obs=COUNTS)
    p = numpyro.sample("p", dist.Beta(2.0, 3.0))
    numpyro.sample("hits", dist.Binomial(10, p), obs=HITS)
    shares = numpyro.sample("shares", dist.Dirichlet(np.array([1.0, 2.0, 0.5])))
    numpyro.sample("table", dist.Multinomial(20, shares), obs=TABLE)
    variance = numpyro.sample("variance", dist.InverseGamma(3.0, 2.0))
    numpyro.sample("centred", dist.Normal(0.0, jnp.sqrt(variance)), obs=VALUES[:5])
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([2]))
    numpyro.sample("y", dist.Normal(X @ beta, 1.0), obs=Y)


def hierarchy(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    lam, tau = (
        numpyro.sample("lam", dist.Gamma(1.0, 1.0)),
        numpyro.sample("tau", dist.Gamma(1.0, 1.0)),
    )
    with numpyro.plate("groups", 4):
        theta = numpyro.sample("theta", dist.Normal(mu, 1.0 / jnp.sqrt(lam)))
    numpyro.sample("y", dist.Normal(theta[GROUP], 1.0 / jnp.sqrt(tau)), obs=y)


def ascend(target, solver=None):
    with x64():
        solver = CoordinateAscent() if solver is None else solver
        q = solver.own_start(target, 0, None)
        return run(
            target,
            q,
            solver.default_objective(),
            solver,
            key=0,
            tol=1e-6,
            budget=tb.Budget(),
            max_steps=1000,
        )


@pytest.mark.slow
def test_posteriors_and_evidence_are_exact_where_the_sites_are_independent(as_a_user):
    ran = ascend(tb.from_numpyro(pieces))
    q = ran.q
    assert np.allclose([q["rate"].shape, q["rate"].rate], [2 + COUNTS.sum(), 0.5 + 3], rtol=1e-8)
    assert np.allclose([q["p"].a, q["p"].b], [2 + HITS.sum(), 3 + 20 - HITS.sum()], rtol=1e-8)
    assert np.allclose(q["shares"].concentration, np.array([1.0, 2.0, 0.5]) + TABLE, rtol=1e-8)
    centred = VALUES[:5]
    assert np.allclose(
        [q["variance"].shape, q["variance"].scale],
        [3 + 2.5, 2 + 0.5 * (centred**2).sum()],
        rtol=1e-8,
    )
    precision = np.eye(2) / 4 + X.T @ X
    assert np.allclose(q["beta"].precision, precision, rtol=1e-7)
    assert np.allclose(q["beta"].mean, np.linalg.solve(precision, X.T @ Y), rtol=1e-8)
    evidence = scipy.stats.multivariate_normal(np.zeros(20), np.eye(20) + 4 * X @ X.T).logpdf(Y)
    evidence += scipy.stats.nbinom(2, 0.5 / 1.5).logpmf(COUNTS[0]) + scipy.stats.nbinom(
        5, 1.5 / 2.5
    ).logpmf(COUNTS[1])
    evidence += scipy.stats.nbinom(10, 2.5 / 3.5).logpmf(COUNTS[2])
    choose = gammaln(11) - gammaln(HITS + 1) - gammaln(11 - HITS)
    evidence += choose.sum() + betaln(2 + HITS.sum(), 23 - HITS.sum()) - betaln(2, 3)
    evidence += scipy.stats.dirichlet_multinomial(np.array([1.0, 2.0, 0.5]), 20).logpmf(
        TABLE.astype(int)
    )
    evidence += scipy.stats.multivariate_t(np.zeros(5), np.eye(5) * 2 / 3, df=6).logpdf(centred)
    assert np.isclose(-ran.trace.loss[-1], evidence, rtol=1e-8)


@pytest.mark.slow
def test_a_hierarchy_is_the_one_written_by_hand(as_a_user):
    """Same factors, same ELBO as tb.targets.HierarchicalNormal with the same priors.

    Indexing finds each row's group.
    """
    found = ascend(tb.from_numpyro(hierarchy, VALUES))
    by_hand = T.HierarchicalNormal(
        VALUES, GROUP, mu=F.Normal(0.0, 0.01), lam=F.Gamma(1.0, 1.0), tau=F.Gamma(1.0, 1.0)
    )
    written = ascend(by_hand)
    assert np.isclose(found.trace.loss[-1], written.trace.loss[-1], rtol=1e-9)
    for name in ("mu", "lam", "tau", "theta"):
        for a, b in zip(found.q[name].natural, written.q[name].natural, strict=True):
            assert np.allclose(a, b, rtol=1e-4)


def half_normal(y):
    mu, sd = (
        numpyro.sample("mu", dist.Normal(0.0, 10.0)),
        numpyro.sample("sd", dist.HalfNormal(1.0)),
    )
    numpyro.sample("y", dist.Normal(mu, sd), obs=y)


def logistic(y):
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]))
    numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def ordered(y):
    cuts = numpyro.sample("cuts", dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,)))
    numpyro.sample("y", dist.Normal(cuts[0] - cuts[1], 1.0), obs=y)


REFUSED = {
    "site 'sd': log p of its own prior is not affine in the statistics .log, value. of a Gamma": (
        half_normal,
        VALUES,
    ),
    "site 'beta': .*log p of the site 'y' is not affine.*of a MultivariateNormal": (
        logistic,
        (Y > 0).astype(float),
    ),
    "site 'cuts': no conjugate family is known on its support 'ordered'": (ordered, VALUES),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_is_not_conjugate_is_named(sentence, as_a_user):
    model, data = REFUSED[sentence]
    with pytest.raises(PairingError, match=sentence):
        as_conjugate(tb.from_numpyro(model, data))


def test_the_form_is_found_once(as_a_user):
    target = tb.from_numpyro(
        lambda y: numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal()), 1.0), obs=y),
        Y,
    )
    assert as_conjugate(target) is as_conjugate(target)
    fit = tb.fit(target, solver=CoordinateAscent())  # from the model alone
    assert np.isclose(fit.q["mu"].mean, Y.sum() / 21, rtol=1e-10)
    assert np.isclose(
        fit.elbo.value,
        scipy.stats.multivariate_normal(np.zeros(20), np.eye(20) + 1).logpdf(Y),
        rtol=1e-9,
    )


# -- Gibbs, from the same conditionals
# ---------------------------------------------------------------------------------


def test_gibbs_draws_have_the_posteriors_moments():
    """Of a normal sample against quadrature, to four Monte Carlo errors (the chains are nearly
    independent draws).
    """
    x = np.random.default_rng(0).normal(2.0, 3.0, 12)
    target = T.NormalSample(x, mean=F.Normal(0.0, 0.1), precision=F.Gamma(2.0, 5.0))
    ran = ascend(target, Gibbs(chains=4, warmup=100, draws=1100))
    mu, log_tau = np.asarray(ran.q.flat)[:, 0], np.asarray(ran.q.flat)[:, 1]
    m, t = np.linspace(-4, 8, 301), np.exp(np.linspace(-5, 2, 301))
    squares = ((x - m[:, None]) ** 2).sum(axis=1)[:, None]
    # on the log scale
    log_p = -0.05 * m[:, None] ** 2 + (1 + 6) * np.log(t) - t * (5.0 + 0.5 * squares) + np.log(t)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    for draws, values in ((mu, m[:, None]), (log_tau, np.log(t)[None, :])):
        mean = (p * values).sum()
        sd = np.sqrt((p * (values - mean) ** 2).sum())
        assert abs(draws.mean() - mean) < 4 * 1.5 * sd / np.sqrt(len(draws))
        assert abs(draws.std() / sd - 1) < 4 * 1.5 * 0.75 / np.sqrt(len(draws))


@pytest.mark.slow
def test_gibbs_sums_over_hidden_values_by_drawing_them():
    """The weight of one of two known components, indicators drawn: moments against quadrature."""
    x = np.array([-2.0, -1.5, 2.1, 1.8, 2.4, 0.1])
    densities = np.stack(
        [scipy.stats.norm(-2, 1).logpdf(x), scipy.stats.norm(2, 1).logpdf(x)], axis=1
    )

    def expected_log_joint(m, rows, scale):
        prior = F.Dirichlet(np.array([1.0, 1.0])).expected_log_prob(m["weights"])
        return prior + scale * jnp.sum(m["z"].probs * (m["weights"].log[None, :] + rows))

    q = F.Product(weights=F.Dirichlet(np.ones(2)), z=F.Categorical(np.zeros((6, 2))), local=("z",))
    target = tb.from_expected_log_joint(expected_log_joint, q, densities)
    ran = ascend(target, Gibbs(chains=4, warmup=100, draws=1100))
    weight = 1.0 / (1.0 + np.exp(-np.asarray(ran.q.flat)[:, 0]))
    grid = np.linspace(0.0005, 0.9995, 1000)
    p = np.prod(
        grid[:, None] * np.exp(densities[:, 0]) + (1 - grid[:, None]) * np.exp(densities[:, 1]),
        axis=1,
    )
    p /= p.sum()
    mean = p @ grid
    sd = np.sqrt(p @ (grid - mean) ** 2)
    assert abs(weight.mean() - mean) < 4 * 1.5 * sd / np.sqrt(len(weight))
    assert abs(weight.std() / sd - 1) < 4 * 1.5 * 0.75 / np.sqrt(len(weight))
    with pytest.raises(PairingError, match="takes no objective"):
        Gibbs().check(target, target.start(0), ELBO())
