"""Coordinate ascent against closed forms, enumeration, quadrature and scikit-learn; its refusals.

SVI and natural gradients.
"""

import itertools
import math
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

import tightbound as tb
from tightbound import families as F
from tightbound import targets as T
from tightbound._numerics import x64
from tightbound.loop import run
from tightbound.objectives import ELBO, IWELBO
from tightbound.results import PairingError, Result
from tightbound.solvers import SVI, CoordinateAscent, NaturalGradient

RNG = np.random.default_rng(11)
X = np.column_stack([np.ones(40), RNG.standard_normal((40, 2))])
Y = X @ np.array([1.0, 2.0, 0.0]) + 0.5 * RNG.standard_normal(40)
CLUSTERS = np.concatenate(
    [RNG.normal([0.0, 0.0], 1.0, (60, 2)), RNG.normal([4.0, 3.0], [0.7, 1.5], (40, 2))]
)
LOADINGS = np.array([[2.0], [-1.0], [0.5]])
COLUMNS = RNG.standard_normal((50, 1)) @ LOADINGS.T + 0.3 * RNG.standard_normal((50, 3)) + 1.0
WORDS, DOCUMENTS = RNG.integers(0, 4, 240) + 4 * (np.arange(240) // 20 % 2), np.arange(240) // 20

MODELS = {
    "NormalSample": lambda: T.NormalSample(RNG.normal(2.0, 3.0, 30)),
    "LinearRegressionARD": lambda: T.LinearRegressionARD(X, Y),
    "GaussianMixture": lambda: T.GaussianMixture(CLUSTERS, 3),
    "LatentDirichletAllocation": lambda: T.LatentDirichletAllocation(WORDS, DOCUMENTS, 2),
    "FactorAnalysis": lambda: T.FactorAnalysis(COLUMNS, 1, isotropic=False),
    "HiddenMarkovModel": lambda: T.HiddenMarkovModel([[0, 0, 1, 0, 2, 2, 1], [2, 0, 0, 1]], 2),
    "HierarchicalNormal": lambda: T.HierarchicalNormal(
        RNG.normal(np.repeat(RNG.normal(0, 2, 5), 6), 1.0), np.arange(30) // 6
    ),
}


def ascend(target, q=None, *, tol=1e-6, solver=None, max_steps=2000, key=0):
    """The run of a solver from a start, in the scope of a fit."""
    solver = CoordinateAscent() if solver is None else solver
    with x64():
        q = target.start(key) if q is None else q
        return run(
            target, q, ELBO(), solver, key=key, tol=tol, budget=tb.Budget(), max_steps=max_steps
        )


@pytest.fixture(scope="module")
def fits():
    """Each model with its fit, made once."""
    made = {}

    def fit_of(name):
        if name not in made:
            target = MODELS[name]()
            made[name] = (target, ascend(target))
        return made[name]

    return fit_of


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_sweep_raises_the_elbo_and_every_factor_is_conjugate(name, fits):
    target, ran = fits(name)
    CoordinateAscent().check(target, ran.q, ELBO())
    assert ran.result is Result.converged
    rises = np.diff(-ran.trace.loss)
    assert (
        rises.min(initial=0.0)
        >= -1e-12 * np.abs(ran.trace.loss).max() * len(target.family.factors) * 10
    )
    assert np.isfinite(ran.trace.loss).all()


# -- closed forms
# ------------------------------------------------------------------------------------------


def test_normal_sample_satisfies_the_textbook_fixed_point(fits):
    """Bishop 2006, eqs. 10.26-10.30, with independent priors.

    And the ELBO lies below the evidence by quadrature.
    """
    target, ran = fits("NormalSample")
    x, mu, tau = np.asarray(target.x), ran.q["mu"], ran.q["tau"]
    mean_tau = tau.shape / tau.rate
    assert np.isclose(mu.precision, 1e-6 + len(x) * mean_tau, rtol=1e-6)
    assert np.isclose(mu.mean, mean_tau * x.sum() / mu.precision, rtol=1e-6)
    assert np.isclose(tau.shape, 1e-3 + len(x) / 2, rtol=1e-12)
    assert np.isclose(
        tau.rate, 1e-3 + 0.5 * (((x - mu.mean) ** 2).sum() + len(x) / mu.precision), rtol=1e-6
    )

    centre, sd = float(mu.mean), 1 / math.sqrt(float(mu.precision))
    m, t = (
        np.linspace(centre - 9 * sd, centre + 9 * sd, 241),
        np.exp(np.linspace(-2, 2, 241)) * float(mean_tau),
    )
    squares = ((x - m[:, None]) ** 2).sum(axis=1)
    prior = scipy.stats.norm(0, 1e3).logpdf(m)[:, None] + scipy.stats.gamma(1e-3, scale=1e3).logpdf(
        t
    )
    grid = prior + 0.5 * len(x) * np.log(t / (2 * math.pi)) - 0.5 * t * squares[:, None]
    inner = scipy.integrate.trapezoid(np.exp(grid - grid.max()), t, axis=1)
    evidence = grid.max() + math.log(scipy.integrate.trapezoid(inner, m))
    assert 0.0 < evidence + ran.trace.loss[-1] < 0.05


def test_linear_regression_with_known_precisions_is_its_closed_form():
    """With priors that pin alpha and tau the ELBO is the evidence, and beta's factor the posterior
    (Bishop 2006, eq. 3.53).
    """
    pinned = 1e10
    target = T.LinearRegressionARD(
        X, Y, alpha=F.Gamma(2.0 * pinned, pinned), tau=F.Gamma(4.0 * pinned, pinned)
    )
    ran = ascend(target)
    precision = 2.0 * np.eye(3) + 4.0 * X.T @ X
    mean = 4.0 * np.linalg.solve(precision, X.T @ Y)
    assert np.allclose(ran.q["beta"].precision, precision, rtol=1e-8)
    assert np.allclose(ran.q["beta"].mean, mean, rtol=1e-7)
    evidence = scipy.stats.multivariate_normal(
        np.zeros(40), np.eye(40) / 4.0 + X @ X.T / 2.0
    ).logpdf(Y)
    assert np.isclose(-ran.trace.loss[-1], evidence, atol=1e-4)


def test_ard_switches_off_what_the_data_do_not_need(fits):
    _, ran = fits("LinearRegressionARD")
    alpha = ran.q["alpha"]
    assert (alpha.shape / alpha.rate)[2] > 20 * (alpha.shape / alpha.rate)[:2].max()


# -- scikit-learn
# ------------------------------------------------------------------------------------------


def sklearn_mixture(x, resp, count):
    mixture = pytest.importorskip("sklearn.mixture")
    settings = {
        "weight_concentration_prior_type": "dirichlet_distribution",
        "reg_covar": 0.0,
        "tol": 1e-12,
    }
    model = mixture.BayesianGaussianMixture(
        n_components=count, max_iter=5000, random_state=0, **settings
    )
    model._initialize_parameters = lambda x, random_state=None, **_: model._initialize(x, resp)
    return model.fit(x)


FAITHFUL = Path(__file__).parents[3] / "shared" / "data" / "classic" / "datasets_faithful.csv"


@pytest.mark.skipif(
    not FAITHFUL.exists(), reason="no ../shared/data/classic: the data set is not committed"
)
def test_old_faithful_is_scikit_learns():
    """272 eruptions: duration and waiting time.

    Two components, the same optimum to 1e-6 of a standard deviation.
    """
    names = FAITHFUL.read_text().splitlines()[0].replace('"', "").split(",")
    columns = [names.index("eruptions"), names.index("waiting")]
    x = np.loadtxt(FAITHFUL, delimiter=",", skiprows=1, usecols=columns)
    target = T.GaussianMixture(x, 2)
    resp = np.random.default_rng(0).dirichlet(np.ones(2), len(x))
    theirs, ran = sklearn_mixture(x, resp, 2), ascend(target, target.start(0, resp))
    assert np.allclose(ran.q["z"].probs, theirs.predict_proba(x), atol=1e-6)
    assert np.allclose(
        ran.q["components"].mean / x.std(axis=0), theirs.means_ / x.std(axis=0), atol=1e-6
    )
    assert np.isclose(
        -ran.trace.loss[-1] - theirs.lower_bound_, dropped_constant(target), atol=1e-6
    )


def dropped_constant(target):
    """What scikit-learn's bound leaves out.

    Constants of the likelihood and of the priors (see its `_compute_lower_bound`).
    """
    x, count = np.asarray(target.x), target.components
    dim, prior = x.shape[1], target.component_prior
    of_prior = count * float(prior.log_partition()) + float(target.weight_prior.log_partition())
    of_gammas = 0.25 * count * dim * (dim - 1) * np.log(np.pi)
    return -0.5 * len(x) * dim * np.log(2 * np.pi) - of_prior + of_gammas


@pytest.mark.parametrize("seed", [0, 1])
def test_mixture_is_scikit_learns_from_the_same_start(seed):
    target = T.GaussianMixture(CLUSTERS, 3)
    resp = np.random.default_rng(seed).dirichlet(np.ones(3), len(CLUSTERS))
    theirs = sklearn_mixture(CLUSTERS, resp, 3)
    ran = ascend(target, target.start(0, resp))
    assert np.allclose(ran.q["z"].probs, theirs.predict_proba(CLUSTERS), atol=1e-5)
    assert np.allclose(ran.q["components"].mean, theirs.means_, atol=1e-5)
    assert np.allclose(ran.q["weights"].concentration, theirs.weight_concentration_, atol=1e-4)
    assert np.isclose(
        -ran.trace.loss[-1] - theirs.lower_bound_, dropped_constant(target), atol=1e-6
    )


# -- enumeration and densities with the hidden values summed out
# -------------------------------------------------------


def test_the_chain_factor_is_the_enumerated_one(fits):
    """q(z) is proportional to exp(E log p) over all 2^7 paths.

    The symbols beyond the shorter sequence are unseen.
    """
    target, ran = fits("HiddenMarkovModel")
    log = {name: ran.q[name].mean_parameters.log for name in ("initial", "transition", "emission")}
    for row, symbols in enumerate(np.asarray(target.symbols)):
        paths = np.array(list(itertools.product(range(2), repeat=7)))
        weight = log["initial"][paths[:, 0]] + log["transition"][paths[:, :-1], paths[:, 1:]].sum(
            axis=1
        )
        seen = symbols >= 0
        weight = weight + log["emission"][paths[:, seen], symbols[seen]].sum(axis=1)
        weight = np.exp(weight - scipy.special.logsumexp(weight))
        marginal = np.array([[weight[paths[:, t] == k].sum() for k in range(2)] for t in range(7)])
        assert np.allclose(ran.q["chain"].mean_parameters.marginals[row], marginal, atol=1e-6)


def test_hidden_values_are_summed_out_exactly():
    """Of a mixture the sum over components, of a chain that over all paths, of factor analysis the
    integral over x.
    """
    target = MODELS["HiddenMarkovModel"]()
    rng = np.random.default_rng(0)
    values = {
        "initial": rng.dirichlet(np.ones(2)),
        "transition": rng.dirichlet(np.ones(2), 2),
        "emission": rng.dirichlet(np.ones(3), 2),
    }
    # the densities of the uniform Dirichlets
    total = math.log(math.gamma(2)) * 3 + math.log(math.gamma(3)) * 2
    for symbols in ([0, 0, 1, 0, 2, 2, 1], [2, 0, 0, 1]):
        paths = np.array(list(itertools.product(range(2), repeat=len(symbols))))
        p = values["initial"][paths[:, 0]] * values["transition"][paths[:, :-1], paths[:, 1:]].prod(
            axis=1
        )
        total += math.log((p * values["emission"][paths, symbols].prod(axis=1)).sum())
    assert np.isclose(eqx.filter_jit(target.log_joint)(values), total, rtol=1e-10)

    mixture = T.GaussianMixture(CLUSTERS, 2, inverse_scale=np.eye(2), mean_prior=np.zeros(2))
    prior, weights = mixture.component_prior, np.array([0.3, 0.7])
    means, precisions = (
        np.array([[0.0, 1.0], [3.0, 3.0]]),
        np.array([np.eye(2), [[2.0, 0.5], [0.5, 1.0]]]),
    )
    values = {"weights": weights, "components": {"mean": means, "precision": precisions}}
    laws = [
        scipy.stats.multivariate_normal(m, np.linalg.inv(p))
        for m, p in zip(means, precisions, strict=True)
    ]
    expected = np.log(
        sum(w * law.pdf(CLUSTERS) for w, law in zip(weights, laws, strict=True))
    ).sum()
    expected += scipy.stats.dirichlet(np.full(2, 0.5)).logpdf(weights)
    for m, p in zip(means, precisions, strict=True):
        expected += float(prior.log_prob(prior.flat({"mean": m, "precision": p})))
    assert np.isclose(eqx.filter_jit(mixture.log_joint)(values), expected, rtol=1e-10)

    z = np.arange(100) % 2  # with the indicators given, the joint of everything
    given = sum(laws[k].logpdf(CLUSTERS[z == k]).sum() + 50 * np.log(weights[k]) for k in (0, 1))
    summed = np.log(sum(w * law.pdf(CLUSTERS) for w, law in zip(weights, laws, strict=True))).sum()
    complete = eqx.filter_jit(mixture.log_joint)({**values, "z": z.astype(float)})
    assert np.isclose(complete, expected - summed + given, rtol=1e-10)

    analysis = T.FactorAnalysis(COLUMNS, 1)
    values = {"W": LOADINGS, "mu": np.ones(3), "alpha": np.ones(1), "tau": np.array(9.0)}
    likelihood = (
        scipy.stats.multivariate_normal(np.ones(3), LOADINGS @ LOADINGS.T + np.eye(3) / 9)
        .logpdf(COLUMNS)
        .sum()
    )
    prior = scipy.stats.norm.logpdf(LOADINGS).sum() + 3 * scipy.stats.norm(0, 1000**0.5).logpdf(1.0)
    prior += scipy.stats.gamma(1e-3, scale=1e3).logpdf([1.0, 9.0]).sum()
    assert np.isclose(eqx.filter_jit(analysis.log_joint)(values), likelihood + prior, rtol=1e-9)


def test_factor_analysis_finds_the_loadings(fits):
    """W W' + noise is the covariance of data simulated from it, to the error of fifty rows."""
    _, ran = fits("FactorAnalysis")
    W, tau = ran.q["W"].mean, ran.q["tau"].shape / ran.q["tau"].rate
    assert np.allclose(
        W @ W.T + np.diag(1 / tau), np.cov(COLUMNS.T), atol=0.15 * np.abs(np.cov(COLUMNS.T)).max()
    )


def test_topics_are_told_apart(fits):
    """Documents use words 0-3 or 4-7 only: two topics that share no word."""
    _, ran = fits("LatentDirichletAllocation")
    topics = ran.q["topics"].concentration / ran.q["topics"].concentration.sum(
        axis=1, keepdims=True
    )
    first = topics[:, :4].sum(axis=1)
    assert min(first) < 0.02
    assert max(first) > 0.98


# -- not conjugate
# ------------------------------------------------------------------------------------------

COUNTS = np.array([3.0, 5.0, 2.0, 6.0])


def log_linear(m):
    """y_i ~ Poisson(exp z), z ~ N(0, 1).

    E exp z = exp(mean + variance/2) is not affine in (E z, E z^2).
    """
    z = m["z"]
    expected_rate = jnp.exp(z.value + 0.5 * (z.square - z.value**2))
    return (
        COUNTS.sum() * z.value
        - len(COUNTS) * expected_rate
        - 0.5 * z.square
        - 0.5 * jnp.log(2 * jnp.pi)
    )


def test_a_factor_that_is_not_conjugate_is_refused_by_name_and_taken_by_natural_gradients():
    target = tb.from_expected_log_joint(log_linear, F.Product(z=F.Normal(0.0, 1.0)))
    with pytest.raises(
        PairingError, match="not conjugate in the factor 'z'.*Normal.*NaturalGradient"
    ):
        CoordinateAscent().check(target, target.start(0), ELBO())
    ran = ascend(target, solver=NaturalGradient())
    assert ran.result is Result.converged
    assert np.diff(-ran.trace.loss).min() >= -1e-10

    def loss(u):
        mean, log_sd = u
        moment = {"z": F.Normal(mean, math.exp(-2 * log_sd)).mean_parameters}
        return float(-log_linear(moment) - log_sd - 0.5 * math.log(2 * math.pi * math.e))

    best = scipy.optimize.minimize(
        loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13}
    )
    assert np.isclose(ran.trace.loss[-1], best.fun, atol=1e-9)
    assert np.isclose(ran.q["z"].mean, best.x[0], atol=1e-4)
    fit = tb.fit(target, key=0)  # chosen by the default, since coordinate ascent refuses it
    assert np.isclose(fit.elbo.value, -best.fun, atol=1e-6)
    assert fit.rung.startswith("NaturalGradient")


