"""Minibatches.

Without bias at any point, nearly without noise near the anchor, and as accurate as all rows.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats

import tightbound as tb
from tightbound._numerics import to_device, x64
from tightbound.estimators import Minibatch, Pathwise, StickTheLanding
from tightbound.families import Gaussian
from tightbound.objectives import ELBO, IWELBO

pytestmark = pytest.mark.usefixtures("as_a_user")

N, D = 240, 3


def poisson_rows(n=N):
    """Poisson regression: third derivatives that a Taylor polynomial leaves over."""
    rng = np.random.default_rng(0)
    x = np.concatenate([np.ones((n, 1)), rng.standard_normal((n, D - 1))], axis=1)
    y = rng.poisson(np.exp(x @ np.array([0.5, 0.4, -0.3]))).astype(float)
    return tb.from_rows(
        lambda p: -0.5 * jnp.sum(p["b"] ** 2) / 9.0,
        lambda p, rows: rows["y"] * (rows["x"] @ p["b"]) - jnp.exp(rows["x"] @ p["b"]),
        {"x": x, "y": y},
        {"b": np.zeros(D)},
    )


POISSON = poisson_rows()


@pytest.fixture(scope="module")
def best():
    """The best Gaussian, by a solver that uses all rows."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return tb.fit(POISSON, solver=tb.solvers.NaturalGradient(), tol=0.005)


