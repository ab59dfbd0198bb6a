"""What a model may not contain, which data it may not have, and what is recorded of it."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import tightbound as tb
from tightbound import TargetError
from tightbound.targets.batched import batched

Y = np.random.default_rng(0).standard_normal(12)
WITH_NAN = np.where(np.isin(np.arange(12), [3, 5]), np.nan, Y)


def normal(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def test_masked_missing_data_are_fine():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with handlers.mask(mask=~jnp.isnan(y)):
            numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    y = np.where(np.arange(12) == 3, np.nan, Y)
    value, score = batched(tb.from_numpyro(model, y))(np.array([[0.3]]))
    kept = y[~np.isnan(y)]
    assert value[0] == pytest.approx(
        scipy.stats.norm.logpdf(0.3) + scipy.stats.norm.logpdf(kept, 0.3).sum()
    )
    assert score[0, 0] == pytest.approx(-0.3 + np.sum(kept - 0.3))


def discrete(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(k, 1), obs=y)


def discrete_in_a_scan(y):
    scan(lambda carry, y: (numpyro.sample("k", dist.Categorical(jnp.ones(2) / 2)), None), 0, y)


def point_mass(y):
    numpyro.sample("d", dist.Delta(1.0).expand([2]))


def direction(y):
    numpyro.sample("d", dist.ProjectedNormal(jnp.ones(3)))


def all_observed(y):
    numpyro.sample("y", dist.Normal(0, 1), obs=y)


def branching(y):
    a = numpyro.sample("a", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(a if a > 0 else -a, 1), obs=y)


def counting(y):
    numpyro.sample("a", dist.Normal(0, 1))
    numpyro.primitives.mutable("count", {"n": 0})


def partly_missing(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, 1).expand([12]), obs=y, obs_mask=np.arange(12) > 3)


@pytest.mark.parametrize(
    ("model", "y", "sentence"),
    [
        (
            discrete,
            Y,
            r"Site 'k' \(BernoulliProbs\): its values are discrete.*sum the discrete values out",
        ),
        (discrete_in_a_scan, Y, "Site 'k' .*discrete"),
        (point_mass, Y, "Site 'd' .*single possible value; record it with numpyro.deterministic"),
        (direction, Y, "Site 'd' .*numpyro.handlers.reparam with ProjectedNormalReparam"),
        (all_observed, Y, "The model has no latent site"),
        (branching, Y, "JAX cannot trace `model`"),
        (counting, Y, "Site 'count' is numpyro.mutable"),
        (partly_missing, Y, "Site 'y' uses obs_mask"),
        (
            normal,
            WITH_NAN,
            r"data at site 'y' have 2 NaN among 12 values, the first at index \(3,\).*mask",
        ),
        (lambda y: normal(WITH_NAN), Y, "data at site 'y' have 2 NaN"),
        (lambda y: normal(2 * jnp.asarray(WITH_NAN)), Y, "data at site 'y' have 2 NaN"),
    ],
)
def test_what_is_not_supported_names_the_site(model, y, sentence):
    with pytest.raises(TargetError, match=sentence):
        tb.from_numpyro(model, y)


@pytest.mark.parametrize(
    ("distribution", "y", "sentence"),
    [
        (
            dist.Poisson(1.0),
            [0.0, 2.0, -1.0],
            r"data at site 'y' are not inside the support of its Poisson.* index \(2,\) is -1",
        ),
        (dist.Poisson(1.0), [0.5, 2.0, 1.0], r"index \(0,\) is 0.5"),
        (dist.LogNormal(0.0, 1.0), [1.0, 0.0], r"support of its LogNormal.* index \(1,\) is 0.0"),
        (dist.Normal(0.0, 1.0), [1.0, np.inf], r"index \(1,\) is inf"),
        (dist.Dirichlet(np.ones(2)), [[0.5, 0.5], [0.5, 0.7]], r"index \(1,\) is \[0.5 0.7\]"),
        (
            dist.Normal(0.0, 1.0).expand([2]).to_event(1),
            [1.0, np.inf],
            r"index \(\) is \[ 1. inf\]",
        ),
    ],
)
@pytest.mark.parametrize("closed", [False, True])
def test_data_outside_their_support_are_named(distribution, y, sentence, closed):
    def model(data):
        numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", distribution, obs=data)

    data = np.array(y)
    with pytest.raises(TargetError, match=sentence):
        tb.from_numpyro(lambda: model(data)) if closed else tb.from_numpyro(model, data)


def test_data_that_the_model_computes_stay_under_numpyros_own_check():
    def model(y):
        rate = numpyro.sample("rate", dist.Exponential(1))
        numpyro.sample("y", dist.Poisson(rate), obs=y - 1)

    assert tb.from_numpyro(model, np.array([1, 4])).program.validates
    assert batched(tb.from_numpyro(model, np.array([0, 4])))(np.zeros((1, 1)))[0][0] == -np.inf
    assert not tb.from_numpyro(normal, Y).program.validates


def test_errors_of_the_model_pass_through_with_a_note():
    def broken(y):
        raise ZeroDivisionError("mine")

    for model, error in ((broken, ZeroDivisionError), (lambda: None, TypeError)):
        with pytest.raises(error) as caught:
            tb.from_numpyro(model, Y)
        assert any("raised by `model`" in note for note in caught.value.__notes__)


def test_float32_inside_is_recorded():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu.astype(jnp.float32), 1), obs=y)

    assert tb.from_numpyro(model, Y).returns_float32