def test_natural_gradients_end_where_coordinate_ascent_does(fits):
    target, ran = fits("NormalSample")
    other = ascend(target, solver=NaturalGradient())
    assert np.isclose(other.trace.loss[-1], ran.trace.loss[-1], atol=1e-8)


# -- minibatches
# ------------------------------------------------------------------------------------------


def test_svi_reaches_the_coordinate_ascent_optimum():
    """400 rows, 40 at a time.

    The ELBO on all rows within 0.5 nat of the full-batch optimum, the means within 0.2 sd.
    """
    x = np.random.default_rng(5).normal(1.0, 2.0, 400)
    target = T.NormalSample(x)
    exact, stochastic = (
        ascend(target),
        ascend(target, solver=SVI(batch_size=40, forgetting=0.9), max_steps=400),
    )
    assert stochastic.result is Result.stationary
    assert (
        abs(stochastic.q["mu"].mean - exact.q["mu"].mean) * np.sqrt(exact.q["mu"].precision) < 0.2
    )
    with x64():
        bounds = [
            float(tb.certify.factors.exact_findings(target, ran.q)[0].value)
            for ran in (exact, stochastic)
        ]
    assert -1e-9 < bounds[0] - bounds[1] < 0.5


def test_svi_with_all_rows_and_a_rate_of_one_is_coordinate_ascent(fits):
    """delay 0: the first rate is 1, so the start and one step are two sweeps."""
    target, _ = fits("NormalSample")
    two, one = (
        ascend(target, max_steps=2),
        ascend(target, solver=SVI(batch_size=30, delay=0.0), max_steps=1),
    )
    for name in ("mu", "tau"):
        assert np.allclose(np.stack(two.q[name].natural), np.stack(one.q[name].natural), rtol=1e-10)


