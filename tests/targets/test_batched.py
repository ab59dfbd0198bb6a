"""The compiled evaluator: equal to jax.value_and_grad at any number of points.

What it compiles, and what it shares; and the compiled map to named values.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound._numerics import x64
from tightbound.targets.batched import _programs, batched, chunk_size, constrain_batch


def curved(p):
    return -jnp.sum(jnp.cosh(p["x"])) + p["x"][0] * p["s"] - p["s"] ** 2


def made(function=curved):
    return tb.from_log_density(function, {"x": np.zeros(3), "s": 1.0}, support={"s": "positive"})


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 1023, 1024, 1025, 3000])
def test_equals_value_and_grad(count):
    target, points = made(), np.random.default_rng(0).standard_normal((count, 4))
    values, scores = batched(target)(points)
    with x64():
        expected = jax.jit(jax.vmap(jax.value_and_grad(target.log_density)))(jnp.asarray(points))
    np.testing.assert_allclose(values, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(scores, expected[1], rtol=1e-12, atol=1e-12)
    assert values.dtype == scores.dtype == np.float64
    assert values.shape == (count,)
    assert scores.shape == (count, 4)


def test_evaluations_count_points():
    evaluate = batched(made())
    for count in (3, 1030):
        evaluate(np.zeros((count, 4)))
    assert evaluate.evaluations == 1033


def test_what_is_not_finite_is_passed_through_and_touches_no_neighbour():
    target = tb.from_log_density(lambda p: jnp.log(p["x"]) - p["x"], {"x": 1.0})
    values, scores = batched(target)(np.array([[-1.0], [2.0], [0.0], [np.nan], [3.0]]))
    np.testing.assert_array_equal(np.isfinite(values), [False, True, False, False, True])
    np.testing.assert_allclose(values[[1, 4]], np.log([2.0, 3.0]) - [2.0, 3.0], rtol=1e-14)
    np.testing.assert_allclose(scores[[1, 4], 0], [0.5 - 1, 1 / 3 - 1], rtol=1e-14)


def test_padding_repeats_a_point_that_was_asked_for():
    """A density may loop for ever where it is undefined: only the given points are evaluated."""
    seen = set()

    def log_density(p):
        jax.debug.callback(lambda x: seen.add(float(x)), p["x"])
        return -(p["x"] ** 2)

    values, _ = batched(tb.from_log_density(log_density, {"x": 0.0}))(
        np.array([[3.0], [4.0], [5.0]])
    )
    jax.effects_barrier()
    assert seen == {3.0, 4.0, 5.0}
    np.testing.assert_allclose(values, [-9.0, -16.0, -25.0])


def test_one_evaluator_per_target_object():
    first, second = made(), made()
    assert batched(first) is batched(first)
    assert batched(first) is not batched(second)


def test_other_data_of_the_same_shapes_share_the_program():
    def make(y):
        return tb.from_log_density(lambda p: -jnp.sum((y - p["m"]) ** 2), {"m": 0.0})

    first = batched(make(np.arange(6.0)))
    count = len(_programs)
    second = batched(make(np.arange(6.0) + 1.0))
    assert second._program is first._program
    assert len(_programs) == count
    assert second(np.zeros((1, 1)))[0] == pytest.approx(-np.sum((np.arange(6.0) + 1) ** 2)), (
        "with its own data"
    )
    assert batched(make(np.arange(7.0)))._program is not first._program


def test_arrays_that_the_density_does_not_read_may_have_any_shape():
    """Their shapes are in no instruction of the program, so a program found by its text alone would
    refuse them.
    """

    def make(width):
        data = {"y": np.arange(4.0), "unused": np.zeros((4, width))}
        return tb.from_rows(lambda p: 0.0, lambda p, r: -((r["y"] - p["m"]) ** 2), data, {"m": 0.0})

    values = [batched(make(width))(np.ones((2, 1)))[0] for width in (1, 2, 3)]
    for value in values:
        np.testing.assert_allclose(value, -(1.0 + 0.0 + 1.0 + 4.0))


def jaxpr_of(function, *shapes):
    with x64():
        return jax.make_jaxpr(function)(
            *[jax.ShapeDtypeStruct(shape, np.float64) for shape in shapes]
        ).jaxpr


CHUNKS = {
    "small": (lambda z: jnp.sum(z**2), [(10,)], 16),
    "intermediates of 2^14 numbers": (lambda z: jnp.sum(jnp.outer(z, z)), [(128,)], 8),
    "intermediates beyond the cache": (lambda z: jnp.sum(jnp.outer(z, z) ** 2), [(1000,)], 1),
    "a gather": (lambda z: jnp.sum(z[np.array([0, 1, 1])]), [(10,)], 4),
    "a scatter": (lambda z: jnp.sum(jnp.zeros(5).at[np.array([0, 1])].add(z[:2])), [(10,)], 4),
    "a large matrix, shared": (lambda z, x: jnp.sum(x @ z), [(10,), (200_000, 10)], 4),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_the_chunk_follows_from_shapes_alone(name):
    function, shapes, expected = CHUNKS[name]
    assert chunk_size(jaxpr_of(function, *shapes)) == expected


def test_chunks_of_inner_programs_count():
    def scanned(z):
        return jax.lax.scan(lambda c, _: (c + jnp.sum(jnp.outer(z, z)), None), 0.0, None, length=3)[
            0
        ]

    assert chunk_size(jaxpr_of(scanned, (1000,))) == 1


@pytest.mark.parametrize("name", ["irregular", "one by one"])
def test_every_chunk_size_gives_the_same_numbers(name):
    index = np.array([0, 2, 2, 1])
    functions = {
        "irregular": lambda p: -jnp.sum(p["x"][index] ** 2),
        "one by one": lambda p: (
            -jnp.sum((jnp.outer(jnp.repeat(p["x"], 300), jnp.repeat(p["x"], 300))) ** 2) * 1e-6
        ),
    }
    target = tb.from_log_density(functions[name], {"x": np.zeros(3)})
    points = np.random.default_rng(0).standard_normal((21, 3))
    evaluate = batched(target)
    assert evaluate.chunk == {"irregular": 4, "one by one": 1}[name]
    exact = {
        "irregular": -np.sum(points[:, index] ** 2, 1),
        "one by one": -9e-2 * np.sum(points**2, 1) ** 2,
    }[name]
    np.testing.assert_allclose(evaluate(points)[0], exact, rtol=1e-12)


def test_a_sum_over_twenty_thousand_rows_is_right():
    """jaxlib 0.10.2 is wrong by hundreds of nats here unless told otherwise (jax issue 39103)."""
    rng = np.random.default_rng(0)
    x, y, z = (
        rng.standard_normal((20_000, 5)),
        rng.standard_normal(20_000),
        rng.standard_normal((4, 5)),
    )
    target = tb.from_log_density(
        lambda p: jnp.sum(y * (x @ p["b"])) - 0.5 * jnp.sum(p["b"] ** 2), {"b": np.zeros(5)}
    )
    values, _ = batched(target)(z)
    np.testing.assert_allclose(values, z @ (x.T @ y) - 0.5 * (z**2).sum(axis=1), rtol=1e-9)


def test_a_users_own_sums_are_right_after_the_import():
    """The same sum in a program of the user's, in a process of its own."""
    code = """
import tightbound, jax, jax.numpy as jnp, numpy as np
rng = np.random.default_rng(0)
x, y, b = rng.standard_normal((20_000, 5)), rng.standard_normal(20_000), rng.standard_normal((4, 5))
with jax.enable_x64(True):
    sums = jax.jit(jax.vmap(lambda b: jnp.sum(y * (x @ b))))(b)
np.testing.assert_allclose(sums, b @ (x.T @ y), rtol=1e-9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_hessian_products_equal_the_hessian():
    target = tb.from_log_density(
        lambda p: -jnp.sum(jnp.cosh(p["z"])) + p["z"][0] * p["z"][1] ** 2, {"z": np.zeros(3)}
    )
    rng = np.random.default_rng(0)
    points, directions = rng.standard_normal((2, 37, 3))
    evaluator = batched(target)
    before = evaluator.evaluations
    products = evaluator.hessian_products(points, directions)
    assert evaluator.evaluations == before + 2 * 37
    with jax.enable_x64(True):
        hessians = jax.vmap(jax.hessian(target.log_density))(jnp.asarray(points))
    np.testing.assert_allclose(
        products, np.einsum("nij,nj->ni", hessians, directions), rtol=1e-10, atol=1e-12
    )
    assert evaluator.hessian_products(points[:0], directions[:0]).shape == (0, 3)


# -- the map to named values
# ----------------------------------------------------------------------------------------


NAMED = {"b": np.zeros((2, 2)), "a": 1.0, "w": np.ones(3) / 3}


def with_names(**kwargs):
    def log_density(p):
        return -jnp.sum(p["b"] ** 2) - p["a"] + jnp.sum(jnp.log(p["w"]))

    return tb.from_log_density(
        log_density, NAMED, support={"a": "positive", "w": "simplex"}, **kwargs
    )


@pytest.mark.parametrize("count", [0, 1, 7, 1000, 1001, 2500])
def test_each_row_is_constrained(count):
    target, points = with_names(), np.random.default_rng(0).standard_normal((count, 7))
    values = constrain_batch(target, points)
    np.testing.assert_allclose(values["a"], np.exp(points[:, 0]), rtol=1e-14)
    np.testing.assert_allclose(values["b"], points[:, 1:5].reshape(count, 2, 2), rtol=0)
    assert values["w"].shape == (count, 3)
    np.testing.assert_allclose(values["w"].sum(axis=1), 1.0, rtol=1e-14)
    assert all(leaf.dtype == np.float64 for leaf in values.values())
    for i in range(min(count, 2)):
        np.testing.assert_allclose(values["w"][i], target.constrain(points[i])["w"], rtol=1e-14)


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
