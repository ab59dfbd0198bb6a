"""Draws and tables in the user's terms.

Against closed forms, and corrected only where the certificate believes it.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

import tightbound as tb
from tightbound.certify.draws import fresh_sample
from tightbound.families import Gaussian
from tightbound.summary import summary, summary_of, weights_usable

pytestmark = pytest.mark.usefixtures("as_a_user")

NORMAL = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(2)})
WIDE = tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(10)})
GAMMA = tb.from_log_density(
    lambda p: 3.0 * jnp.log(p["x"]) - 2.0 * p["x"], {"x": 1.0}, support={"x": "positive"}
)
TRUTH = st.gamma(4.0, scale=0.5)
COLUMNS = ["mean", "sd", "5%", "50%", "95%"]


def laplace(target, q):
    """A fit that returns the q it was given: the certificate and the tables are what is tested."""
    fit = tb.fit(target, solver=tb.solvers.Laplace())
    return tb.Fit(q, target, fit.result, 1, fit.trace, fit.spent, (0, 1))


def test_an_exact_q_is_printed_as_it_is():
    table = laplace(NORMAL, Gaussian.full(2)).summary()
    assert list(table.index) == ["z[0]", "z[1]"]
    assert list(table.columns) == [*COLUMNS, "draws"]
    assert set(table["draws"]) == {"q"}
    np.testing.assert_allclose(table["mean"], 0.0, atol=1e-12)  # antithetic
    np.testing.assert_allclose(table["sd"], 1.0, atol=4 / np.sqrt(4000))
    # sqrt(.05 .95 / 4000) / density there
    np.testing.assert_allclose(table["95%"], st.norm.ppf(0.95), atol=4 * 0.034)


def test_a_q_that_is_too_narrow_is_corrected():
    """q = N(0, .85^2) for N(0, 1): effective draws about 3,500 of 4,000."""
    table = laplace(NORMAL, Gaussian.full(2).moved(np.zeros(2), 0.85)).summary()
    assert set(table["draws"]) == {"corrected"}
    np.testing.assert_allclose(table["sd"], 1.0, atol=0.06)
    np.testing.assert_allclose(table["5%"], st.norm.ppf(0.05), atol=0.15)
    np.testing.assert_allclose(table["95%"], st.norm.ppf(0.95), atol=0.15)


def test_only_the_rows_that_need_it_are_corrected():
    q = Gaussian.from_root(np.zeros(2), np.diag([0.85, 1.0]))
    table = laplace(NORMAL, q).summary()
    assert table.loc["z[0]", "draws"] == "corrected"
    assert table.loc["z[0]", "sd"] == pytest.approx(1.0, abs=0.06)
    assert table.loc["z[1]", "sd"] == pytest.approx(1.0, abs=0.06)


def test_the_users_scale_and_all_quantiles():
    """Gamma(4, rate 2) fitted in log coordinates: mean 2, sd 1; its own quantiles from SciPy."""
    table = tb.fit(GAMMA, key=2).summary()
    expected = [TRUTH.mean(), TRUTH.std(), *TRUTH.ppf([0.05, 0.5, 0.95])]
    np.testing.assert_allclose(table.loc["x", COLUMNS].astype(float), expected, atol=0.06)


def test_a_hopeless_q_is_not_corrected_and_the_certificate_says_so():
    fit = laplace(WIDE, Gaussian.full(10).moved(np.zeros(10), 0.1))
    draws = fresh_sample(fit, fit.seed)
    assert not weights_usable(draws)
    table = fit.summary()
    assert set(table["draws"]) == {"q"}
    np.testing.assert_allclose(table["sd"], 0.1, atol=4 * 0.1 / np.sqrt(4000))
    assert fit.certificate.verdict == "fail"


def test_the_same_table_from_draws_that_are_there():
    fit = laplace(NORMAL, Gaussian.full(2).moved(np.zeros(2), 0.85))
    assert summary_of(fresh_sample(fit, fit.seed)).equals(summary(fit))


def test_plain_draws_are_qs_and_corrected_ones_the_posteriors():
    fit = laplace(NORMAL, Gaussian.full(2).moved([0.2, 0.0], 0.85))
    plain, corrected = (fit.sample(3, 4000, corrected=c)["z"] for c in (False, True))
    assert plain.shape == corrected.shape == (4000, 2)
    np.testing.assert_allclose(plain.mean(0), [0.2, 0.0], atol=1e-10)
    np.testing.assert_allclose(plain.std(0), 0.85, atol=0.04)
    np.testing.assert_allclose(corrected.mean(0), 0.0, atol=0.08)
    np.testing.assert_allclose(corrected.std(0), 1.0, atol=0.06)
    assert st.kstest(corrected[:1000, 0], "norm").pvalue > 1e-4


def test_corrected_draws_of_a_hopeless_q_are_plain_ones():
    fit = laplace(WIDE, Gaussian.full(10).moved(np.zeros(10), 0.1))
    np.testing.assert_allclose(fit.sample(0, 2000, corrected=True)["z"].std(), 0.1, rtol=0.1)


def test_values_of_any_shape_and_derived_ones_have_rows():
    target = tb.from_log_density(
        lambda p: -0.5 * jnp.sum(p["m"] ** 2),
        {"m": np.zeros((2, 2))},
        derived=lambda p: {"trace": jnp.trace(p["m"])},
    )
    table = tb.fit(target).summary()
    assert list(table.index) == ["m[0, 0]", "m[0, 1]", "m[1, 0]", "m[1, 1]", "trace"]
    assert table.loc["trace", "sd"] == pytest.approx(np.sqrt(2), abs=0.1)


def test_the_same_key_gives_the_same_draws():
    fit = laplace(NORMAL, Gaussian.full(2).moved(np.zeros(2), 0.85))
    for corrected in (False, True):
        a, b, c = (fit.sample(key, 50, corrected=corrected)["z"] for key in (1, 1, 2))
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_the_expectation_of_any_function_with_its_errors():
    """E log x and sd of log x under Gamma(4, 2).

    Digamma(4) - log 2 and sqrt(trigamma(4)), from a q that is off.
    """
    import scipy.special as sp

    table = laplace(GAMMA, Gaussian(np.array([0.7]), tb.families.Diagonal(np.log([0.8])))).expect(
        lambda p: {"log": jnp.log(p["x"]), "large": p["x"] > 2.0}
    )
    assert list(table.index) == ["large", "log"]
    assert set(table["draws"]) == {"corrected"}
    row = table.loc["log"]
    assert row["mean"] == pytest.approx(sp.digamma(4) - np.log(2), abs=4 * row["mean_error"])
    assert row["sd"] == pytest.approx(np.sqrt(sp.polygamma(1, 4)), abs=4 * row["sd_error"])
    assert row["mean_error"] < 0.02
    large = table.loc["large"]
    assert large["mean"] == pytest.approx(TRUTH.sf(2.0), abs=4 * large["mean_error"])


def test_resampled_without_replacement_no_draw_comes_twice():
    fit = laplace(NORMAL, Gaussian.full(2).moved(np.zeros(2), 0.85))
    once = fit.sample(1, 1000, corrected=True, replace=False)["z"]
    assert len(np.unique(once[:, 0])) == 1000
    assert len(np.unique(fit.sample(1, 1000, corrected=True)["z"][:, 0])) < 1000
    np.testing.assert_allclose(once.std(axis=0), 1.0, atol=0.1)