@pytest.mark.slow
def test_svi_tells_topics_apart():
    target = T.LatentDirichletAllocation(WORDS, DOCUMENTS, 2)
    ran = ascend(target, solver=SVI(batch_size=4), max_steps=60)
    topics = ran.q["topics"].concentration / ran.q["topics"].concentration.sum(
        axis=1, keepdims=True
    )
    assert min(topics[:, :4].sum(axis=1)) < 0.05


# -- the whole way
# ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fit_chooses_coordinate_ascent_and_certifies_it(tmp_path, as_a_user):
    """ELBO exact and below the evidence's bracket; summary, draws, file and page work."""
    target = T.GaussianMixture(CLUSTERS, 2)
    fit = tb.fit(target, key=1)
    assert fit.rung.startswith("CoordinateAscent")
    assert fit.elbo.stderr == 0.0
    assert fit.certificate.verdict in ("pass", "caution")
    assert fit.certificate.log_evidence[0] >= fit.elbo.value
    assert fit.certificate["converged"].value < 0.05
    table = fit.summary()
    order = np.argsort(table.loc[["components.mean[0, 0]", "components.mean[1, 0]"], "mean"])
    assert abs(np.sort(table.loc[["weights[0]", "weights[1]"], "mean"].to_numpy())[1] - 0.6) < 0.06
    assert list(order) in ([0, 1], [1, 0])
    draws = fit.sample(3, 50)
    assert draws["components"]["precision"].shape == (50, 2, 2, 2)
    assert np.allclose(draws["weights"].sum(axis=1), 1.0)
    again = tb.load(fit.save(tmp_path / "fit.tb"), target)
    assert np.array_equal(again.q["z"].logits, fit.q["z"].logits)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [CoordinateAscent(), NaturalGradient(), SVI(2)])
