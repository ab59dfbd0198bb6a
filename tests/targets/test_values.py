"""From points to named values: order, names, padding, and what is compiled."""

import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.targets.batched import _programs
from tightbound.targets.values import constrain_batch, flatten_values, indexed_names, path_name

EXAMPLE = {"b": np.zeros((2, 2)), "a": 1.0, "w": np.ones(3) / 3}


def made(**kwargs):
    def log_density(p):
        return -jnp.sum(p["b"] ** 2) - p["a"] + jnp.sum(jnp.log(p["w"]))

    return tb.from_log_density(
        log_density, EXAMPLE, support={"a": "positive", "w": "simplex"}, **kwargs
    )


@pytest.mark.parametrize("count", [0, 1, 7, 1000, 1001, 2500])
def test_each_row_is_constrained(count):
    target, points = made(), np.random.default_rng(0).standard_normal((count, 7))
    values = constrain_batch(target, points)
    np.testing.assert_allclose(values["a"], np.exp(points[:, 0]), rtol=1e-14)
    np.testing.assert_allclose(values["b"], points[:, 1:5].reshape(count, 2, 2), rtol=0)
    assert values["w"].shape == (count, 3)
    np.testing.assert_allclose(values["w"].sum(axis=1), 1.0, rtol=1e-14)
    assert all(leaf.dtype == np.float64 for leaf in values.values())
    for i in range(min(count, 2)):
        np.testing.assert_allclose(values["w"][i], target.constrain(points[i])["w"], rtol=1e-14)


def test_names_are_in_the_order_of_columns():
    points = np.random.default_rng(0).standard_normal((5, 7))
    names, columns = flatten_values(constrain_batch(made(), points))
    assert names == ("a", "b[0, 0]", "b[0, 1]", "b[1, 0]", "b[1, 1]", "w[0]", "w[1]", "w[2]")
    np.testing.assert_allclose(columns[:, 0], np.exp(points[:, 0]))
    np.testing.assert_array_equal(columns[:, 3], points[:, 3])  # b[1, 0] is the third entry of b
    assert names == made().value_names


def test_derived_values_take_part():
    target = made(derived=lambda p: {"c": jnp.stack([p["a"], 2 * p["a"]])})
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


def test_a_target_that_is_built_again_compiles_nothing_and_keeps_its_own_arrays():
    def make(low):
        return tb.from_log_density(
            lambda p: -jnp.sum(p["x"]),
            {"x": np.full(2, 50.0)},
            support={"x": (np.array([low, 0.0]), None)},
        )

    first = constrain_batch(make(1.0), np.zeros((4, 2)))["x"]
    count = len(_programs)
    second = constrain_batch(make(9.0), np.zeros((4, 2)))["x"]
    assert len(_programs) == count
    np.testing.assert_allclose(first, [[2.0, 1.0]] * 4)
    np.testing.assert_allclose(second, [[10.0, 1.0]] * 4)


def test_the_same_program_under_other_names_keeps_the_names():
    for name in ("x", "y"):
        target = tb.from_log_density(lambda p, name=name: -(p[name] ** 2), {name: 0.0})
        assert list(constrain_batch(target, np.ones((3, 1)))) == [name]


def test_data_of_any_number_of_rows_share_the_map():
    def make(rows):
        return tb.from_rows(
            lambda p: 0.0, lambda p, r: -((r - p["m"]) ** 2), np.arange(float(rows)), {"m": 0.0}
        )

    constrain_batch(make(3), np.ones((4, 1)))
    count = len(_programs)
    np.testing.assert_array_equal(constrain_batch(make(8), np.ones((4, 1)))["m"], 1.0)
    assert len(_programs) == count
