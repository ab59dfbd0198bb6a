"""The ArviZ tree holds the fit's own draws and numbers, and what the target knows of its data."""

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.infer.util import log_likelihood

import tightbound as tb
from tightbound import datatree

RNG = np.random.default_rng(0)
X = RNG.normal(size=12)
Y = 1 + 2 * X + 0.5 * RNG.normal(size=12)
DRAWS = 40


def normal(y, mean, sd):
    return -0.5 * ((y - mean) / sd) ** 2 - jnp.log(sd) - 0.5 * np.log(2 * np.pi)


@pytest.fixture(scope="module", autouse=True)
def as_a_user():
    """The models here are a user's code: float64 off, JAX's standard promotion."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.fixture(scope="module")
def rows_fit():
    """A regression with nested parameters, from rows."""
    return tb.fit(
        tb.from_rows(
            lambda p: (
                normal(p["line"]["slope"], 0.0, 5.0)
                + normal(p["line"]["at_zero"], 0.0, 5.0)
                - p["sd"]
            ),
            lambda p, rows: normal(
                rows["y"], p["line"]["at_zero"] + p["line"]["slope"] * rows["x"], p["sd"]
            ),
            {"x": X, "y": Y},
            {"line": {"slope": 0.0, "at_zero": 0.0}, "sd": 1.0},
            support={"sd": "positive"},
        )
    )


def regression(x, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 5).expand([2]).to_event(1))
    sd = numpyro.sample("sd", dist.Exponential(1.0))
    with numpyro.plate("i", len(x)):
        numpyro.sample("y", dist.Normal(beta[0] + beta[1] * x, sd), obs=y)


@pytest.fixture(scope="module")
def numpyro_fit():
    return tb.fit(tb.from_numpyro(regression, X, y=Y))


@pytest.fixture(scope="module")
def plain_fit():
    return tb.fit(tb.from_log_density(lambda p: normal(p["mu"], 0.0, 1.0), {"mu": 0.0}))


@pytest.fixture(scope="module")
def tree(rows_fit):
    return rows_fit.to_datatree(DRAWS)


def test_the_posterior_is_what_sample_returns_under_dotted_names(rows_fit, tree):
    draws = rows_fit.sample(rows_fit.seed, DRAWS, corrected=True)
    posterior = tree["posterior"]
    assert dict(posterior.sizes) == {"chain": 1, "draw": DRAWS}
    assert set(posterior.data_vars) == {"line.slope", "line.at_zero", "sd"}
    np.testing.assert_array_equal(posterior["line.slope"].values[0], draws["line"]["slope"])
    np.testing.assert_array_equal(posterior["sd"].values[0], draws["sd"])


def test_the_fit_group_has_the_trace_and_the_findings(rows_fit, tree):
    group, certificate = tree["fit"], rows_fit.certificate
    for name in ("loss", "change", "evaluations"):
        np.testing.assert_array_equal(group[name].values, getattr(rows_fit.trace, name))
    assert list(group["finding"].values) == list(certificate)
    for name, finding in certificate.items():
        at = group.sel(finding=name)
        np.testing.assert_equal(float(at["value"]), finding.value)
        np.testing.assert_equal(float(at["stderr"]), finding.stderr)
        np.testing.assert_equal(
            float(at["threshold"]), np.nan if finding.threshold is None else finding.threshold
        )
        assert str(at["verdict"].values) == finding.verdict
        assert str(at["why"].values) == finding.why


def test_the_attributes_say_how_far_off_it_is(rows_fit, tree):
    certificate = rows_fit.certificate
    assert tree.attrs["inference_library"] == "tightbound"
    assert tree.attrs["verdict"] == certificate.verdict
    assert tree.attrs["khat"] == certificate.khat
    assert tree.attrs["result"] == "converged"
    assert tree.attrs["elbo"] == certificate.elbo.value
    assert (
        tree.attrs["log_evidence_lower"],
        tree.attrs["log_evidence_upper"],
    ) == certificate.log_evidence
    # plain ones only: files keep no others
    assert {type(value) for value in tree.attrs.values()} <= {str, float, int}


def test_rows_give_data_and_log_likelihood(rows_fit, tree):
    assert set(tree.children) == {"posterior", "fit", "observed_data", "log_likelihood"}
    np.testing.assert_array_equal(tree["observed_data"]["y"].values, Y)
    np.testing.assert_array_equal(tree["observed_data"]["x"].values, X)
    draws = rows_fit.sample(rows_fit.seed, DRAWS, corrected=True)
    mean = draws["line"]["at_zero"][:, None] + draws["line"]["slope"][:, None] * X
    expected = scipy.stats.norm.logpdf(Y, mean, draws["sd"][:, None])
    (found,) = tree["log_likelihood"].data_vars.values()
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-10)


def test_a_numpyro_model_gives_all_groups(numpyro_fit):
    tree = numpyro_fit.to_datatree(400)
    assert set(tree.children) == {
        "posterior",
        "fit",
        "observed_data",
        "log_likelihood",
        "posterior_predictive",
    }
    np.testing.assert_array_equal(tree["observed_data"]["y"].values, Y)
    draws = numpyro_fit.sample(numpyro_fit.seed, 400, corrected=True)
    expected = log_likelihood(regression, draws, X, y=Y)["y"]  # NumPyro's own
    np.testing.assert_allclose(
        tree["log_likelihood"]["y"].values[0], expected, rtol=1e-5, atol=1e-5
    )  # it computes in float32
    mean = draws["beta"][:, :1] + draws["beta"][:, 1:] * X
    residual = (tree["posterior_predictive"]["y"].values[0] - mean) / draws["sd"][:, None]
    # independent standard normals, by the model
    assert scipy.stats.kstest(residual.ravel(), "norm").pvalue > 1e-3


def test_a_plain_density_has_no_data(plain_fit):
    assert set(plain_fit.to_datatree(10).children) == {"posterior", "fit"}


def test_arviz_reads_it(tree):
    extracted = arviz_base.extract(tree, num_samples=7, random_seed=0)
    assert dict(extracted.sizes) == {"sample": 7}


def test_the_tree_is_the_same_each_time(rows_fit, tree):
    assert (
        rows_fit.to_datatree(DRAWS)["posterior"].to_dataset().equals(tree["posterior"].to_dataset())
    )


@pytest.mark.parametrize("n", [0, -3])
def test_a_bad_number_of_draws_is_named(plain_fit, n):
    with pytest.raises(ValueError, match=r"`n` must be a positive integer"):
        plain_fit.to_datatree(n)


@pytest.mark.parametrize("name", ["chain", "draw"])
def test_a_value_called_like_a_dimension_is_named(name):
    fit = tb.fit(tb.from_log_density(lambda p: normal(p[name], 0.0, 1.0), {name: 0.0}))
    with pytest.raises(ValueError, match=f"a value is called '{name}', .* Rename it"):
        fit.to_datatree(10)


def test_a_log_likelihood_too_large_is_left_out_and_said(rows_fit, monkeypatch):
    monkeypatch.setattr(datatree, "_MOST_NUMBERS", 100)
    with pytest.warns(
        UserWarning, match=r"would hold 960 numbers\. Ask for fewer draws: fit\.to_datatree\(4\)"
    ):
        tree = rows_fit.to_datatree(40)
    assert "log_likelihood" not in tree.children
    assert "observed_data" in tree.children
