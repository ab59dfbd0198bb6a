"""Updates.

Exact where the model is conjugate, and a chain of them ends where one fit of all data does.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.experiments.clutter_methods import draw
from tightbound.families import Gaussian
from tightbound.results import PairingError, TargetError
from tightbound.solvers import EP
from tightbound.targets import Clutter, LinearClutter, UpdatedRows
from tightbound.testing import GaussianTarget, check_target

RNG = np.random.default_rng(3)
ROWS = {"x": RNG.standard_normal((30, 2)), "y": RNG.standard_normal(30)}


def regression(data):
    """y = x'b + N(0, .25), b ~ N(0, 4)."""
    return tb.from_rows(
        lambda p: -0.5 * jnp.sum(p["b"] ** 2) / 4,
        lambda p, rows: -2.0 * (rows["y"] - rows["x"] @ p["b"]) ** 2,
        data,
        {"b": np.zeros(2)},
    )


def part(start, stop):
    return {name: leaf[start:stop] for name, leaf in ROWS.items()}


def kalman(mean, cov, data, noise=0.0):
    cov = cov + noise * np.eye(2)
    precision = np.linalg.inv(cov) + 4 * data["x"].T @ data["x"]
    shift = np.linalg.solve(cov, mean) + 4 * data["x"].T @ data["y"]
    return np.linalg.solve(precision, shift), np.linalg.inv(precision)


@pytest.mark.parametrize("noise", [None, 0.3])
def test_rows_are_a_kalman_filter(noise):
    """Linear regression in three portions, with and without moving coefficients.

    Means and covariances to 1e-6.
    """
    mean, cov = kalman(np.zeros(2), 4 * np.eye(2), part(0, 10))
    fit = tb.fit(regression(part(0, 10)))
    for start in (10, 20):
        fit = tb.update(fit, part(start, start + 10), process_noise=noise)
        mean, cov = kalman(mean, cov, part(start, start + 10), noise or 0.0)
    np.testing.assert_allclose(fit.q.mean, mean, atol=1e-6)
    np.testing.assert_allclose(fit.q.cov, cov, atol=1e-6)
    assert isinstance(fit.target, UpdatedRows)
    assert list(fit.summary().index) == ["b[0]", "b[1]"]


def test_updated_rows_pass_the_battery_of_targets(key):
    target = regression(part(0, 10)).after(
        np.array([0.3, -0.2]), np.array([[1.0, 0.2], [0.2, 0.5]]), part(10, 14)
    )
    check_target(target, key)
    z = np.array([0.1, 0.4])
    white = np.linalg.solve(np.array([[1.0, 0.2], [0.2, 0.5]]), z - np.array([0.3, -0.2]))
    data = part(10, 14)
    by_hand = (
        -0.5 * (z - np.array([0.3, -0.2])) @ white
        - 0.5 * np.linalg.slogdet(2 * np.pi * np.array([[1.0, 0.2], [0.2, 0.5]]))[1]
    )
    by_hand += -2.0 * np.sum((data["y"] - data["x"] @ z) ** 2)
    assert float(target.log_density(z)) == pytest.approx(by_hand, abs=1e-12)
    half = target.take(np.array([0, 1]))
    assert float(half.log_density(z)) == pytest.approx(
        float(target.log_prior(z))
        + 2.0 * float(np.sum(target.log_likelihood(z, target.rows_at(np.array([0, 1]))))),
        abs=1e-12,
    )


def test_clutter_in_portions_is_close_to_clutter_at_once():
    """60 points in three portions.

    Within a fifth of a posterior sd of the fit of all of them, sds within 10 %.
    """
    x = draw(np.random.default_rng(0), 60)
    fit, whole = tb.fit(Clutter(x[:20], vg=1.0, vc=10.0)), tb.fit(Clutter(x))
    for start in (20, 40):
        fit = tb.update(fit, x[start : start + 20])
        assert fit.target.vc == pytest.approx(10.0)
    exact = Clutter(x).exact()
    assert fit.q.draw(4000, 0)[0].mean() == pytest.approx(
        exact.mean[0], abs=0.2 * exact.cov[0, 0] ** 0.5
    )
    assert fit.q.draw(4000, 0)[0].std() == pytest.approx(whole.q.draw(4000, 0)[0].std(), rel=0.1)


def test_a_solver_of_one_s_own_and_a_dict_of_arguments():
    x = draw(np.random.default_rng(1), 40)
    first = tb.fit(Clutter(x[:20], log_clutter=-3.0, w=0.4), Gaussian.full(1), solver=EP())
    second = tb.update(first, {"x": x[20:], "log_clutter": -3.5}, solver=EP())
    assert second.target.w[0] == 0.4
    assert np.all(second.target.log_clutter == -3.5)
    np.testing.assert_allclose(second.target.prior()[0], first.q.mean)
    np.testing.assert_allclose(second.target.prior()[1], first.q.cov)


def test_what_is_refused():
    fit = tb.fit(
        Clutter([1.0, 2.0, 1.5], log_clutter=[-3.0, -4.0, -3.0]), Gaussian.full(1), solver=EP()
    )
    with pytest.raises(TargetError, match="differ in `log_clutter`"):
        tb.update(fit, [1.0])
    with pytest.raises(TargetError, match="a dict with `x`"):
        tb.update(fit, {"w": 0.5})
    with pytest.raises(ValueError, match=r"must be a variance, \[1\] or \[1, 1\]"):
        tb.update(fit, {"x": [1.0], "log_clutter": -3.0}, process_noise=np.ones(3))
    with pytest.raises(ValueError, match="not negative"):
        tb.update(fit, {"x": [1.0], "log_clutter": -3.0}, process_noise=-1.0)
    other = tb.fit(GaussianTarget(Gaussian.full(2)), Gaussian.full(2), solver=tb.solvers.Laplace())
    with pytest.raises(PairingError, match=r"ability `new data`.*tb\.from_rows"):
        tb.update(other, [1.0])
    rows = tb.fit(regression(part(0, 10)), Gaussian.full(2), solver=tb.solvers.Laplace())
    with pytest.raises(TargetError, match="they must agree"):
        tb.update(rows, {"x": np.ones((3, 2))})
    line = tb.fit(LinearClutter(np.ones((3, 1)), [1.0, 2.0, 1.5]), Gaussian.full(1), solver=EP())
    with pytest.raises(TargetError, match="`directions` and `y`"):
        tb.update(line, [1.0])
    assert tb.update(
        line, {"directions": np.ones((2, 1)), "y": [1.0, 1.2]}, solver=EP()
    ).target.background[1] == pytest.approx(1.0)
