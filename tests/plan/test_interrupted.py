"""Ctrl-C at each stage of a fit: what was found by then is returned, and says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.plan import climb, recipe
from tightbound.targets import zoo

pytestmark = pytest.mark.usefixtures("as_a_user")


def interrupt(*_, **__):
    raise KeyboardInterrupt


def standard_normal():
    return tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(3)})


def test_in_the_start_it_returns_the_best_point_seen(monkeypatch):
    def start(target, key, starts):
        recipe.gaussian(target, key, 1)  # charged, so that the account knows the best point
        interrupt()

    monkeypatch.setattr(recipe, "TABLE", [(tb.targets.Density, lambda _: recipe.Recipe(start))])
    fit = tb.fit(standard_normal())
    assert fit.result is tb.Result.interrupted
    assert fit.rung == "interrupted at the start"
    assert np.abs(fit.q.mean).max() < 1e-6  # L-BFGS ends at the mode of a Gaussian


def test_in_the_start_of_factors_it_returns_their_first_values(monkeypatch):
    monkeypatch.setattr(recipe, "factors", interrupt)
    target = tb.targets.GaussianMixture(np.array([-2.0, -1.9, 2.0, 2.1]), 2)
    fit = tb.fit(target, key=3)
    assert fit.result is tb.Result.interrupted
    leaves = zip(jax.tree.leaves(fit.q), jax.tree.leaves(target.start(3)), strict=True)
    assert all(np.array_equal(mine, first) for mine, first in leaves)


def test_in_the_first_run_it_says_so(monkeypatch):
    monkeypatch.setattr(tb.solvers.NaturalGradient, "step", interrupt)
    fit = tb.fit(standard_normal())
    assert fit.result is tb.Result.interrupted
    assert fit.rung == "interrupted during the climb"


@pytest.mark.parametrize("stage", ["_certificate", "look_closer"])
def test_after_a_better_rung_it_returns_that_one(monkeypatch, stage):
    """A banana: the nested family replaces the Gaussian before any certificate is made."""
    target = zoo.banana().target
    whole = tb.fit(target)
    monkeypatch.setattr(climb, stage, interrupt)
    fit = tb.fit(target)
    assert fit.result is tb.Result.interrupted
    assert fit.rung == "interrupted during the climb"
    assert type(fit.q) is type(whole.q) is not tb.families.Gaussian
    assert np.array_equal(fit.q.draw(100, 0)[0], whole.q.draw(100, 0)[0])
    assert np.array_equal(fit.trace.loss, whole.trace.loss)


def test_before_the_first_rung_has_ended_it_returns_the_gaussian(monkeypatch):
    monkeypatch.setattr(climb, "student", interrupt)
    fit = tb.fit(zoo.banana().target)
    assert fit.result is tb.Result.interrupted
    assert isinstance(fit.q, tb.families.Gaussian)
