"""Samplers against closed forms and reference draws, and what comes back from them.

Chains that must not pass.
"""

import builtins
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.certify.chains import check_chains
from tightbound.families import Empirical, Gaussian
from tightbound.results import MissingExtraError
from tightbound.search.chain_statistics import MixingLimits
from tightbound.solvers import HMC, NUTS, AbstractSampler, Metropolis, Moves

pytest.importorskip("blackjax", reason="the samplers' extra is not installed")
pytestmark = pytest.mark.usefixtures("as_a_user")

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "posteriordb"
ROOT = np.array([[2.0, 0.0, 0.0], [1.5, 0.5, 0.0], [-30.0, 2.0, 10.0]])
MEAN = np.array([1.0, -2.0, 300.0])
PRECISION = np.linalg.inv(ROOT @ ROOT.T)
SD = np.sqrt(np.diag(ROOT @ ROOT.T))
NORMAL = tb.from_log_density(
    lambda p: -0.5 * (p["x"] - MEAN) @ PRECISION @ (p["x"] - MEAN), {"x": np.zeros(3)}
)
NEAR = Gaussian.from_root(MEAN + 0.3 * SD, 1.3 * ROOT)


def within_error(fit, mean, sd):
    """Means and sds within four of their own Monte Carlo errors of the truth (coordinates of z)."""
    detail = fit.certificate["ess"].detail
    names = detail.names
    ess = np.minimum(*(found[: len(mean)] for found in (detail.bulk, detail.tail)))
    assert names[: len(mean)] == fit.target.coordinate_names
    assert np.all(np.abs(fit.q.mean - mean) < 4 * sd / np.sqrt(ess))
    # the error of a Gaussian's sd is 0.71 of this
    assert np.all(np.abs(fit.q.sd / sd - 1) < 4 / np.sqrt(ess))


@pytest.fixture(scope="module")
def nuts():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return tb.fit(NORMAL, NEAR, solver=NUTS(draws=400, warmup=200))


def test_nuts_draws_from_a_correlated_gaussian(nuts):
    assert nuts.result is tb.Result.mixed
    assert nuts.result.ok
    assert nuts.certificate.verdict == "pass", str(nuts.certificate)
    within_error(nuts, MEAN, SD)
    correlation = np.corrcoef(nuts.q.flat.T)
    assert np.abs(correlation - (ROOT @ ROOT.T) / np.outer(SD, SD)).max() < 4 / np.sqrt(
        nuts.certificate["ess"].value
    )
    assert nuts.evaluations > 4 * 600  # at least one gradient per sweep and chain
    assert nuts.q.statistics["acceptance_rate"].mean() == pytest.approx(0.8, abs=0.12)
    lp = -0.5 * np.einsum("cni,ij,cnj->cn", nuts.q.draws - MEAN, PRECISION, nuts.q.draws - MEAN)
    np.testing.assert_allclose(nuts.q.statistics["lp"], lp, atol=1e-9)


@pytest.mark.parametrize(
    "solver",
    [HMC(draws=1000, warmup=200), Metropolis(draws=4000, warmup=400)],
    ids=["HMC", "Metropolis"],
)
def test_the_others_too(solver):
    fit = tb.fit(NORMAL, NEAR, solver=solver)
    assert fit.certificate.verdict == "pass", str(fit.certificate)
    within_error(fit, MEAN, SD)
    assert fit.q.statistics["acceptance_rate"].mean() == pytest.approx(
        solver.target_acceptance, abs=0.15
    )


def test_draws_are_exact_for_a_conjugate_posterior():
    """Gamma-Poisson on the log scale: skewed, and not the q that it starts from."""
    counts, shape, rate = np.array([3.0, 1.0, 0.0, 2.0]), 1.5, 0.5
    target = tb.from_log_density(
        lambda p: (
            (shape - 1) * jnp.log(p["rate"])
            - rate * p["rate"]
            + jnp.sum(counts * jnp.log(p["rate"]) - p["rate"])
        ),
        {"rate": 1.0},
        support={"rate": "positive"},
    )
    fit = tb.fit(target, solver=NUTS(draws=400, warmup=200), key=3)
    a, b = shape + counts.sum(), rate + len(counts)
    rates = fit.sample(0, 1600)["rate"]
    ess = fit.certificate["ess"].value
    assert abs(rates.mean() - a / b) < 4 * np.sqrt(a) / b / np.sqrt(ess)
    # a skewed law's sd is noisier
    assert abs(rates.std() / (np.sqrt(a) / b) - 1) < 6 / np.sqrt(ess)
    assert fit.certificate.verdict == "pass", str(fit.certificate)


