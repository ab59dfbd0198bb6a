import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tightbound._numerics import x64
from tightbound.results import TargetError
from tightbound.targets import Rows, zoo
from tightbound.targets.batched import batched
from tightbound.targets.zoo import schools
from tightbound.testing import check_target

PLANE = {
    "gaussian": lambda: zoo.gaussian(2, condition=30.0, seed=3),
    "gaussian of one": lambda: zoo.gaussian(1),
    "two_modes": lambda: zoo.two_modes(2, separation=5.0, weight=0.3),
    "banana": lambda: zoo.banana(curvature=0.3, scale=1.5),
    "ring": lambda: zoo.ring(radius=2.0, width=0.6),
    "funnel": lambda: zoo.funnel(2, scale=0.7),
    "beta_bernoulli": zoo.beta_bernoulli,
    "gamma_poisson": zoo.gamma_poisson,
    "normal_normal": zoo.normal_normal,
    "logistic_regression": lambda: zoo.logistic_regression(40, seed=1),
}
SAMPLED = {
    **PLANE,
    "student_t": lambda: zoo.student_t(3, df=8.0),
    "linear_regression": zoo.linear_regression,
    "eight_schools": zoo.eight_schools,
    "eight_schools centred": lambda: zoo.eight_schools(centered=True),
}
SAMPLED.pop("logistic_regression")


def grid(target, reach=9.0, points=241):
    """A grid around the mode, in coordinates in which the curvature there is about 1, with the
    volume of a cell.
    """
    evaluate, z = batched(target), np.zeros(target.dim)
    h = 1e-4 * np.eye(target.dim)
    for _ in range(20):
        scores = evaluate(np.concatenate([z + h, z - h]))[1]
        curvature = (scores[target.dim :] - scores[: target.dim]) / 2e-4
        root = np.linalg.cholesky(
            np.linalg.inv((curvature + curvature.T) / 2 + 1e-3 * np.eye(target.dim))
        )
        z = z + root @ np.clip(root.T @ evaluate(z[None])[1][0], -0.5, 0.5)
    ticks = np.linspace(-reach, reach, points)
    nodes = z + np.stack(np.meshgrid(*[ticks] * target.dim), -1).reshape(-1, target.dim) @ root.T
    return nodes, (ticks[1] - ticks[0]) ** target.dim * abs(np.linalg.det(root))


def plain_grid(target, low, high, points):
    ticks = np.linspace(low, high, points)
    nodes = np.stack(np.meshgrid(*[ticks] * target.dim), -1).reshape(-1, target.dim)
    return nodes, (ticks[1] - ticks[0]) ** target.dim


GRIDS = {
    "two_modes": lambda target: plain_grid(target, -9.0, 9.0, 241),
    "ring": lambda target: plain_grid(target, -7.0, 7.0, 241),
    "banana": lambda target: plain_grid(target, -14.0, 18.0, 641),
    "funnel": lambda target: plain_grid(target, -14.0, 14.0, 801),
}


@pytest.mark.parametrize("name", PLANE)
def test_moments_and_evidence_equal_quadrature(name):
    known = PLANE[name]()
    nodes, cell = GRIDS.get(name, grid)(known.target)
    log_density, _ = batched(known.target)(nodes)
    weight = np.exp(log_density - log_density.max())
    log_evidence = math.log(weight.sum() * cell) + log_density.max()
    assert log_evidence == pytest.approx(known.log_evidence, abs=1e-6)
    weight /= weight.sum()
    with x64():
        values = jax.tree.map(np.asarray, jax.jit(jax.vmap(known.target.constrain))(nodes))
    for key, x in values.items():
        mean = np.tensordot(weight, x, 1)
        np.testing.assert_allclose(mean, known.mean[key], atol=1e-5 * np.max(known.sd[key]))
        np.testing.assert_allclose(
            np.sqrt(np.tensordot(weight, (x - mean) ** 2, 1)), known.sd[key], rtol=1e-4
        )


@pytest.mark.parametrize("name", SAMPLED)
def test_exact_draws_have_the_stated_moments(name):
    known = SAMPLED[name]()
    n = 100_000
    draws = known.sample(n, 0)
    assert draws.keys() == known.mean.keys() == known.sd.keys()
    for key, x in draws.items():
        assert x.shape == (n, *known.mean[key].shape)
        np.testing.assert_allclose(
            x.mean(axis=0), known.mean[key], atol=5 * np.max(known.sd[key]) / math.sqrt(n)
        )
        np.testing.assert_allclose(x.std(axis=0), known.sd[key], rtol=0.03)
    if known.cov is not None:
        flat = np.concatenate([draws[key].reshape(n, -1) for key in sorted(draws)], axis=1)
        scale = np.sqrt(np.diag(known.cov))
        np.testing.assert_allclose(np.cov(flat.T).reshape(known.cov.shape) / np.outer(scale, scale),
                                   known.cov / np.outer(scale, scale), atol=0.05)  # fmt: skip
    np.testing.assert_array_equal(known.sample(3, jax.random.key(5))[key], known.sample(3, 5)[key])


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
def test_gaussian_of_any_condition_number(condition):
    known = zoo.gaussian(6, condition=condition, seed=2)
    assert np.linalg.cond(known.cov) == pytest.approx(condition, rel=1e-6)
    z = known.sample(20, 0)["x"]
    expected = scipy.stats.multivariate_normal(known.mean["x"], known.cov).logpdf(z)
    np.testing.assert_allclose(batched(known.target)(z)[0], expected, atol=1e-5)