def test_a_solver_of_factors_starts_itself_where_there_is_no_density(solver, as_a_user):
    """Nothing but factors: the recipe for densities does not apply, and is not asked."""
    target = MODELS["LatentDirichletAllocation"]()
    fit = tb.fit(target, solver=solver, key=3, max_steps=2)
    with x64():
        start = solver.own_start(target, 3, None)
    again = tb.fit(target, start, solver=solver, key=3, max_steps=2)
    leaves = zip(jax.tree.leaves(fit.q), jax.tree.leaves(again.q), strict=True)
    assert all(np.array_equal(mine, theirs) for mine, theirs in leaves)
    assert fit.rung == "chosen by the caller"


def test_other_solvers_take_the_density_with_hidden_values_summed_out(as_a_user):
    """A conjugate target is a log density too.

    Its Laplace approximation has coordinate ascent's mean, nearly.
    """
    target = T.NormalSample(np.random.default_rng(3).normal(2.0, 3.0, 200))
    fit, exact = (
        tb.fit(target, solver=tb.solvers.Laplace()),
        tb.fit(target, solver=CoordinateAscent()),
    )
    assert isinstance(fit.q, F.Gaussian)
    assert abs(fit.q.mean[0] - exact.q["mu"].mean) * np.sqrt(exact.q["mu"].precision) < 0.01
    assert abs(fit.q.sd[0] * np.sqrt(exact.q["mu"].precision) - 1) < 0.02


