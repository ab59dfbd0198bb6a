"""The flow: exactly the Gaussian at rest, invertible, in one file after saving.

A bent posterior that it fits better.
"""

import builtins
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.families import Flow, Gaussian
from tightbound.families import flow as module
from tightbound.results import MissingExtraError

pytest.importorskip("flowjax", reason="the extra for flows is not installed")
GAUSSIAN = Gaussian.from_root(np.array([1.0, -2.0]), np.array([[2.0, 0.0], [1.0, 0.5]]))


def test_it_starts_at_the_gaussian_exactly_and_stays_a_density_when_bent():
    axis = np.linspace(-14.0, 14.0, 141)
    z = np.stack([a.ravel() for a in np.meshgrid(axis, axis)], axis=1) + GAUSSIAN.mean
    start = Flow.around(GAUSSIAN, layers=2, width=8, knots=6)
    np.testing.assert_allclose(start.log_prob_on_host(z), GAUSSIAN.log_prob_on_host(z), rtol=1e-9)
    noise = 0.1 * np.random.default_rng(1).standard_normal(start.weights.shape)
    bent = dataclasses.replace(start, weights=start.weights + noise)
    density = np.exp(bent.log_prob_on_host(z))
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=5e-3)
    assert np.abs(density - np.exp(GAUSSIAN.log_prob_on_host(z))).max() > 0.01  # it is bent


def test_what_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="at least two dimensions; use tb.families.Warped"):
        Flow.full(1)
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("flowjax"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'tightbound\[flows\]'"):
        Flow.full(2, layers=7)


@pytest.mark.slow
@pytest.mark.usefixtures("as_a_user")
def test_a_banana_is_fitted_better_than_by_its_gaussian_and_comes_back_from_a_file(
    tmp_path, monkeypatch
):
    def banana(p):
        x, y = p["z"]
        return -0.5 * x**2 / 4 - 0.5 * ((y - 0.5 * x**2) / 0.7) ** 2 - jnp.log(2 * 0.7 * 2 * jnp.pi)

    target = tb.from_log_density(banana, {"z": np.zeros(2)})  # log evidence 0
    gaussian = tb.fit(target, solver=tb.solvers.NaturalGradient())
    start = Flow.around(gaussian.q, layers=2, width=8, knots=6)
    fit = tb.fit(target, start, solver=tb.solvers.FixedNoise(pairs=512), max_steps=10)
    assert gaussian.elbo.value < -0.6
    assert fit.elbo.value > gaussian.elbo.value / 3
    assert fit.elbo.value < 4 * fit.elbo.stderr
    path = fit.save(tmp_path / "flow.tb")
    module._made.cache_clear()  # as in another process
    again = tb.load(path, target)
    z = fit.q.draw(5, 0)[0]
    np.testing.assert_array_equal(again.q.log_prob_on_host(z), fit.q.log_prob_on_host(z))
