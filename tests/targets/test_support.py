import numpy as np
import pytest
from numpyro.distributions import constraints

from tightbound import TargetError
from tightbound.targets.support import SUPPORTS, as_constraint, describe, holds, is_proper_when_flat


@pytest.mark.parametrize(
    ("support", "expected"),
    [
        ("real", None),
        (constraints.real_vector, None),
        ((None, None), None),
        ((-np.inf, np.inf), None),
        ("positive", constraints.positive),
        ((0, None), constraints.positive),
        (constraints.independent(constraints.positive, 1), constraints.positive),
        ((0, 1), constraints.unit_interval),
        ([0.0, 1.0], constraints.unit_interval),
        ((2, np.inf), constraints.greater_than(2.0)),
        ((None, -1.5), constraints.less_than(-1.5)),
        ((-1, 3), constraints.interval(-1.0, 3.0)),
        (constraints.interval(-1, 3), constraints.interval(-1.0, 3.0)),
        ("ordered", constraints.ordered_vector),
        ("correlation_cholesky", constraints.corr_cholesky),
    ],
)
def test_what_a_support_means(support, expected):
    constraint = as_constraint(support, "a", (2,))
    assert type(constraint) is type(expected)
    assert constraint is expected or constraint == expected


def test_array_bounds_are_float64_and_of_the_shape_of_the_value():
    constraint = as_constraint((np.array([0, 1]), 5), "a", (3, 2))
    assert constraint.lower_bound.dtype == np.float64
    np.testing.assert_array_equal(constraint.lower_bound, [[0, 1]] * 3)
    assert constraint.upper_bound == 5.0


@pytest.mark.parametrize(
    ("support", "sentence"),
    [
        (
            "postive",
            (
                r"`support\['a'\]` is 'postive'.* Known names: real, positive, .* Did you mean"
                r" 'positive'\?"
            ),
        ),
        ((1, 2, 3), r"`support\['a'\]` has 3 entries"),
        ((2, 1), r"`support\['a'\]` is \(2, 1\), but low must be below high"),
        ((1, 1), "low must be below high"),
        ((np.nan, 1), "an end of the interval is NaN"),
        (("0", "x"), r"ends of an interval are numbers, None for an open end, or arrays"),
        ((np.zeros(4), 1), r"broadcast to the value's shape \(2,\)"),
        ((np.array([0, -np.inf]), 1), "finite and infinite ends in one parameter. Split it"),
        (3.0, r"`support\['a'\]` is 3.0 of type float"),
        (
            constraints.greater_than,
            r"is the class GreaterThan, not a constraint: call it with its bounds",
        ),
        (constraints.dependent, "depends on other values.*tb.from_numpyro"),
        (constraints.boolean, "its values are discrete"),
        (constraints.positive_integer, "its values are discrete"),
        (constraints.sphere, "no bijection"),
        (constraints.complex, "its values are complex; use two real"),
    ],
)
def test_bad_supports_are_named(support, sentence):
    with pytest.raises(TargetError, match=sentence):
        as_constraint(support, "a", (2,))


@pytest.mark.parametrize(
    ("support", "inside", "outside"),
    [
        ("positive", 0.1, 0.0),
        ("unit_interval", 0.5, 1.0),
        ((-1, None), -0.9, -1.0),
        ((None, 2), 1.9, 2.0),
        ("circular", 3.0, 3.2),
        ("simplex", [0.25, 0.75], [0.0, 1.0]),
        ("simplex", [0.25, 0.75], [0.5, 0.6]),
        ("ordered", [-1.0, 2.0], [2.0, 1.0]),
        ("positive_ordered", [0.5, 2.0], [-0.5, 2.0]),
        ("lower_cholesky", [[1.0, 0.0], [3.0, 2.0]], [[1.0, 1.0], [0.0, 1.0]]),
        ("correlation_cholesky", [[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.6, 0.9]]),
    ],
)
def test_the_boundary_is_outside(support, inside, outside):
    inside, outside = np.asarray(inside), np.asarray(outside)
    constraint = as_constraint(support, "a", inside.shape)
    assert holds(constraint, inside)
    assert holds(constraint, inside.astype(np.float32).astype(np.float64))
    assert not holds(constraint, outside)


def test_every_name_is_described_by_itself():
    for name in SUPPORTS:
        assert describe(as_constraint(name, "a", (2, 2))) == f"'{name}'"
    assert describe(as_constraint((1, 2), "a", ())) == "Interval(lower_bound=1.0, upper_bound=2.0)"


@pytest.mark.parametrize(
    ("support", "proper"), [("real", False), ("positive", False), ((0, 2), True), ("simplex", True)]
)
def test_which_flat_densities_are_proper(support, proper):
    assert is_proper_when_flat(as_constraint(support, "a", (2,))) is proper