@pytest.mark.slow
def test_what_cannot_be_said_is_said(as_a_user):
    target = T.LatentDirichletAllocation(WORDS, DOCUMENTS, 2)
    fit = tb.fit(target, key=0)
    assert np.isnan(fit.certificate.khat)
    assert fit.certificate.verdict == "caution"
    assert "cannot be said" in fit.certificate["khat"].why
    assert fit.certificate.log_evidence == (fit.elbo.value, np.inf)
    assert set(fit.summary()["draws"]) == {"q"}


# -- bad input
# ------------------------------------------------------------------------------------------


def test_refusals_name_the_part():
    target = MODELS["NormalSample"]()
    q = target.start(0)
    refused = [
        (
            lambda: CoordinateAscent().check(target, F.Gaussian.full(2), ELBO()),
            "moves a tb.families.Product.*got Gaussian",
        ),
        (
            lambda: CoordinateAscent().check(target, F.Product(mu=q["mu"]), ELBO()),
            "factor 'tau' of `q` is missing",
        ),
        (
            lambda: CoordinateAscent().check(target, q, IWELBO(2)),
            "maximises the ELBO and nothing else",
        ),
        (
            lambda: SVI(batch_size=31).check(target, q, ELBO()),
            "`batch_size` 31 exceeds the 30 rows",
        ),
        (
            lambda: CoordinateAscent().check(tb.targets.zoo.eight_schools().target, q, ELBO()),
            "ability `conjugate`",
        ),
    ]
    for call, sentence in refused:
        with pytest.raises(PairingError, match=sentence):
            call()
    for arguments, sentence in (
        ({"forgetting": 0.5}, "forgetting"),
        ({"delay": -1.0}, "delay"),
        ({"batch_size": 0}, "batch"),
    ):
        with pytest.raises(ValueError, match=sentence):
            SVI(**arguments)


