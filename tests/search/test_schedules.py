"""Robbins-Monro step sizes: the two sums, and what is refused."""

import numpy as np
import pytest
import scipy.special

from tightbound.solvers import RobbinsMonro


@pytest.mark.parametrize("power", [0.51, 0.7, 1.0])
def test_the_first_sum_diverges_and_the_second_converges(power):
    schedule = RobbinsMonro(0.3, power, 50.0)
    t = np.arange(200_000)
    steps = np.asarray(schedule(t))
    np.testing.assert_allclose(
        steps[[0, 50, 150]], 0.3 * np.array([1.0, 2.0, 4.0]) ** -power, rtol=1e-12
    )
    # sum of squares to infinity by the Hurwitz zeta function; the bound on what is left is above it
    # and tends to it
    whole = 0.3**2 * 50.0 ** (2 * power) * scipy.special.zeta(2 * power, 50.0)
    left = whole - (steps**2).sum()
    assert left <= schedule.sum_from(200_000) < 1.01 * left
    # the plain sum grows like T^(1 - power), or log T: from T to 4 T by as much as from T / 4 to T,
    # or more
    parts = [steps[k : 4 * k].sum() for k in (3_000, 12_000, 48_000)]
    assert np.diff(parts).min() > -0.02 * parts[0]


def test_equal_schedules_are_equal():
    assert RobbinsMonro(0.3) == RobbinsMonro(0.3)
    assert hash(RobbinsMonro(0.3)) == hash(RobbinsMonro(0.3))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"power": 1.2}, "with `power` 1.2 the step sizes have a finite sum"),
        ({"power": 0.5}, "with `power` 0.5 the squares of the steps have no finite sum"),
        ({"first": 0.0}, "`first` must be a positive number, got 0.0"),
        ({"delay": float("inf")}, "`delay` must be a positive number, got inf"),
    ],
)
def test_what_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        RobbinsMonro(**arguments)