def test_everything_that_a_fit_offers(nuts, tmp_path):
    table = nuts.summary()
    np.testing.assert_allclose(table["mean"], nuts.q.mean, atol=0.1 * SD.max())
    assert set(table["draws"]) == {"q"}
    assert nuts.sample(1, 7, corrected=True)["x"].shape == (7, 3)
    tree = nuts.to_datatree()
    np.testing.assert_array_equal(tree["posterior"]["x"].values, nuts.q.draws)
    assert tree["sample_stats"]["diverging"].values.shape == (4, 400)
    assert np.isnan(nuts.elbo.value)
    assert np.isnan(nuts.certificate.khat)
    assert nuts.certificate.log_evidence == (-np.inf, np.inf)
    again = tb.load(nuts.save(tmp_path / "draws.tb"), NORMAL)
    np.testing.assert_array_equal(again.q.draws, nuts.q.draws)
    assert str(again.certificate) == str(nuts.certificate)


def test_the_report_shows_the_chains(nuts, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra for plots is not installed")
    page = nuts.report(tmp_path / "chains.html").read_text()
    assert "R-hat" in page
    assert "nan" not in re.sub(r'src="data:[^"]*"', "", page)


def test_the_same_key_gives_the_same_draws_and_interruption_keeps_them(nuts):
    again = tb.fit(NORMAL, NEAR, solver=NUTS(draws=400, warmup=200))
    np.testing.assert_array_equal(again.q.draws, nuts.q.draws)
    short = tb.fit(NORMAL, NEAR, solver=NUTS(draws=400, warmup=200), max_steps=300)
    assert short.result is tb.Result.max_steps
    np.testing.assert_array_equal(short.q.draws, nuts.q.draws[:, :100])
    early = tb.fit(NORMAL, NEAR, solver=NUTS(draws=400, warmup=200), max_steps=100)
    assert isinstance(early.q, Gaussian)  # still warming up: nothing worth keeping


def test_it_goes_on_from_its_own_draws_and_a_fit_from_them(nuts):
    more = tb.fit(NORMAL, nuts.q, solver=NUTS(draws=400, warmup=200), key=1)
    within_error(more, MEAN, SD)
    gaussian = tb.fit(NORMAL, nuts.q)
    assert isinstance(gaussian.q, Gaussian)
    assert gaussian.certificate.verdict == "pass"


@pytest.mark.slow
@pytest.mark.skipif(
    not FOLDER.exists(), reason="no ../shared/data/posteriordb: reference draws are not committed"
)
def test_reference_draws_of_eight_schools():
    sys.path.insert(0, str(FOLDER))
    try:
        import models
        import numpyro_models
    finally:
        sys.path.remove(str(FOLDER))
    name = "eight_schools-eight_schools_noncentered"
    target = tb.from_numpyro(numpyro_models.MODELS[name], models.POSTERIORS[name].load(str(FOLDER)))
    fit = tb.fit(target, tb.fit(target).q, solver=NUTS(draws=500, warmup=200))
    reference = np.load(FOLDER / name / "reference.npz")
    rows = fit.summary().loc[
        [
            f"{b}[{int(i[:-1]) - 1}]" if i else b
            for b, _, i in (str(n).partition("[") for n in reference["names"])
        ]
    ]
    error = np.abs(rows["mean"] - reference["mean"]) / reference["sd"]
    assert error.max() < 4.0 / np.sqrt(fit.certificate["ess"].value)
    assert np.abs(np.log(rows["sd"] / reference["sd"])).max() < 0.15


# -- chains that must not pass
# ----------------------------------------------------------------------------------------

CENTRES = np.array([[-6.0, 0.0], [6.0, 0.0]])
TWO = tb.from_log_density(
    lambda p: jax.nn.logsumexp(-0.5 * jnp.sum((p["x"][None] - CENTRES) ** 2, axis=1)),
    {"x": np.zeros(2)},
)


class Draws:
    """What a check needs of a fit."""

    def __init__(self, target, draws):
        self.target, self.q = target, Empirical(draws)


def test_chains_that_all_sit_in_one_of_two_modes_do_not_pass():
    draws = np.random.default_rng(0).standard_normal((4, 500, 2)) + CENTRES[0]
    found = check_chains(Draws(TWO, draws), key=1, starts=32)
    assert found["rhat"].verdict == "pass"  # they agree with each other
    assert found["optima"].verdict != "pass"
    assert found.verdict != "pass"


def test_chains_that_visit_both_pass_and_chains_that_disagree_fail():
    rng = np.random.default_rng(1)
    both = rng.standard_normal((4, 500, 2)) + CENTRES[rng.integers(0, 2, (4, 500))]
    assert tb.check(Draws(TWO, both), key=1).verdict == "pass"
    apart = rng.standard_normal((4, 500, 2)) + CENTRES[[0, 0, 1, 1]][:, None, :]
    found = tb.check(Draws(TWO, apart), key=1)
    assert found["rhat"].verdict == found["ess"].verdict == found.verdict == "fail"
    assert "have not mixed" in found.explain()


@pytest.mark.slow
def test_a_diverging_sampler_is_not_passed_and_short_chains_say_so():
    funnel = tb.from_log_density(
        lambda p: (
            -0.5 * (p["v"] / 3.0) ** 2
            - 0.5 * jnp.exp(-p["v"]) * jnp.sum(p["x"] ** 2)
            - 1.5 * p["v"]
        ),
        {"v": 0.0, "x": np.zeros(3)},
    )
    fit = tb.fit(funnel, solver=NUTS(draws=200, warmup=100))
    assert fit.certificate.verdict != "pass"
    assert fit.result is tb.Result.unmixed


# -- refusals
# ------------------------------------------------------------------------------------------


def test_wrong_pairings_are_refused():
    with pytest.raises(
        tb.PairingError,
        match="NUTS draws from the posterior itself and takes no objective, got ELBO",
    ):
        tb.fit(NORMAL, objective=tb.objectives.ELBO(), solver=NUTS())
    with pytest.raises(ValueError, match="NUTS: `draws` must be an integer of at least 4, got 2"):
        tb.fit(NORMAL, solver=NUTS(draws=2))
    with pytest.raises(tb.PairingError, match="Empirical holds draws and has no density"):
        Empirical(np.zeros((1, 4, 3))).log_prob(np.zeros(3))
    with pytest.raises(ValueError, match=r"`statistics\['lp'\]` must have one number per draw"):
        Empirical(np.zeros((1, 4, 3)), {"lp": np.zeros(4)})


def test_without_blackjax_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("blackjax"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(
        MissingExtraError,
        match=r"needs `blackjax`. Install it with: pip install 'tightbound\[samplers\]'",
    ):
        tb.fit(NORMAL, NEAR, solver=NUTS())


def test_a_density_that_is_finite_nowhere_near_q_is_an_end_of_its_own():
    target = tb.from_log_density(
        lambda p: jnp.where(p["x"] > 100.0, -p["x"], jnp.nan), {"x": 101.0}
    )
    fit = tb.fit(target, Gaussian.full(1), solver=NUTS(draws=4, warmup=0), throw=False)
    assert fit.result is tb.Result.nonfinite


# -- a sampler of one's own
# ------------------------------------------------------------------------------------------


class Exact(AbstractSampler):
    """Independent draws of a standard normal: the smallest sampler there is."""

    chains: int = 4
    warmup: int = 0
    draws: int = 1000
    limits: MixingLimits = MixingLimits()

    def supports(self, target, q):
        pass

    def start(self, target, q, key):
        return jnp.zeros((self.chains, q.dim)), 0, True

    def sweep(self, target, q, chains, count, key):
        new = jax.random.normal(key, chains.shape, chains.dtype)
        return new, Moves(new, {}, 0.0, 1.0)


def test_a_sampler_needs_two_methods():
    target = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["x"] ** 2), {"x": np.zeros(2)})
    fit = tb.fit(target, Gaussian.full(2), solver=Exact())
    assert fit.certificate.verdict == "pass", str(fit.certificate)
    assert fit.certificate["ess"].value == pytest.approx(4000, rel=0.2)
    assert fit.q.mean == pytest.approx(np.zeros(2), abs=4 / np.sqrt(4000))