BAD = {
    "`word` must lie in 0, ..., 2, but holds 7": lambda: T.LatentDirichletAllocation(
        [0, 7], [0, 0], 2, vocabulary=3
    ),
    "must hold whole numbers": lambda: T.HiddenMarkovModel(np.array([0.5, 1.0]), 2),
    "differ in their number of rows": lambda: T.LinearRegressionARD(X, Y[:-1]),
    "NaN or infinite": lambda: T.NormalSample([1.0, np.nan]),
    "`components` must be an integer of at least 1": lambda: T.GaussianMixture(CLUSTERS, 0),
    "`directions` must be in 1, ..., d - 1 = 2": lambda: T.FactorAnalysis(COLUMNS, 3),
    "there must be one member for each row": lambda: tb.from_expected_log_joint(
        lambda m, rows, scale: 0.0,
        F.Product(mu=F.Normal(0.0, 1.0), z=F.Bernoulli(np.zeros(3)), local=("z",)),
        np.ones(4),
    ),
    "returned shape .2,.*one number": lambda: tb.from_expected_log_joint(
        lambda m: jnp.stack([m["mu"].value, m["mu"].square]), F.Product(mu=F.Normal(0.0, 1.0))
    ),
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_data_are_named(sentence):
    with pytest.raises(tb.TargetError, match=sentence):
        BAD[sentence]()


def test_components_that_the_data_do_not_need_keep_their_prior():
    """Twelve components for two clusters.

    The ELBO stays finite and monotone, the dead ones are the prior.
    """
    ran = ascend(T.GaussianMixture(CLUSTERS, 12), tol=1e-4)
    assert ran.result is Result.converged
    counts = ran.q["z"].probs.sum(axis=0)
    dead = np.argmin(counts)
    assert counts[dead] < 0.5
    assert np.isclose(ran.q["components"].kappa[dead], 1.0 + counts[dead], rtol=1e-6)


def test_ragged_sequences_and_documents_are_padded():
    ragged = T.HiddenMarkovModel([[0, 1, 1], [1]], 2)
    assert np.array_equal(ragged.symbols, [[0, 1, 1], [1, -1, -1]])
    documents = T.LatentDirichletAllocation.from_documents([[0, 1, 2, 1], [], [2]], 2)
    assert np.array_equal(documents.present.sum(axis=1), [4, 0, 1])
