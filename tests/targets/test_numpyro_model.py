import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer import reparam
from numpyro.infer.util import potential_energy

import tightbound as tb
from tightbound import TargetError
from tightbound._numerics import to_device, x64
from tightbound.targets import NumPyroModel, NumPyroRows
from tightbound.targets.batched import batched
from tightbound.targets.numpyro_program import ClosedOver
from tightbound.testing import check_target

Y = np.random.default_rng(0).standard_normal(12)
GROUP = np.arange(12) % 3


def normal(y, rows=None):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    with numpyro.plate("N", len(y), subsample_size=rows) as index:
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y if rows is None else y[index])


def schools(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    tau = numpyro.sample("tau", dist.HalfCauchy(1))
    with numpyro.plate("J", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 1), obs=y)
    numpyro.deterministic("largest", theta.max())


def many_supports(y):
    numpyro.sample("u", dist.Uniform(-1.0, 3.0))
    numpyro.sample("v", dist.TruncatedNormal(0.0, 1.0, low=0.5))
    numpyro.sample("p", dist.Dirichlet(jnp.ones(3)).expand([2]))
    numpyro.sample("L", dist.LKJCholesky(3, 2.0))
    numpyro.sample("C", dist.LKJ(3, 1.0))
    numpyro.sample("W", dist.Wishart(5.0, jnp.eye(2)))
    numpyro.sample("s", dist.HalfNormal(1).expand([2]).to_event(1))
    numpyro.sample("z", dist.ZeroSumNormal(1.0, (4,)))
    numpyro.sample("o", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    numpyro.factor("prior_of_o", -0.5 * jnp.sum(y[:3] ** 2))


def angle(y):
    theta = numpyro.sample("theta", dist.VonMises(0.0, 1.0))
    numpyro.sample("y", dist.VonMises(theta, 1.0), obs=y)


def support_of_others(y):
    a = numpyro.sample("a", dist.HalfNormal(1))
    b = numpyro.sample("b", dist.Uniform(0, a))
    c = numpyro.sample("c", dist.Uniform(jnp.min(y), jnp.full(3, 9.0)).to_event(1))
    numpyro.deterministic("product", a * b)
    numpyro.sample("y", dist.Normal(b, 10 + c.sum()), obs=y)


def walk(y):
    step = numpyro.sample("step", dist.HalfNormal(1))

    def transition(x, y):
        x = numpyro.sample("x", dist.Normal(x, step))
        noise = numpyro.sample("noise", dist.Uniform(0.5, 1.5))
        numpyro.deterministic("doubled", 2 * x)
        numpyro.sample("y", dist.Normal(x, noise), obs=y)
        return x, None

    scan(transition, 0.0, y)


def parametrised(y):
    offset = numpyro.param("offset", 0.5, constraint=constraints.positive)
    weights = numpyro.param("weights", lambda key: jax.random.normal(key, (2,)))
    mu = numpyro.sample("mu", dist.Normal(offset, 1))
    numpyro.sample("y", dist.Normal(mu + weights.sum(), 1), obs=y)


def weighted(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with handlers.scale(scale=2.0):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)
    with handlers.mask(mask=y > 0):
        numpyro.sample("again", dist.Normal(mu, 1), obs=y)


def grouped(y, group):
    with numpyro.plate("G", len(np.unique(group))):  # NumPy on an argument: it cannot be traced
        a = numpyro.sample("a", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(a[group], 1), obs=y)


def random_inside(y):
    noise = jax.random.normal(numpyro.prng_key())
    mu = numpyro.sample("mu", dist.Normal(0.1 * noise, 1))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


MODELS = {
    "normal": (normal, (Y,)),
    "schools": (schools, (Y,)),
    "many supports": (many_supports, (Y,)),
    "angle": (angle, (0.1 * Y,)),
    "support of others": (support_of_others, (Y,)),
    "scan": (walk, (Y,)),
    "params": (parametrised, (Y,)),
    "scale and mask": (weighted, (Y,)),
    "grouped": (grouped, (Y, GROUP)),
    "prng_key": (random_inside, (Y,)),
    "non-centred": (handlers.reparam(schools, config={"theta": reparam.LocScaleReparam(0)}), (Y,)),
    "partly centred": (
        handlers.reparam(schools, config={"theta": reparam.LocScaleReparam()}),
        (Y,),
    ),
    "circular": (handlers.reparam(angle, config={"theta": reparam.CircularReparam()}), (0.1 * Y,)),
    "lift": (handlers.lift(parametrised, prior={"offset": dist.Exponential(1.0)}), (Y,)),
    "condition": (handlers.condition(normal, {"sigma": 1.5}), (Y,)),
    "scope": (handlers.scope(schools, prefix="study"), (Y,)),
}


@functools.cache
def made(name):
    model, args = MODELS[name]
    target = tb.from_numpyro(model, *args)
    return target, 0.5 * np.random.default_rng(1).standard_normal((3, target.dim))


@pytest.mark.parametrize("name", MODELS)
def test_equals_numpyros_potential_energy(name):
    target, points = made(name)
    model, args = MODELS[name]
    model = handlers.substitute(handlers.seed(model, 0), data=target.program.fixed)
    ends = np.cumsum([block.size for block in target.layout.blocks])[:-1]

    @jax.jit
    @jax.vmap
    def potential(z):
        pieces = zip(target.layout.blocks, jnp.split(z, ends), strict=True)
        free = {block.name: piece.reshape(block.free_shape) for block, piece in pieces}
        return potential_energy(model, args, {}, free)

    with x64():
        np.testing.assert_allclose(
            batched(target)(points)[0], -potential(points), rtol=1e-12, atol=1e-10
        )


@pytest.mark.parametrize("name", MODELS)
def test_gradient_equals_finite_differences(name):
    target, points = made(name)
    evaluate, h = batched(target), 1e-5 * np.eye(target.dim)
    slope = (evaluate(points[0] + h)[0] - evaluate(points[0] - h)[0]) / 2e-5
    np.testing.assert_allclose(evaluate(points[:1])[1][0], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_unconstrain_is_the_inverse_and_log_joint_has_no_jacobian(name):
    target, points = made(name)

    @jax.jit
    @jax.vmap
    def there_and_back(z):
        values = target.constrain(z)
        return (
            target.unconstrain(values),
            target.log_joint(values) + target.layout.constrain_with_log_det(z)[1],
        )

    with x64():
        back, log_density = there_and_back(points)
    np.testing.assert_allclose(back, points, atol=1e-12)
    if not target.live:  # whose log-Jacobian is NumPyro's
        np.testing.assert_allclose(log_density, batched(target)(points)[0], rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_names(name):
    target, points = made(name)
    assert len(set(target.coordinate_names)) == target.dim
    with x64():
        values = jax.eval_shape(target.constrain, jnp.asarray(points[0]))
    assert len(target.value_names) == sum(value.size for value in values.values())
    assert {value.dtype.name for value in values.values()} == {"float64"}
    assert not target.returns_float32


@pytest.mark.parametrize("name", ["normal", "support of others", "scan", "scale and mask", "scope"])
def test_data_predictions_and_likelihoods_have_the_shape_of_the_data(name):
    target, points = made(name)
    with x64():
        draws = jax.tree.map(np.asarray, jax.jit(jax.vmap(target.constrain))(points))
    observed = target.observed()
    predicted = target.posterior_predictive(draws, 0)
    likelihood = target.pointwise_log_likelihood(draws)
    assert observed.keys() == predicted.keys() == likelihood.keys()
    for site, data in observed.items():
        assert predicted[site].shape == (3, *data.shape)
        assert likelihood[site].shape == (3, *data.shape)


def test_by_hand():
    target, z = tb.from_numpyro(normal, Y), np.array([0.3, -0.2])
    sigma = np.exp(-0.2)
    expected = scipy.stats.norm.logpdf(0.3) + scipy.stats.halfnorm.logpdf(sigma) - 0.2
    expected += scipy.stats.norm.logpdf(Y, 0.3, sigma).sum()
    assert target.log_density(z) == pytest.approx(expected, rel=1e-14)
    assert target.coordinate_names == ("mu", "sigma")
    np.testing.assert_array_equal(target.observed()["y"], Y)


def test_deterministic_sites_are_values_but_no_coordinates():
    target = tb.from_numpyro(
        handlers.reparam(schools, config={"theta": reparam.LocScaleReparam(0)}), Y
    )
    assert target.coordinate_names[:3] == ("mu", "tau", "theta_decentered[0]")
    values = target.constrain(np.random.default_rng(0).standard_normal(target.dim))
    assert list(values) == ["largest", "mu", "tau", "theta", "theta_decentered"]
    np.testing.assert_allclose(
        values["theta"], values["mu"] + values["tau"] * values["theta_decentered"]
    )
    assert values["largest"] == values["theta"].max()


def test_pointwise_likelihood_and_predictions_are_those_of_the_model():
    target = tb.from_numpyro(normal, Y)
    draws = {"mu": np.full(4000, 2.0), "sigma": np.full(4000, 0.5)}
    expected = scipy.stats.norm.logpdf(Y, 2.0, 0.5)
    np.testing.assert_allclose(target.pointwise_log_likelihood(draws)["y"][7], expected, rtol=1e-12)
    predicted = target.posterior_predictive(draws, 0)["y"]
    assert scipy.stats.kstest(predicted.ravel(), "norm", (2.0, 0.5)).pvalue > 1e-3
    np.testing.assert_array_equal(
        predicted, target.posterior_predictive(draws, jax.random.key(0))["y"]
    )
    assert np.abs(np.corrcoef(predicted[:, :2].T)[0, 1]) < 0.1


def test_a_scan_is_simulated_forward():
    def doubling(y):
        numpyro.sample("unused", dist.Normal(0, 1))

        def transition(last, y):
            y = numpyro.sample("y", dist.Normal(2 * last, 1e-3), obs=y)
            return y, None

        scan(transition, 1.0, y)

    target = tb.from_numpyro(doubling, np.zeros(4))
    predicted = target.posterior_predictive({"unused": np.zeros(2)}, 0)["y"]
    np.testing.assert_allclose(predicted, [[2, 4, 8, 16]] * 2, rtol=0.02)


def test_params_are_held_at_their_initial_value():
    target = tb.from_numpyro(parametrised, Y)
    assert target.coordinate_names == ("mu",)
    assert target.program.fixed["offset"] == 0.5
    assert target.program.fixed["weights"].shape == (2,)


def test_factors_and_improper_priors():
    def gaussian():
        x = numpyro.sample("x", dist.ImproperUniform(constraints.real, (), (2,)))
        numpyro.factor("likelihood", -0.5 * x @ x)

    target = tb.from_numpyro(gaussian)
    assert target.log_density(np.array([1.0, 2.0])) == -2.5
    assert target.observed() == target.posterior_predictive({"x": np.zeros((3, 2))}, 0) == {}
    assert target.pointwise_log_likelihood({"x": np.zeros((3, 2))}) == {}


Z = np.array([0.3, -0.2])


def test_a_subsampled_plate_becomes_rows():
    target, full = tb.from_numpyro(normal, Y, rows=4), tb.from_numpyro(normal, Y)
    assert isinstance(target, NumPyroRows)
    assert isinstance(full, NumPyroModel)
    assert target.num_rows == 12
    assert target.log_density(Z) == pytest.approx(full.log_density(Z), rel=1e-14)
    parts = target.log_prior(Z) + target.log_likelihood(Z, np.arange(12)).sum()
    assert parts == pytest.approx(full.log_density(Z), rel=1e-14)
    np.testing.assert_allclose(
        target.log_likelihood(Z, np.array([5, 1])),
        scipy.stats.norm.logpdf(Y[[5, 1]], 0.3, np.exp(-0.2)),
    )


def test_a_minibatch_is_scaled_as_numpyro_scales_it():
    target, index = tb.from_numpyro(normal, Y, rows=4), np.array([0, 3, 5])
    part = target.take(index)
    assert part.num_rows == 3
    assert part.log_density(Z) == pytest.approx(
        target.log_prior(Z) + 4 * target.log_likelihood(Z, index).sum(), rel=1e-13
    )
    again = part.take(np.array([1]))  # row 3, one of the 12
    assert again.log_density(Z) == pytest.approx(
        target.log_prior(Z) + 12 * target.log_likelihood(Z, np.array([3]))[0]
    )
    means = [target.take(np.arange(start, start + 3)).log_density(Z) for start in range(0, 12, 3)]
    assert np.mean(means) == pytest.approx(target.log_density(Z), rel=1e-13)


def test_minibatches_under_jit():
    target = tb.from_numpyro(normal, Y, rows=4)
    compiled = eqx.filter_jit(lambda target, index, z: target.take(index).log_density(z))
    with x64():
        inside = compiled(to_device(target), jnp.array([0, 3, 5]), jnp.asarray(Z))
    assert inside == pytest.approx(target.take(np.array([0, 3, 5])).log_density(Z), rel=1e-13)


def test_subsample_statements_and_event_dimensions():
    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
        with numpyro.plate("outer", 2, dim=-2), numpyro.plate("N", 6, subsample_size=2, dim=-1):
            batch = numpyro.subsample(x, event_dim=1)
            numpyro.sample("x", dist.Normal(mu, 1).to_event(1), obs=batch)

    x = Y.reshape(6, 2)
    target = tb.from_numpyro(model, x)
    z = np.array([0.1, -0.3])
    expected = 2 * scipy.stats.norm.logpdf(x, z).sum(axis=1)
    np.testing.assert_allclose(target.log_likelihood(z, np.arange(6)), expected, rtol=1e-13)
    assert target.log_density(z) == pytest.approx(
        expected.sum() + scipy.stats.norm.logpdf(z).sum(), rel=1e-13
    )


def test_local_latent_values_come_with_their_rows():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("N", len(y), subsample_size=4) as index:
            theta = numpyro.sample("theta", dist.Normal(mu, 1))
            numpyro.sample("y", dist.Normal(theta, 1), obs=y[index])

    target = tb.from_numpyro(model, Y)
    assert isinstance(target, NumPyroRows)
    assert target.dim == 13
    z = np.linspace(-1, 1, 13)
    expected = (
        scipy.stats.norm.logpdf(z[0])
        + scipy.stats.norm.logpdf(z[1:], z[0]).sum()
        + scipy.stats.norm.logpdf(Y, z[1:]).sum()
    )
    assert target.log_density(z) == pytest.approx(expected, rel=1e-13)
    index = np.array([7, 2])
    own = scipy.stats.norm.logpdf(z[1:], z[0]) + scipy.stats.norm.logpdf(Y, z[1:])
    np.testing.assert_allclose(target.log_likelihood(z, index), own[index], rtol=1e-13)
    assert target.log_prior(z) == pytest.approx(scipy.stats.norm.logpdf(z[0]), rel=1e-13)
    part = scipy.stats.norm.logpdf(z[0]) + 6 * own[index].sum()
    assert target.take(index).log_density(z) == pytest.approx(part, rel=1e-13)


def test_local_vectors_inside_a_plate_that_is_not_the_last():
    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
        with numpyro.plate("N", 6, subsample_size=2, dim=-2), numpyro.plate("inner", 3, dim=-1):
            theta = numpyro.sample("theta", dist.Normal(mu, 1).to_event(1))
            numpyro.sample(
                "x", dist.Normal(theta, 1).to_event(1), obs=numpyro.subsample(x, event_dim=1)
            )

    x = np.arange(36.0).reshape(6, 3, 2) / 10
    target = tb.from_numpyro(model, x)
    z = np.linspace(-1, 1, target.dim)
    theta = z[2:].reshape(6, 3, 2)
    own = (scipy.stats.norm.logpdf(theta, z[:2]) + scipy.stats.norm.logpdf(x, theta)).sum(
        axis=(1, 2)
    )
    np.testing.assert_allclose(target.log_likelihood(z, np.array([4, 0])), own[[4, 0]], rtol=1e-13)


def test_numpy_data_that_a_subsampling_model_closes_over():
    def model():
        normal(Y, rows=4)

    target = tb.from_numpyro(model)
    assert target.take(np.array([2, 7])).log_density(Z) == pytest.approx(
        tb.from_numpyro(normal, Y, rows=4).take(np.array([2, 7])).log_density(Z)
    )


def test_arrays_are_traced_and_other_data_compile_nothing():
    first, second = tb.from_numpyro(normal, Y), tb.from_numpyro(normal, Y + 1)
    with x64():
        leaves = jax.tree.leaves(eqx.filter(to_device(first), eqx.is_array))
    assert [leaf.shape for leaf in leaves] == [(12,)]
    assert batched(first)._program is batched(second)._program
    assert batched(first)(Z[None])[0] != batched(second)(Z[None])[0]


def test_what_cannot_be_traced_is_closed_over():
    target = tb.from_numpyro(grouped, Y, GROUP)
    assert isinstance(target.program.arguments, ClosedOver)
    assert target.dim == 3
    other = tb.from_numpyro(grouped, Y + 1, GROUP)
    assert batched(target)._program is batched(other)._program


def test_arguments_of_any_kind():
    def model(data, size, *, scale, name, prior=None, frame=None):
        x = numpyro.sample(name, dist.Normal(0, scale).expand([size]))
        numpyro.sample("y", dist.Normal(x.sum(), 1), obs=data["y"])
        assert prior is None
        assert frame == ("anything", 3)

    arguments = {"scale": 2, "name": "x", "frame": ("anything", 3)}
    exact = tb.from_numpyro(model, {"y": Y, "unused": ["a"]}, np.int64(2), **arguments)
    for y in (jnp.asarray(Y), Y.astype(np.float32), jnp.asarray(Y, jnp.float16)):
        target = tb.from_numpyro(model, {"y": y}, np.int64(2), **arguments)
        assert target.log_density(Z) == pytest.approx(exact.log_density(Z), rel=1e-2)
        assert target.observed()["y"].dtype == np.float64
        assert not target.returns_float32


def test_data_are_copied():
    y = Y.copy()
    target = tb.from_numpyro(normal, y)
    before = target.log_density(Z)
    y[:] = 0
    assert target.log_density(Z) == before


def test_missing_values_are_named():
    target = tb.from_numpyro(normal, Y)
    with pytest.raises(TargetError, match="`values` lacks the site 'sigma'; it has mu"):
        target.unconstrain({"mu": 0.0})


def test_the_battery_on_a_model_of_all_kinds_of_supports():
    def model():
        numpyro.sample("s", dist.HalfNormal(2.0))
        numpyro.sample("p", dist.Beta(2.0, 3.0))
        numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
        with numpyro.plate("i", 2):
            numpyro.sample("x", dist.Normal(0.0, 1.0))

    def free(values):
        return jnp.hstack([values["p"], values["s"], values["w"][:-1], values["x"]])

    check_target(tb.from_numpyro(model), 0, free=free)
