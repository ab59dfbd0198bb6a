"""Which recipe stands for which target: each row of the table, and each way past it."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import tightbound as tb
from tightbound._numerics import x64
from tightbound.amortised.head_ladder import climb_heads
from tightbound.plan import policy
from tightbound.plan.recipe import TABLE, choose
from tightbound.plan.rungs.contaminated import contaminated, regression
from tightbound.plan.rungs.factors import factors
from tightbound.plan.rungs.start import gaussian, many_rows
from tightbound.solvers import CoordinateAscent, HeldOut
from tightbound.targets.base import AbstractTarget

pytestmark = pytest.mark.usefixtures("as_a_user")

X = np.random.default_rng(0).standard_normal(30)


def density():
    return tb.from_log_density(lambda p: -0.5 * jnp.sum(p["z"] ** 2), {"z": np.zeros(2)})


def rows():
    return tb.from_rows(
        lambda p: -0.5 * p["mu"] ** 2, lambda p, x: -0.5 * (x - p["mu"]) ** 2, X, {"mu": 0.0}
    )


def conjugate():
    return tb.targets.NormalSample(X)


def factors_alone():
    """A conjugate target that is no density."""
    return tb.targets.LatentDirichletAllocation.from_documents([[0, 1, 2, 1], [2]], 2)


def simulator(**known):
    return tb.from_simulator(
        lambda key: {"mu": jr.normal(key)},
        lambda key, p: p["mu"] + jr.normal(key, (2,)),
        **known,
    )


def simulations():
    z = np.random.default_rng(1).standard_normal((100, 1))
    return tb.from_simulations({"mu": z[:, 0]}, z + 0.1)


def regression_with_outliers():
    return tb.targets.LinearClutter(np.column_stack([np.ones(30), X]), X)


BEGINS = {
    "contaminated": (lambda: tb.targets.Clutter(X), contaminated),
    "contaminated, in many dimensions": (
        lambda: tb.targets.Clutter(np.zeros((3, policy.FULL_RANK_UP_TO + 1))),
        gaussian,
    ),
    "reweighted": (regression_with_outliers, regression),
    "conjugate": (conjugate, factors),
    "rows": (rows, many_rows),
    "density": (density, gaussian),
}


@pytest.mark.parametrize("name", BEGINS)
def test_each_row_of_the_table_has_its_start(name):
    make, begin = BEGINS[name]
    recipe = choose(make())
    assert recipe.begin is begin
    assert recipe.ladder is None
    assert bool(recipe.settled) == (name == "conjugate")


def test_simulators_climb_heads_where_fresh_simulations_judge_them():
    assert len(TABLE) == len(BEGINS)  # one row is this, and one of BEGINS is a row's other case
    fresh, stored = choose(simulator()), choose(simulations())
    assert fresh.ladder is stored.ladder is climb_heads
    assert not fresh.settled
    assert "trained on simulations" in stored.settled


def test_without_factors_a_conjugate_target_is_a_density():
    assert choose(conjugate(), with_factors=False).begin is gaussian
    assert choose(conjugate(), with_factors=True).begin is factors
    assert choose(density(), with_factors=False).begin is gaussian


def test_a_target_of_factors_alone_has_its_own_start_anyway():
    for with_factors in (True, False):
        assert choose(factors_alone(), with_factors=with_factors).begin is factors


def test_a_target_without_abilities_has_no_default():
    class Nothing(AbstractTarget):
        @property
        def coordinate_names(self):
            return ()

        def constrain(self, z):
            return z

        def unconstrain(self, values):
            return values

    with pytest.raises(tb.TargetError, match="no default for Nothing: .* simulator; .*; density"):
        choose(Nothing())


def test_a_given_q_keeps_its_family_where_a_solver_moves_it():
    target, q = density(), tb.families.Gaussian.diagonal(2)
    recipe = choose(target, q)
    assert recipe.begin(target, 0, None).q is q
    assert "that you chose" in recipe.settled
    with x64():
        product = conjugate().start(0)
        begun = choose(conjugate(), product).begin(conjugate(), 0, None)
    assert begun.q is product
    assert isinstance(begun.solver, CoordinateAscent)


def test_a_given_mixture_is_begun_anew_from_its_moments():
    apart = [tb.families.Gaussian.from_root(np.full(2, m), np.eye(2)) for m in (-1.0, 1.0)]
    q = tb.families.Mixture(apart)
    recipe = choose(density(), q)
    begun = recipe.begin(density(), 0, None)
    assert isinstance(begun.q, tb.families.Gaussian)
    np.testing.assert_allclose(begun.q.cov, [[2.0, 1.0], [1.0, 2.0]], atol=0.05)
    assert not recipe.settled
    assert "fitted anew" in recipe.note


def test_a_given_conditional_q_is_trained():
    target = simulator()
    with jax.numpy_dtype_promotion("standard"):
        q = choose(target).begin(target, 0, 1).q
    recipe = choose(target, q)
    begun = recipe.begin(target, 0, None)
    assert begun.q is q
    assert isinstance(begun.solver, HeldOut)
