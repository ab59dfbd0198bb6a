"""The bijection to R^dim: against NumPyro and autodiff; names of values, and every refusal."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints

import tightbound as tb
from tightbound import TargetError
from tightbound._numerics import x64
from tightbound.targets import Layout
from tightbound.targets.batched import constrain_batch
from tightbound.targets.layout import (
    flatten_values,
    indexed_names,
    named_leaves,
    path_name,
    value_names,
)

LOWER = np.array([[1.5, 0.0, 0.0], [0.3, 0.7, 0.0], [-1.0, 2.0, 0.4]])
CORRELATION = np.linalg.cholesky(np.array([[1.0, 0.3, -0.2], [0.3, 1.0, 0.5], [-0.2, 0.5, 1.0]]))


def strict_lower(a):
    return a[..., *np.tril_indices(a.shape[-1], -1)]


def lower(a):
    return a[..., *np.tril_indices(a.shape[-1])]


def but_last(a):
    return a[..., :-1]


# name -> support, a value inside it, and which of its entries are free (NumPyro's reference
# measure)
CASES = {
    "real": ("real", np.array([[0.3, -1.0]]), np.ravel),
    "scalar": ("real", 0.5, np.ravel),
    "positive": ("positive", np.array([0.3, 2.0]), np.ravel),
    "above": ((2.0, None), np.array([2.5, 9.0]), np.ravel),
    "below": ((None, -1.0), np.array([-1.5, -9.0]), np.ravel),
    "unit_interval": ("unit_interval", np.array([0.2, 0.9]), np.ravel),
    "interval": ((-1.0, 3.0), np.array([[0.2, 2.9]]), np.ravel),
    "interval of arrays": (
        (np.array([0.0, -5.0]), np.array([1.0, 5.0])),
        np.array([[0.2, 2.9], [0.1, 0.0]]),
        np.ravel,
    ),
    "circular": ("circular", np.array([-3.0, 1.0]), np.ravel),
    "simplex": ("simplex", np.array([0.2, 0.5, 0.3]), but_last),
    "batch of simplexes": ("simplex", np.array([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]]), but_last),
    "simplex of one": ("simplex", np.array([1.0]), but_last),
    "ordered": ("ordered", np.array([-1.0, 0.5, 3.0]), np.ravel),
    "positive_ordered": ("positive_ordered", np.array([0.1, 0.5, 3.0]), np.ravel),
    "lower_cholesky": ("lower_cholesky", LOWER, lower),
    "batch of lower_cholesky": (
        "lower_cholesky",
        np.stack([LOWER, LOWER + 0.1 * np.eye(3)]),
        lower,
    ),
    "correlation_cholesky": ("correlation_cholesky", CORRELATION, strict_lower),
    "correlation": (constraints.corr_matrix, CORRELATION @ CORRELATION.T, strict_lower),
    "positive_definite": (constraints.positive_definite, LOWER @ LOWER.T, lower),
    "softplus_positive": (constraints.softplus_positive, np.array([0.3, 2.0]), np.ravel),
    "l1_ball": (constraints.l1_ball, np.array([0.3, -0.2]), np.ravel),
}


def layout_of(case):
    support, value, _ = CASES[case]
    return Layout.from_example({"a": value, "offset": 0.25}, {"a": support})


@pytest.mark.parametrize("case", CASES)
def test_log_jacobian_is_that_of_autodiff(case):
    layout, free = layout_of(case), CASES[case][2]

    def independent_entries(z):
        values = layout.constrain(z)
        return jnp.concatenate(
            [
                jnp.ravel(free(values["a"]) if free is not np.ravel else values["a"]),
                values["offset"][None],
            ]
        )

    for seed in range(3):
        z = 0.8 * np.random.default_rng(seed).standard_normal(layout.dim)
        with x64():
            jacobian = jax.jacobian(independent_entries)(jnp.asarray(z))
            _, expected = np.linalg.slogdet(jacobian)
            assert layout.constrain_with_log_det(z)[1] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_unconstrain_is_the_inverse(case):
    layout = layout_of(case)
    example = {"a": np.asarray(CASES[case][1]), "offset": np.asarray(0.25)}
    z = 0.8 * np.random.default_rng(0).standard_normal(layout.dim)
    with x64():
        np.testing.assert_allclose(layout.unconstrain(layout.constrain(z)), z, atol=1e-12)
        back = layout.constrain(layout.unconstrain(example))
    for name, value in example.items():
        assert back[name].shape == value.shape
        np.testing.assert_allclose(back[name], value, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_values_are_inside_their_support(case):
    layout = layout_of(case)
    z = 3.0 * np.random.default_rng(1).standard_normal(layout.dim)
    with x64():
        values = jax.tree.map(np.asarray, layout.constrain(z))
    Layout.from_example(values, {"a": CASES[case][0]})  # which checks that they are


@pytest.mark.parametrize("case", CASES)
def test_names_count_what_they_name(case):
    layout = layout_of(case)
    assert len(set(layout.coordinate_names)) == layout.dim
    assert len(set(layout.value_names)) == np.size(CASES[case][1]) + 1


def test_zero_sum_keeps_volume():
    layout = Layout.from_example({"a": np.array([1.0, -3.0, 2.0])}, {"a": constraints.zero_sum(1)})
    with x64():
        jacobian = np.asarray(jax.jacobian(lambda z: layout.constrain(z)["a"])(jnp.zeros(2)))
        assert layout.constrain_with_log_det(np.zeros(2))[1] == 0
    np.testing.assert_allclose(jacobian.T @ jacobian, np.eye(2), atol=1e-12)


def test_coordinate_names():
    example = {
        "mu": 0.0,
        "beta": np.zeros(2),
        "A": np.zeros((1, 2)),
        "theta": np.ones((2, 3)) / 3,
        "L": np.eye(2),
    }
    layout = Layout.from_example(example, {"theta": "simplex", "L": "lower_cholesky"})
    assert layout.coordinate_names == (
        "A[0, 0]", "A[0, 1]", "L[0]", "L[1]", "L[2]", "beta[0]", "beta[1]", "mu",
        "theta[0, 0]", "theta[0, 1]", "theta[1, 0]", "theta[1, 1]",
    )  # fmt: skip
    assert layout.value_names[2:6] == ("L[0, 0]", "L[0, 1]", "L[1, 0]", "L[1, 1]")


def test_values_come_in_the_order_of_their_names():
    layout = Layout.from_example(
        {"b": np.zeros(2), "a": {"y": 1.0, "x": np.ones(2) / 2}},
        {"a": {"x": "simplex", "y": "positive"}},
    )
    assert layout.coordinate_names == ("a.x[0]", "a.y", "b[0]", "b[1]")
    with x64():
        values = layout.constrain(np.array([0.0, 1.0, 2.0, 3.0]))
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(values)])
    assert dict(zip(layout.value_names, flat, strict=True)) == pytest.approx(
        {"a.x[0]": 0.5, "a.x[1]": 0.5, "a.y": np.e, "b[0]": 2.0, "b[1]": 3.0}
    )
    assert value_names(values) == layout.value_names


Point = collections.namedtuple("Point", ["x", "y"])


@pytest.mark.parametrize(
    ("example", "names"),
    [
        (np.zeros(2), ("z[0]", "z[1]")),
        ([np.zeros(1), 0.0], ("0[0]", "1")),
        (Point(0.0, np.zeros(1)), ("x", "y[0]")),
        ({"layers": [np.zeros(1), np.zeros(1)]}, ("layers.0[0]", "layers.1[0]")),
        ({"n": 3, "f": np.float32(0.5)}, ("f", "n")),
    ],
)
def test_any_pytree_works_and_integers_count_as_floats(example, names):
    layout = Layout.from_example(example)
    assert layout.coordinate_names == names
    with x64():
        values = layout.constrain(np.zeros(layout.dim))
    assert jax.tree.structure(values) == jax.tree.structure(example)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(values))


def test_further_entries_are_ignored_and_missing_ones_named():
    layout = Layout.from_example({"mu": 0.0, "tau": 1.0}, {"tau": "positive"})
    with x64():
        np.testing.assert_allclose(
            layout.unconstrain({"mu": 2.0, "tau": 1.0, "derived": np.ones(3)}), [2.0, 0.0]
        )
        with pytest.raises(TargetError, match=r"`values` lacks 'tau'; it has mu\."):
            layout.unconstrain({"mu": 2.0})
        with pytest.raises(
            TargetError, match=r"values\['mu'\] has shape \(2,\), but the target's has \(\)"
        ):
            layout.unconstrain({"mu": np.zeros(2), "tau": 1.0})


def test_a_point_of_the_wrong_shape():
    layout = Layout.from_example({"mu": np.zeros(3)})
    with pytest.raises(ValueError, match=r"one point of shape \(3,\), got \(2, 3\); use jax.vmap"):
        layout.constrain(np.zeros((2, 3)))


def test_works_in_float32_where_asked():
    layout = Layout.from_example({"a": np.ones(3) / 3, "s": 1.0}, {"a": "simplex", "s": "positive"})
    values, log_det = layout.constrain_with_log_det(np.zeros(3, np.float32))
    assert {leaf.dtype.name for leaf in [*jax.tree.leaves(values), log_det]} == {"float32"}


def test_float32_bounds_made_outside_the_scope_work_inside():
    layout = Layout.from_example(
        {"a": np.ones(2)}, {"a": constraints.interval(jnp.zeros(2), jnp.full(2, 3.0))}
    )
    with x64():
        assert layout.constrain(np.zeros(2))["a"].dtype == np.float64


@pytest.mark.parametrize(
    ("example", "support", "sentence"),
    [
        ({}, None, "`example` has no values"),
        ({"a": None}, None, r"`example\['a'\]` is None, but a value is a float"),
        ({"a": "0"}, None, r"`example\['a'\]` is '0', but a value is a float"),
        ({"a": True}, None, r"`example\['a'\]` has dtype bool, but values must be real"),
        ({"a": 1j}, None, r"`example\['a'\]` has dtype complex128"),
        ({"a": np.array(["x"])}, None, r"`example\['a'\]` is ndarray of dtype <U1"),
        ({"a": object()}, None, r"`example\['a'\]` is object of dtype object"),
        (
            {"a": np.zeros((0, 3))},
            None,
            r"`example\['a'\]` has shape \(0, 3\), that is, no elements",
        ),
        ({"a": np.array([0.0, np.nan])}, None, r"`example\['a'\]` contains nan"),
        ({"a": np.inf}, None, r"`example\['a'\]` contains inf"),
        (
            {"a": 0.0},
            {"b": "positive"},
            r"`support` names 'b', which is not in `example`. Its names: a.",
        ),
        ({"sigma": 1.0}, {"sigm": "positive"}, r"Did you mean 'sigma'\?"),
        (
            {"a": 0.0},
            "positive",
            "`support` must be a dict from names to supports, got str 'positive'",
        ),
        (
            {"a": 0.0},
            {"a": "positive"},
            r"`example\['a'\]` = 0. is not inside its support 'positive'",
        ),
        (
            {"a": -1},
            {"a": (0, 2)},
            r"`example\['a'\]` = -1. is not inside its support Interval\(lower_bound=0.0",
        ),
        (
            {"a": np.ones(3)},
            {"a": "simplex"},
            r"`example\['a'\]` = \[1. 1. 1.\] is not inside its support 'simplex'",
        ),
        (
            {"a": 0.5},
            {"a": "simplex"},
            r"`a` has shape \(\), which does not fit its support 'simplex'.*last axes",
        ),
        (
            {"a": np.ones((2, 3))},
            {"a": "lower_cholesky"},
            r"`a` has shape \(2, 3\), which does not fit.*not square",
        ),
        ({"a": [1.0]}, {"a.0": "simplex"}, "does not fit its support 'simplex'"),
        ({"a": np.array([1.0])}, {"a": "simplex"}, "The values a have no free coordinate"),
        ({"a.b": 0.0, "a": {"b": 1.0}}, None, "`example` has two values called 'a.b'"),
        ({"a": 0.0, 1: 0.0}, None, "`example` is not a pytree that JAX can flatten"),
    ],
)
def test_bad_examples_are_named(example, support, sentence):
    with pytest.raises(TargetError, match=sentence):
        Layout.from_example(example, support)


def test_nothing_is_compiled(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(jax._src.compiler, "compile_or_get_cached", refuse)
    Layout.from_example(
        {"a": 0.31, "b": np.ones(3) / 3, "c": CORRELATION}, {"a": (0.1, 0.7), "b": "simplex"}
    )


def test_named_leaves():
    assert named_leaves({"b": 1, "a": {"c": [2, None]}}) == {"a.c.0": 2, "a.c.1": None, "b": 1}


# -- names of values, and their columns
# ----------------------------------------------------------------------------------------


NAMED = {"b": np.zeros((2, 2)), "a": 1.0, "w": np.ones(3) / 3}


def with_names(**kwargs):
    def log_density(p):
        return -jnp.sum(p["b"] ** 2) - p["a"] + jnp.sum(jnp.log(p["w"]))

    return tb.from_log_density(
        log_density, NAMED, support={"a": "positive", "w": "simplex"}, **kwargs
    )


def test_names_are_in_the_order_of_columns():
    points = np.random.default_rng(0).standard_normal((5, 7))
    names, columns = flatten_values(constrain_batch(with_names(), points))
    assert names == ("a", "b[0, 0]", "b[0, 1]", "b[1, 0]", "b[1, 1]", "w[0]", "w[1]", "w[2]")
    np.testing.assert_allclose(columns[:, 0], np.exp(points[:, 0]))
    np.testing.assert_array_equal(columns[:, 3], points[:, 3])  # b[1, 0] is the third entry of b
    assert names == with_names().value_names


def test_derived_values_take_part():
    target = with_names(derived=lambda p: {"c": jnp.stack([p["a"], 2 * p["a"]])})
    names, columns = flatten_values(constrain_batch(target, np.zeros((3, 7))))
    assert names[5:7] == ("c[0]", "c[1]")
    np.testing.assert_array_equal(columns[:, 5:7], [[1.0, 2.0]] * 3)


def test_integers_and_nothing():
    names, columns = flatten_values(
        {"n": np.array([1, 2]), "flag": np.array([True, False]), "none": np.zeros((2, 0))}
    )
    assert names == ("flag", "n")
    np.testing.assert_array_equal(columns, [[1.0, 1.0], [0.0, 2.0]])
    assert flatten_values({})[0] == ()


def test_names_of_leaves():
    assert indexed_names("x", ()) == ["x"]
    assert indexed_names("x", (2,)) == ["x[0]", "x[1]"]
    assert indexed_names("x", (1, 2)) == ["x[0, 0]", "x[0, 1]"]
    assert path_name(()) == "z"
    names, _ = flatten_values({"outer": {"inner": np.zeros(1)}, "list": [np.zeros(1), np.zeros(1)]})
    assert names == ("list.0", "list.1", "outer.inner")
