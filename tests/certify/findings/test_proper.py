"""Posteriors that are none."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.certify.certificate import look_closer
from tightbound.certify.fitted import Pair
from tightbound.families.gaussian import Gaussian
from tightbound.targets.base import Density

pytestmark = pytest.mark.usefixtures("as_a_user")


@dataclasses.dataclass
class RanAway:
    q: Gaussian
    target: Density
    result: tb.Result = tb.Result.unbounded


def test_an_improper_posterior_is_found_by_a_check_of_any_approximation():
    flat = tb.from_log_density(
        lambda p: -0.5 * p["a"] ** 2 + 0.0 * p["b"] - 0.5 * jnp.log1p(p["b"] ** 2),
        {"a": 0.0, "b": 0.0},
    )
    certificate = tb.check(Pair(Gaussian.full(2), flat), key=0)
    assert certificate["proper"].where == ("b",)
    assert certificate.verdict == "fail"


@pytest.mark.parametrize("power", [1.5, 0.9])
def test_a_tail_is_improper_where_its_power_is_below_one(power):
    """log p = -power log(1 + |b|) far out: integrable if and only if power > 1.

    A Gaussian does not pass for either, so that it is looked at.
    """
    target = tb.from_log_density(
        lambda p: -power * jnp.log1p(jnp.abs(p["b"])) - 0.5 * p["a"] ** 2, {"a": 0.0, "b": 0.0}
    )
    certificate = tb.check(Pair(Gaussian.full(2), target), key=0)
    assert ("proper" in certificate) == (power < 1)


def test_it_is_not_looked_for_where_everything_passes():
    target = tb.from_log_density(lambda p: -0.5 * p["a"] ** 2, {"a": 0.0})
    q = Gaussian.full(1)
    passing = tb.check(Pair(q, target), key=0)
    assert passing.verdict == "pass"
    assert look_closer(Pair(q, target), passing, 0) is passing


def test_a_search_that_ran_away_is_believed_where_no_straight_ray_shows_why():
    target = tb.from_log_density(lambda p: -0.5 * (p["a"] ** 2 + p["b"] ** 2), {"a": 0.0, "b": 0.0})
    q = Gaussian.full(2).moved(np.zeros(2), np.array([1.0, 1e3]))
    fitted = RanAway(q, target)
    found = look_closer(fitted, tb.check(Pair(q, target), key=0), 0)["proper"]
    assert found.verdict == "fail"
    assert found.where == ("b",), "q's widest coordinate"
