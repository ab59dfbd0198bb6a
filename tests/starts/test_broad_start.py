"""The broad start.

It reaches the posterior of a centred hierarchical model, where paths up the density collapse.
"""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import tightbound as tb
from tightbound._numerics import host_algebra, x64
from tightbound.starts.paths import broad_start
from tightbound.targets import zoo

pytestmark = pytest.mark.usefixtures("as_a_user")

GROUPS, EACH = 30, 5
RNG = np.random.default_rng(3)
Y = RNG.normal(240.0, 14.0, GROUPS)[:, None] + RNG.normal(0.0, 6.0, (GROUPS, EACH))


def normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd)


def one_way(p):
    """y_ij ~ N(a_j, s), a_j ~ N(m, t), m ~ N(0, 300), s and t half-normal with scale 50."""
    prior = normal(p["m"], 0.0, 300.0) - 0.5 * (p["s"] ** 2 + p["t"] ** 2) / 50.0**2
    return (
        prior
        + jnp.sum(normal(p["a"], p["m"], p["t"]))
        + jnp.sum(normal(Y, p["a"][:, None], p["s"]))
    )


def exact_moments():
    """Mean and sd of log s and log t: a and m are integrated by hand, the rest on a grid."""
    log_s, log_t = np.linspace(1.4, 2.2, 121), np.linspace(2.0, 3.4, 121)
    logs = np.empty((121, 121))
    for i, s in enumerate(np.exp(log_s)):
        within = -GROUPS * (EACH - 1) * np.log(s) - 0.5 * Y.var(axis=1).sum() * EACH / s**2
        for j, t in enumerate(np.exp(log_t)):
            cov = (t**2 + s**2 / EACH) * np.eye(GROUPS) + 300.0**2
            between = scipy.stats.multivariate_normal(np.zeros(GROUPS), cov).logpdf(Y.mean(axis=1))
            logs[i, j] = within + between - 0.5 * (s**2 + t**2) / 50.0**2 + log_s[i] + log_t[j]
    mass = np.exp(logs - logs.max())
    mass /= mass.sum()
    out = {}
    for name, values, weights in (("s", log_s, mass.sum(axis=1)), ("t", log_t, mass.sum(axis=0))):
        mean = float(values @ weights)
        out[name] = (mean, float(np.sqrt((values - mean) ** 2 @ weights)))
    return out


@pytest.fixture(scope="module")
def target():
    example = {"a": np.zeros(GROUPS), "m": 0.0, "s": 1.0, "t": 1.0}
    return tb.from_log_density(one_way, example, support={"s": "positive", "t": "positive"})


@pytest.mark.parametrize("key", [0, 1])
def test_it_reaches_a_hierarchical_posterior_that_is_hundreds_away(target, key):
    with x64(), host_algebra():
        found = broad_start(target, key)
    names, sd = target.coordinate_names, np.sqrt(np.sum(found.root**2, axis=1))
    for name, (mean, exact_sd) in exact_moments().items():
        j = names.index(name)
        assert found.mean[j] == pytest.approx(mean, abs=0.3 * exact_sd)
        assert sd[j] == pytest.approx(exact_sd, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("key", range(3))
def test_the_default_fit_starts_there(target, key):
    fit = tb.fit(target, key=key)
    assert fit.certificate.verdict == "pass"
    draws = fit.sample(0, 20_000, corrected=True)
    for name, (mean, exact_sd) in exact_moments().items():
        assert np.log(draws[name]).mean() == pytest.approx(
            mean, abs=0.06 * exact_sd
        )  # tol, and Monte Carlo error of .007 sd
        assert np.log(draws[name]).std() == pytest.approx(exact_sd, rel=0.06)


def test_it_is_the_posterior_where_that_is_gaussian():
    known = zoo.gaussian(5, condition=1e4)
    with x64(), host_algebra():
        found = broad_start(known.target, 0)
    np.testing.assert_allclose(found.mean, known.mean["x"], atol=1e-6)
    assert found.elbo == pytest.approx(known.log_evidence, abs=1e-6)
    assert found.spread == pytest.approx(0.0, abs=1e-6)


def test_a_density_that_is_finite_nowhere_near_has_none():
    target = tb.from_log_density(lambda p: jnp.where(p["x"] > 1e9, -p["x"], jnp.nan), {"x": 2e9})
    with x64(), host_algebra():
        assert broad_start(target, 0) is None


def test_the_check_finds_a_collapsed_q_by_this_search_alone(target, monkeypatch):
    """q where t has collapsed to .1, a hundred nats below.

    The ends of paths up the density are kept from the check.
    """
    monkeypatch.setattr(
        sys.modules["tightbound.certify.findings.optima"], "_local_rivals", lambda *_: []
    )
    names = target.coordinate_names
    z = np.array(
        [np.log(15.0) if n == "s" else np.log(0.1) if n == "t" else Y.mean() for n in names]
    )
    sd = np.array(
        [
            0.06 if n == "s" else 0.2 if n == "t" else 0.1 if n.startswith("a") else 1.2
            for n in names
        ]
    )

    class Collapsed:
        q = tb.families.Gaussian.full(len(names)).moved(z, sd)

    Collapsed.target = target
    found = tb.check(Collapsed, key=0)["optima"]
    assert found.verdict == "fail"
    assert "q sits on the wrong one" in found.why