@pytest.mark.parametrize("df", [0.5, 1.5, 4.0])
def test_student_t(df):
    known = zoo.student_t(3, df=df)
    z = known.sample(20, 0)["x"]
    np.testing.assert_allclose(
        batched(known.target)(z)[0], scipy.stats.multivariate_t(df=df, shape=np.eye(3)).logpdf(z)
    )
    assert np.isnan(known.mean["x"]).all() == (df <= 1)
    assert np.isfinite(known.sd["x"]).all() == (df > 2)


def test_funnel_of_many_dimensions():
    known = zoo.funnel(6)
    draws = known.sample(20, 0)
    z = np.column_stack([draws["v"], draws["x"]])
    expected = scipy.stats.norm.logpdf(draws["v"], 0, 3) + scipy.stats.norm.logpdf(
        draws["x"], 0, np.exp(draws["v"][:, None] / 2)
    ).sum(1)
    np.testing.assert_allclose(batched(known.target)(z)[0], expected, rtol=1e-12)


def test_linear_regression_is_gaussian():
    known = zoo.linear_regression(30, 4, seed=1)
    z = known.sample(20, 0)["beta"]
    posterior = scipy.stats.multivariate_normal(known.mean["beta"], known.cov).logpdf(z)
    np.testing.assert_allclose(
        batched(known.target)(z)[0] - posterior, known.log_evidence, atol=1e-9
    )


def test_the_conjugate_models_are_rows():
    for name in ("beta_bernoulli", "gamma_poisson", "normal_normal", "logistic_regression"):
        assert isinstance(PLANE[name]().target, Rows)


@pytest.mark.parametrize("centered", [False, True])
def test_eight_schools(centered):
    """The schools integrated out of the density by hand, mu and log tau on a grid, against the
    integral over log tau.
    """
    known = zoo.eight_schools(centered=centered)
    mu, log_tau = (
        a.ravel() for a in np.meshgrid(np.linspace(-25, 35, 201), np.linspace(-16, 6, 441))
    )
    tau, noise = np.exp(log_tau)[:, None], schools.STANDARD_ERRORS**2
    variance = noise + tau**2
    theta_trans = tau * (schools.EFFECTS - mu[:, None]) / variance  # mean given mu and tau
    sd_trans = np.sqrt(noise / variance)
    theta = mu[:, None] + tau * theta_trans
    local, sd = (theta, tau * sd_trans) if centered else (theta_trans, sd_trans)
    log_density, _ = batched(known.target)(np.column_stack([mu, log_tau, local]))
    log_marginal = log_density + np.sum(np.log(sd) + 0.5 * math.log(2 * math.pi), axis=1)
    weight = np.exp(log_marginal - log_marginal.max())
    cell = 0.3 * 0.05
    assert math.log(weight.sum() * cell) + log_marginal.max() == pytest.approx(
        known.log_evidence, abs=1e-4
    )
    weight /= weight.sum()
    moments = {"mu": (mu, 0.0), "tau": (tau[:, 0], 0.0), "theta": (theta, (tau * sd_trans) ** 2)}
    moments |= {} if centered else {"theta_trans": (theta_trans, sd_trans**2)}
    assert moments.keys() == known.mean.keys()
    for key, (mean_given, variance_given) in moments.items():
        mean = np.tensordot(weight, mean_given, 1)
        sd = np.sqrt(np.tensordot(weight, (mean_given - mean) ** 2 + variance_given, 1))
        np.testing.assert_allclose(mean, known.mean[key], atol=2e-3)
        np.testing.assert_allclose(sd, known.sd[key], rtol=2e-3)


def test_a_target_without_exact_draws_says_so():
    with pytest.raises(TargetError, match=r"logistic_regression.* has no exact sampler"):
        zoo.logistic_regression(20).sample(3, 0)


BATTERY = {
    "two_modes": (lambda: zoo.two_modes(2), None),
    "funnel": (lambda: zoo.funnel(3), None),
    "banana": (lambda: zoo.banana(), None),
    "student_t": (lambda: zoo.student_t(2, df=5.0), None),
    "ring": (lambda: zoo.ring(), None),
    "gaussian": (lambda: zoo.gaussian(4, condition=1e4), None),
    "beta_bernoulli": (lambda: zoo.beta_bernoulli(), None),
    "gamma_poisson": (lambda: zoo.gamma_poisson(), None),
    "normal_normal": (lambda: zoo.normal_normal(), None),
    "linear_regression": (lambda: zoo.linear_regression(), None),
    "logistic_regression": (lambda: zoo.logistic_regression(), None),
    "eight_schools, centred": (lambda: zoo.eight_schools(centered=True), None),
    "eight_schools": (lambda: zoo.eight_schools(), ("mu", "tau", "theta_trans")),
}


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("name", BATTERY)
def test_every_target_of_the_zoo_passes_the_battery(name):
    make, parameters = BATTERY[name]
    free = (
        None
        if parameters is None
        else lambda values: jnp.hstack([values[key] for key in parameters])
    )
    check_target(make().target, 0, free=free)
