"""Many rows.

The exact posterior of a regression, a logistic one by Newton on all rows, and few gradients on all
rows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.families import Gaussian
from tightbound.plan import policy, recipe
from tightbound.solvers import Subsampled
from tightbound.solvers.subsampled import Tilted
from tightbound.targets.batched import batched

pytestmark = pytest.mark.usefixtures("as_a_user")

N, DIM = 40_000, 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, DIM)) * np.array([1.0, 10.0, 0.1, 1.0, 1.0])
LOGITS = X @ np.array([0.5, -0.05, 3.0, 0.0, 1.0])
Y = RNG.random(N) < 1 / (1 + np.exp(-LOGITS))


def logistic(rows=slice(None)):
    def log_likelihood(params, data):
        logits = data["x"] @ params["beta"]
        return jnp.where(data["y"], -jax.nn.softplus(-logits), -jax.nn.softplus(logits))

    return tb.from_rows(
        lambda p: -0.5 * jnp.sum(p["beta"] ** 2) / 25,
        log_likelihood,
        {"x": X[rows], "y": Y[rows]},
        {"beta": np.zeros(DIM)},
    )


def newton():
    """Mode and covariance by Newton's method on all rows.

    With 40,000 of them the posterior is Gaussian to within .01 sd.
    """
    beta = np.zeros(DIM)
    for _ in range(12):
        p = 1 / (1 + np.exp(-X @ beta))
        precision = (X.T * (p * (1 - p))) @ X + np.eye(DIM) / 25
        beta = beta + np.linalg.solve(precision, X.T @ (Y - p) - beta / 25)
    return beta, np.linalg.inv(precision)


@pytest.fixture(scope="module")
def fitted():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return tb.fit(logistic(), solver=Subsampled(rows=2000))


def test_within_a_tenth_of_an_sd_for_twenty_gradients_of_all_rows(fitted):
    beta, cov = newton()
    sd = np.sqrt(np.diag(cov))
    assert fitted.result is tb.Result.converged
    assert fitted.steps <= 10, "one gradient of all rows each"
    np.testing.assert_allclose((fitted.q.mean - beta) / sd, 0.0, atol=0.03)
    # the sample's curvature: of 2,000 rows the sds are good to 1 / sqrt(2,000) = 2.2 %, and some
    np.testing.assert_allclose(fitted.q.sd / sd, 1.0, atol=0.08)


def test_what_a_gradient_of_the_sample_costs_is_counted_in_gradients_of_all_rows(fitted):
    """2,000 of 40,000 rows count 1/20."""
    assert fitted.evaluations == pytest.approx(fitted.trace.evaluations[-1], abs=0.5)  # rounded
    assert fitted.evaluations < 400
    shrinking = fitted.trace.change[1:]
    assert np.all(shrinking[1:] < shrinking[:-1])


def test_the_tilted_density_has_the_gradient_of_all_rows_at_its_centre():
    target, centre = logistic(), np.array([0.4, 0.0, 2.0, 0.1, 0.9])
    sample = target.take(np.arange(500))
    score, of_sample = batched(target)(centre[None])[1][0], batched(sample)(centre[None])[1][0]
    tilted = Tilted(sample, centre, score - of_sample)
    values, scores = batched(tilted)(centre[None])
    np.testing.assert_allclose(scores[0], score, rtol=1e-10)
    assert values[0] == pytest.approx(batched(sample)(centre[None])[0][0])
    assert tilted.coordinate_names == target.coordinate_names
    np.testing.assert_allclose(tilted.unconstrain(tilted.constrain(centre)), centre)


def test_it_is_the_default_for_very_many_rows(monkeypatch):
    def beginning_of(target):
        return recipe.choose(target).begin(target, 0, 1)

    assert isinstance(beginning_of(logistic(slice(3000))).solver, tb.solvers.NaturalGradient)
    monkeypatch.setattr(policy, "MANY_ROWS", 10_000)
    chosen = beginning_of(logistic())
    assert isinstance(chosen.solver, Subsampled)
    assert chosen.q.dim == DIM


def test_refusals():
    with pytest.raises(tb.PairingError, match="wants many more rows than it samples, 2000 of 300"):
        tb.fit(logistic(slice(300)), solver=Subsampled())
    known = tb.targets.zoo.gaussian(2)
    with pytest.raises(tb.PairingError, match="Subsampled needs a target with the ability `rows`"):
        tb.fit(known.target, Gaussian.full(2), solver=Subsampled())
    with pytest.raises(tb.PairingError, match="full or diagonal scale"):
        tb.fit(logistic(), Gaussian.low_rank(DIM, 1), solver=Subsampled())


def test_a_sample_that_is_finite_nowhere_is_nonfinite():
    def nowhere(p, rows):
        return jnp.where(rows["x"][:, 0] > -100.0, jnp.nan, 0.0) * p["beta"][0]

    target = tb.from_rows(
        lambda p: -0.5 * jnp.sum(p["beta"] ** 2), nowhere, {"x": X[:3000]}, {"beta": np.zeros(1)}
    )
    fit = tb.fit(target, solver=Subsampled(rows=100), throw=False)
    assert fit.result is tb.Result.nonfinite