def gradients(estimator, q, count, key=0):
    """Losses and gradients of consecutive steps with the same noise in every step.

    `[count, 1 + P]`.
    """
    from jax.flatten_util import ravel_pytree

    with x64():
        target, q = to_device((POISSON, q))
        state, noise = estimator.prepare(target, q, jr.key(key)), jr.key(7)
        parameters, unravel = ravel_pytree(q)

        @jax.jit
        def step(state):
            def loss(parameters):
                return estimator.surrogate(ELBO(), target, unravel(parameters), state, noise)

            (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
            return jnp.concatenate([value[None], gradient]), new

        rows = []
        for _ in range(count):
            row, state = step(state)
            rows.append(np.asarray(row))
    return np.stack(rows)


@pytest.mark.parametrize("taylor", [0, 1, 2])
def test_an_epoch_adds_up_to_all_rows(taylor, best):
    """Loss and gradient are linear in log p: their mean over the batches of one epoch is exactly
    that of all rows.

    Away from the anchor, which stays at q0's mean for the first 16 steps: any anchor is unbiased.
    """
    away = best.q.moved(best.q.mean + 0.7 * best.q.sd, 1.4)

    class Started(Minibatch):
        def prepare(self, target, q, key):
            return Minibatch.prepare(self, target, to_device(best.q), key)

    batches = gradients(Started(20, Pathwise(2), taylor), away, N // 20)
    whole = gradients(Minibatch(N, Pathwise(2), 0), away, 1)
    # the noise of the draws follows from the step's key, which is the same in all of them
    np.testing.assert_allclose(batches.mean(axis=0), whole[0], rtol=1e-9)
    assert np.ptp(batches[:, 1]) > 0


@pytest.mark.slow
def test_the_anchor_takes_the_noise_of_the_rows_away(best):
    """Standard deviation over batches of the whitened gradient in the mean, per posterior sd."""
    inner = StickTheLanding(2, noise="antithetic")
    sampled = {t: gradients(Minibatch(20, inner, t), best.q, 12) for t in (0, 1, 2)}
    scatter = {t: sample[:, 1 : 1 + D].std(0) for t, sample in sampled.items()}
    plain, first, second = (np.linalg.norm(scatter[t] * best.q.sd) for t in (0, 1, 2))
    assert plain > 1.0  # of the order of sqrt(N (N / B - 1) / N): several sds per step
    assert first < plain / 5
    assert second < plain / 30


def test_every_row_comes_once_in_an_epoch_and_remainders_change():
    with x64():
        target, q = to_device((POISSON, Gaussian.full(D)))
        estimator = Minibatch(50, Pathwise(1), 0)
        state, seen = estimator.prepare(target, q, jr.key(3)), []
        step = jax.jit(lambda state, key: estimator.surrogate(ELBO(), target, q, state, key)[1])
        for i in range(8):  # two epochs of four batches; 40 rows of each are left over
            state = step(state, jr.key(i))
            start = int(state.place) - 50
            seen.append(np.asarray(state.order)[start : start + 50])
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    assert len(set(first)) == len(set(second)) == 200
    assert set(first) != set(second)


def test_a_minibatch_fit_is_as_accurate_as_one_on_all_rows(best):
    solver = tb.solvers.StochasticGradient(Minibatch(20))
    fit = tb.fit(POISSON, Gaussian.full(D), solver=solver)
    assert fit.result is tb.Result.stationary
    np.testing.assert_allclose(fit.q.mean, best.q.mean, atol=0.02 * best.q.sd.min())
    np.testing.assert_allclose(fit.q.sd, best.q.sd, rtol=0.03)
    assert fit.certificate.verdict == "pass"
    # 8 draws of 20 / 240 rows each, and 4 full gradients whenever the anchor moved
    moves = 1 + sum(16 * 2**k < fit.steps for k in range(20))
    assert fit.evaluations == pytest.approx(fit.steps * 8 * 20 / N + 4 * moves, abs=1)


@pytest.mark.slow
def test_local_latents_in_a_numpyro_plate():
    """y_i ~ N(theta_i, 1), theta_i ~ N(mu, 1), mu ~ N(0, 1).

    A Gaussian posterior of mu and one theta per row.
    """
    import numpyro
    import numpyro.distributions as dist

    y = np.linspace(-1.0, 3.0, 6)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("N", len(y), subsample_size=2) as index:
            theta = numpyro.sample("theta", dist.Normal(mu, 1))
            numpyro.sample("y", dist.Normal(theta, 1), obs=y[index])

    target = tb.from_numpyro(model, y)
    fit = tb.fit(
        target, Gaussian.full(7), solver=tb.solvers.StochasticGradient(Minibatch(2, taylor=1))
    )
    precision = np.diag(np.r_[1.0 + 6, np.full(6, 2.0)])
    precision[0, 1:] = precision[1:, 0] = -1.0
    mean, cov = np.linalg.solve(precision, np.r_[0.0, y]), np.linalg.inv(precision)
    sd = np.sqrt(np.diag(cov))
    assert fit.result is tb.Result.stationary
    assert np.abs((fit.q.mean - mean) / sd).max() < 0.02
    np.testing.assert_allclose(fit.q.sd, sd, rtol=0.03)


def test_leave_one_out_from_the_unscaled_log_likelihood(best):
    """The log_likelihood group has one unscaled number per draw and row, whatever the batch was.

    ArviZ's LOO takes it.
    """
    rng = np.random.default_rng(1)
    y = rng.normal(0.7, 1.0, 60)
    target = tb.from_rows(
        lambda p: -0.5 * p["mu"] ** 2 / 100.0,
        lambda p, rows: -0.5 * (rows["y"] - p["mu"]) ** 2 - 0.5 * jnp.log(2 * jnp.pi),
        {"y": y},
        {"mu": 0.0},
    )
    fit = tb.fit(target)
    tree = fit.to_datatree(2000)
    group = tree["log_likelihood"]["rows"].values
    np.testing.assert_allclose(
        group[0], scipy.stats.norm.logpdf(y, tree["posterior"]["mu"].values[0][:, None]), rtol=1e-12
    )
    stats = pytest.importorskip("arviz_stats", reason="comes with the extra for plots")
    precision = 1 / 100 + len(y) - 1  # of mu without one row
    exact = scipy.stats.norm.logpdf(y, (y.sum() - y) / precision, np.sqrt(1 + 1 / precision)).sum()
    assert stats.loo(tree).elpd == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: Minibatch(0), ValueError, "`batch_size` must be an integer of at least 1, got 0"),
        (lambda: Minibatch(5, taylor=3), ValueError, "`taylor` must be 0, 1, 2 or None, got 3"),
        (
            lambda: fit_with(Minibatch(N + 1)),
            tb.PairingError,
            "`batch_size` is 241, but the data have 240 rows",
        ),
        (
            lambda: fit_with(Minibatch(5, Pathwise(4)), IWELBO(2)),
            tb.PairingError,
            "IWELBO is not linear in log p",
        ),
        (
            lambda: tb.fit(
                tb.from_log_density(lambda p: -0.5 * p["x"] ** 2, {"x": 0.0}),
                Gaussian.full(1),
                solver=tb.solvers.StochasticGradient(Minibatch(5)),
            ),
            tb.PairingError,
            "Minibatch needs a target with the ability `rows`",
        ),
    ],
)
def test_what_is_refused(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def fit_with(estimator, objective=None):
    return tb.fit(POISSON, Gaussian.full(D), objective, tb.solvers.StochasticGradient(estimator))
