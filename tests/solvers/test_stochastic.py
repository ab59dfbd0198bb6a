"""The stochastic solver against conjugate posteriors.

It stops by itself, at the right place, or says why it cannot.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tightbound._numerics import to_device
from tightbound.account import Budget
from tightbound.estimators import Pathwise, StickTheLanding
from tightbound.families import Diagonal, Gaussian, LowRank, kl
from tightbound.loop import run
from tightbound.objectives import ELBO, IWELBO
from tightbound.results import PairingError, Result
from tightbound.search.adam import travelling_adam
from tightbound.search.schedules import RobbinsMonro
from tightbound.search.stationarity import Window
from tightbound.solvers import StochasticGradient
from tightbound.targets.base import Density
from tightbound.testing import GaussianTarget

RNG = np.random.default_rng(3)


class Fun(Density):
    """Any function of z as a log density."""

    f: object = eqx.field(static=True)
    dim: int = eqx.field(static=True, default=2)
    coordinate_names = ("a", "b")
    constrain = unconstrain = staticmethod(lambda z: z)

    def log_density(self, z):
        return self.f(z)


def fit(target, q, solver, *, objective=None, key=0, tol=0.02, max_steps=100_000):
    objective = ELBO() if objective is None else objective
    solver.check(target, q, objective)
    return run(target, q, objective, solver, key=key, tol=tol, budget=Budget(), max_steps=max_steps)


def errors(q, mean, sd):
    """Largest error of the means, in sds, and of the sds, relative."""
    return max(np.abs((q.mean - mean) / sd).max(), np.abs(q.sd / sd - 1).max())


def random_posterior(decades, shift):
    """Sds over `decades` decades, correlated, `shift` sds or so away from the origin."""
    root = 10 ** RNG.uniform(-decades / 2, decades / 2, (3, 1)) * RNG.standard_normal((3, 3))
    return Gaussian.from_root(shift * root @ RNG.standard_normal(3), root)


# -- where it arrives
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["independent", "antithetic", "sobol"])
@pytest.mark.parametrize("estimator", [Pathwise, StickTheLanding])
def test_conjugate_posteriors_without_tuning(estimator, noise):
    """Diagonal and full, units over four decades.

    Means within .02 sd, sds within 2 %, whatever the noise.
    """
    posterior = random_posterior(4, 5)
    solver = StochasticGradient(estimator(8, noise=noise))
    full = fit(GaussianTarget(posterior), Gaussian.full(3), solver)
    assert full.result is Result.stationary
    assert errors(full.q, posterior.mean, posterior.sd) < 0.02
    axes = Gaussian(posterior.mean, Diagonal(np.log(posterior.sd)))
    diagonal = fit(GaussianTarget(axes), Gaussian.diagonal(3), solver)
    assert diagonal.result is Result.stationary
    assert errors(diagonal.q, axes.mean, axes.sd) < 0.02


@pytest.mark.parametrize(("decades", "shift"), [(0, 0), (8, 1), (2, 1000), (6, 100)])
def test_neither_units_nor_distance_matter(decades, shift):
    posterior = random_posterior(decades, shift)
    fitted = fit(GaussianTarget(posterior), Gaussian.full(3), StochasticGradient())
    assert fitted.result is Result.stationary
    assert fitted.steps < 20_000
    assert kl(fitted.q, posterior) < 1e-3


def test_condition_number_of_1e8():
    """Every eigendirection, the thinnest of 1e-4 beside 1 included: sds along them within 2 %."""
    root = np.linalg.qr(RNG.standard_normal((20, 20)))[0] * np.geomspace(1.0, 1e-4, 20)
    posterior = Gaussian.from_root(RNG.standard_normal(20), root)
    q = fit(GaussianTarget(posterior), Gaussian.full(20), StochasticGradient()).q
    along = np.linalg.svd(np.linalg.solve(root, q.root), compute_uv=False)
    assert np.abs(along - 1).max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "dim"), [(None, 60), (Pathwise(8), 10)])
def test_low_rank_posterior_whose_factor_may_rotate(estimator, dim):
    """U Q is as good as U for every rotation Q, so what is judged are means and sds, which do not
    turn.
    """
    root = np.random.default_rng(0).standard_normal((dim, 2)) * np.geomspace(0.1, 10, dim)[:, None]
    posterior = Gaussian(np.ones(dim), LowRank(root, np.zeros(dim)))
    fitted = fit(
        GaussianTarget(posterior), Gaussian.low_rank(dim, 2), StochasticGradient(estimator)
    )
    assert fitted.result is Result.stationary
    assert kl(fitted.q, posterior) < 0.01


NAMED = {
    "sgd": optax.sgd(0.05),
    "momentum": optax.sgd(0.02, momentum=0.9),
    "Robbins-Monro": optax.sgd(RobbinsMonro(0.2, 0.6, 500)),
    "adagrad": optax.adagrad(0.1),
    "rmsprop": optax.rmsprop(0.01),
    "adam": optax.adam(0.02),
}
OTHERS = {
    "amsgrad": optax.amsgrad(0.05),
    "nadam": optax.nadam(0.05),
    "yogi": optax.yogi(0.05),
    "lion": optax.lion(0.01),
}
SHAPES = {
    "diagonal": Gaussian.diagonal(2),
    "full": Gaussian.full(2),
    "low rank": Gaussian.low_rank(2, 1),
}
# A Latin design instead of the whole product (every pair of optimiser and rest costs seconds of
# compilation): all families, all estimators and both kinds of coordinates meet, and each named
# optimiser runs under two of them.
MATRIX = [
    (transform, shape, estimator, whitened)
    for turn, table in enumerate([NAMED | OTHERS, NAMED])
    for i, transform in enumerate(table)
    for shape in [list(SHAPES)[(i + turn) % 3]]
    for estimator in [(Pathwise, StickTheLanding)[(i // 3 + turn) % 2]]
    for whitened in [turn == 0]
]


@pytest.mark.parametrize(("transform", "shape", "estimator", "whitened"), MATRIX)
def test_every_transformation_reaches_the_best_member(transform, shape, estimator, whitened):
    """Of a correlated posterior.

    The mean, with the marginal sds, or the conditional ones in mean field.
    """
    posterior = Gaussian.from_root(np.array([1.0, -0.5]), np.array([[1.0, 0.0], [0.9, 1.2]]))
    conditional = np.diag(np.linalg.inv(posterior.cov)) ** -0.5
    solver = StochasticGradient(estimator(8), {**NAMED, **OTHERS}[transform], whitened)
    fitted = fit(GaussianTarget(posterior), SHAPES[shape], solver)
    assert fitted.result is Result.stationary
    assert (
        errors(fitted.q, posterior.mean, conditional if shape == "diagonal" else posterior.sd)
        < 0.02
    )


def test_a_bound_of_several_draws_has_an_estimator_of_its_own():
    """At q = posterior every bound is tight, so IWELBO's best member is the posterior too.

    8 is its default of draws.
    """
    posterior = random_posterior(0, 1)
    fitted = fit(
        GaussianTarget(posterior),
        Gaussian.full(3),
        StochasticGradient(),
        objective=IWELBO(4),
        tol=0.05,
    )
    assert fitted.result is Result.stationary
    assert errors(fitted.q, posterior.mean, posterior.sd) < 0.05
    assert fitted.trace.evaluations[0] == 8


def test_a_smaller_tol_is_a_smaller_error():
    posterior = random_posterior(2, 1)
    rough, fine = (
        fit(GaussianTarget(posterior), Gaussian.full(3), StochasticGradient(Pathwise(8)), tol=t)
        for t in (0.1, 0.01)
    )
    assert fine.steps > 4 * rough.steps
    assert errors(fine.q, posterior.mean, posterior.sd) < 0.01


# -- how it ends
# ------------------------------------------------------------------------------------------


def test_a_density_that_is_nan_everywhere():
    ran = fit(Fun(lambda z: jnp.nan * z[0]), Gaussian.full(2), StochasticGradient())
    assert ran.result is Result.nonfinite
    assert np.array_equal(ran.q.mean, np.zeros(2))
    assert np.array_equal(ran.q.sd, np.ones(2))


def test_a_density_that_is_nan_in_half_of_the_space():
    ran = fit(
        Fun(lambda z: jnp.where(z[0] > 0, -jnp.sum(z**2), jnp.nan)),
        Gaussian.full(2),
        StochasticGradient(),
    )
    assert ran.result is Result.nonfinite


def test_a_density_that_is_nan_far_out_is_fitted_all_the_same():
    """Beyond five sds, which the start (sds of 1 against .1) often draws and the posterior hardly
    ever does.
    """
    target = Fun(lambda z: jnp.where(jnp.abs(z[0]) < 0.5, -50 * jnp.sum(z**2), jnp.nan))
    ran = fit(target, Gaussian.full(2).moved(np.zeros(2), 0.3), StochasticGradient())
    assert ran.result is Result.stationary
    assert np.isnan(ran.trace.loss).sum() > 0
    assert errors(ran.q, 0.0, 0.1) < 0.02


def test_an_improper_direction_is_named_as_such():
    ran = fit(Fun(lambda z: -0.5 * z[0] ** 2), Gaussian.full(2), StochasticGradient())
    assert ran.result is Result.unbounded


def test_too_few_steps_return_what_there_is():
    posterior = random_posterior(0, 1)
    ran = fit(GaussianTarget(posterior), Gaussian.full(3), StochasticGradient(), max_steps=37)
    assert ran.result is Result.max_steps
    assert ran.steps == len(ran.trace.loss) == 37
    assert kl(ran.q, posterior) < kl(Gaussian.full(3), posterior)


def test_a_step_too_small_to_arrive_is_not_mistaken_for_rest():
    """R-hat alone would stop here: at 1e-9 per step the iterates hardly move.

    The gradient is not zero.
    """
    posterior = Gaussian(np.array([3.0]), Diagonal(np.zeros(1)))
    ran = fit(
        GaussianTarget(posterior),
        Gaussian.diagonal(1),
        StochasticGradient(transform=optax.sgd(1e-9)),
        max_steps=4000,
    )
    assert ran.result is Result.max_steps


def test_a_mean_that_rounding_has_swallowed_is_not_mistaken_for_rest():
    """With sd below the rounding error of the mean all draws are equal, and StickTheLanding's
    gradient vanishes.
    """
    q = Gaussian(np.array([1000.0]), Diagonal(np.array([-40.0])))
    ran = fit(
        GaussianTarget(Gaussian.diagonal(1)),
        q,
        StochasticGradient(transform=optax.sgd(0.0)),
        max_steps=4000,
    )
    assert ran.result is Result.max_steps


def test_same_key_same_bits_and_another_key_others():
    posterior = random_posterior(0, 1)
    one, two, three = (
        fit(GaussianTarget(posterior), Gaussian.full(3), StochasticGradient(), key=k)
        for k in (5, 5, 6)
    )
    assert np.array_equal(one.q.mean, two.q.mean)
    assert np.array_equal(one.trace.loss, two.trace.loss)
    assert not np.array_equal(one.trace.loss, three.trace.loss)


def test_float32_by_request():
    q = jax.tree.map(lambda leaf: leaf.astype(np.float32), Gaussian.diagonal(2))
    posterior = Gaussian(np.ones(2, np.float32), Diagonal(np.zeros(2, np.float32)))
    with jax.numpy_dtype_promotion("standard"):
        ran = fit(GaussianTarget(posterior), q, StochasticGradient())
    assert ran.result is Result.stationary
    assert ran.q.mean.dtype == np.float32
    assert errors(ran.q, posterior.mean, posterior.sd) < 0.02


def test_wrong_pairings_are_refused_before_anything_runs():
    with pytest.raises(PairingError, match="multiple of 3"):
        StochasticGradient(Pathwise(8)).check(
            GaussianTarget(Gaussian.full(2)), Gaussian.full(2), IWELBO(3)
        )


# -- its parts
# ------------------------------------------------------------------------------------------


def windowed(series, gradient=None):
    """The summary of a window filled with `series [T, m]`."""
    gradient = np.zeros_like(series) if gradient is None else gradient
    window = Window.opened(jnp.asarray(series[:1]), jnp.asarray(series[0]), len(series))
    push = eqx.filter_jit(lambda w, y, g: w.pushed(y[None, :], y, g))
    for y, g in zip(to_device(series), to_device(gradient), strict=True):
        window = push(window, y, g)
    assert bool(window.full)
    return window.summary()


def test_window_statistics_are_numpys():
    series = RNG.standard_normal((128, 3)) + 1e6
    gradient = RNG.standard_normal((128, 3))
    summary = windowed(series, gradient)
    batches = series.reshape(16, 8, 3).mean(1)
    np.testing.assert_allclose(summary.mean[0], series.mean(0), rtol=1e-14)
    np.testing.assert_allclose(summary.parameters, series.mean(0), rtol=1e-14)
    # the origin is subtracted: no digits lost
    np.testing.assert_allclose(summary.variance[0], series.var(0), rtol=1e-6)
    np.testing.assert_allclose(
        summary.apart[0], series[64:].mean(0) - series[:64].mean(0), atol=1e-8
    )
    np.testing.assert_allclose(summary.error[0], batches.std(0, ddof=1) / 4, rtol=1e-6)
    np.testing.assert_allclose(summary.gradient, gradient.mean(0), rtol=1e-12)
    np.testing.assert_allclose(summary.gradient_error, gradient.std(0) / np.sqrt(128), rtol=1e-12)


def test_rest_is_mixed_and_a_trend_is_not():
    """A trend of two sds over the window, of one value among three, is seen.

    Stationary noise passes.
    """
    noise = RNG.standard_normal((512, 3))
    units = jnp.ones((1, 3))
    assert windowed(noise).mixed(units, 0.0)
    trend = noise + np.linspace(0, 4, 512)[:, None] * np.array([0, 0, 1])
    assert not windowed(trend).mixed(units, 0.0)
    assert windowed(np.ones((64, 3))).mixed(units, 0.0)


def test_a_gradient_that_stays_is_not_balanced():
    gradient = RNG.standard_normal((512, 3))
    assert windowed(gradient, gradient).balanced(0.0)
    assert not windowed(gradient, gradient + 0.5).balanced(0.02)


def distance_after(transform, start, steps):
    """Where gradient descent on log cosh(z), whose slope is 1 far out, has come to."""

    def step(carry, _):
        z, state = carry
        with jax.numpy_dtype_promotion("standard"):
            update, state = transform.update(jnp.tanh(z), state, z)
        return (z + update, state), None

    z = jnp.asarray([start])
    (z, _), _ = jax.lax.scan(step, (z, transform.init(z)), None, length=steps)
    return float(jnp.abs(z[0]))


def test_travelling_adam_covers_distance_that_adam_does_not():
    """1e5 rates of .05 away, where Adam would need 1e5 steps."""
    assert distance_after(optax.adam(0.05), 5000.0, 800) > 4900
    assert distance_after(travelling_adam(0.05), 5000.0, 800) < 0.1


def test_travelling_adam_is_adam_near_the_optimum():
    assert distance_after(travelling_adam(0.05), 0.5, 400) < 0.01
