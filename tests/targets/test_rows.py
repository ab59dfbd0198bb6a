import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound import TargetError
from tightbound._numerics import to_device, x64
from tightbound.targets.batched import batched
from tightbound.targets.rows import as_rows

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 2))
Y = (RNG.random(20) < 0.5).astype(int)
Z = np.array([0.3, -0.2, 0.1])


def log_prior(params):
    return -0.5 * jnp.sum(params["beta"] ** 2) - params["scale"]


def log_likelihood(params, rows):
    logits = rows["X"] @ params["beta"] / params["scale"]
    return rows["y"] * logits - jax.nn.softplus(logits)


def made(data=None, **keywords):
    data = {"X": X, "y": Y} if data is None else data
    example = {"beta": np.zeros(2), "scale": 1.0}
    return tb.from_rows(
        log_prior, log_likelihood, data, example, support={"scale": "positive"}, **keywords
    )


def test_is_the_sum_that_it_says():
    target = made()
    values = target.constrain(Z)
    logits = X @ values["beta"] / values["scale"]
    by_hand = (
        -0.5 * np.sum(values["beta"] ** 2)
        - values["scale"]
        + Z[2]
        + np.sum(Y * logits - np.logaddexp(0, logits))
    )
    assert target.log_density(Z) == pytest.approx(by_hand, rel=1e-14)
    parts = target.log_prior(Z) + target.log_likelihood(Z, target.data).sum()
    assert parts == pytest.approx(by_hand, rel=1e-14)
    assert target.num_rows == 20


def test_gradient_equals_finite_differences():
    evaluate, h = batched(made()), 1e-5 * np.eye(3)
    slope = (evaluate(Z + h)[0] - evaluate(Z - h)[0]) / 2e-5
    np.testing.assert_allclose(evaluate(Z[None])[1][0], slope, rtol=1e-7)


def test_a_minibatch_counts_each_row_n_over_b_times():
    target, index = made(), np.array([3, 3, 7, 19])
    part = target.take(index)
    expected = target.log_prior(Z) + 5 * target.log_likelihood(Z, target.rows_at(index)).sum()
    assert part.log_density(Z) == pytest.approx(expected, rel=1e-14)
    assert part.num_rows == 4
    again = part.take(np.array([2]))  # row 7, one of the 20
    assert again.log_density(Z) == pytest.approx(
        target.log_prior(Z) + 20 * target.log_likelihood(Z, target.data)[7]
    )


def test_minibatches_are_unbiased():
    target = made()
    parts = [target.take(np.arange(start, start + 5)).log_density(Z) for start in range(0, 20, 5)]
    assert np.mean(parts) == pytest.approx(target.log_density(Z), rel=1e-13)


def test_take_works_under_jit_with_traced_data_and_index():
    target = made()
    compiled = eqx.filter_jit(lambda target, index, z: target.take(index).log_density(z))
    with x64():
        inside = compiled(to_device(target), jnp.arange(4), jnp.asarray(Z))
    assert inside == pytest.approx(target.take(np.arange(4)).log_density(Z), rel=1e-13)


def test_other_data_of_the_same_shapes_compile_nothing():
    first, second = batched(made()), batched(made({"X": X + 1, "y": Y}))
    assert first._program is second._program
    assert first(Z[None])[0] != second(Z[None])[0]


def test_observed_data_and_pointwise_likelihood():
    target = made(derived=lambda p: {"odds": jnp.exp(p["beta"])})
    np.testing.assert_array_equal(target.observed()["y"], Y)
    draws = {name: np.stack([value] * 3) for name, value in target.constrain(Z).items()}
    pointwise = target.pointwise_log_likelihood(draws)["rows"]
    np.testing.assert_allclose(pointwise, [target.log_likelihood(Z, target.data)] * 3, rtol=1e-13)


def test_data_are_copied_and_widened():
    x = X.astype(np.float32)
    target = made({"X": x, "y": Y})
    before = target.log_density(Z)
    x[:] = 0
    assert target.log_density(Z) == before
    assert {leaf.dtype.name for leaf in jax.tree.leaves(target.data)} == {"float64", "int64"}


def test_many_kinds_of_data():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": X[:, 0], "b": X[:, 1]})
    for data in (
        {"X": frame, "y": pandas.Series(Y)},
        {"X": X.tolist(), "y": Y.tolist()},
        {"X": jnp.asarray(X), "y": jnp.asarray(Y)},
    ):
        assert made(data).log_density(Z) == pytest.approx(made().log_density(Z), rel=1e-6)
    assert [leaf.shape for leaf in as_rows((X, [Y, [1] * 20]))[1]] == [(20,), (20,)]
    assert as_rows(X).shape == (20, 2)


def test_a_flat_prior_may_be_a_constant():
    target = tb.from_rows(
        lambda p: 0.0, lambda p, rows: -((rows - p["m"]) ** 2), X[:, 0], {"m": 0.0}
    )
    assert target.log_density(np.zeros(1)) == pytest.approx(-np.sum(X[:, 0] ** 2))
    assert target.log_prior(np.zeros(1)) == 0


def test_one_row():
    assert made({"X": X[:1], "y": Y[:1]}).num_rows == 1


WITH_NAN = np.where(np.arange(20) % 8 == 3, np.nan, X[:, 0])


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            {"X": X, "y": Y[:19]},
            r"`data` is ragged: `data\['X'\]` has 20, `data\['y'\]` has 19 rows",
        ),
        ({"X": X[:0], "y": Y[:0]}, "`data` has zero rows"),
        ({}, "`data` has no arrays"),
        ({"X": X, "y": 3.0}, r"`data\['y'\]` is a single number"),
        ({"X": X, "y": WITH_NAN}, r"`data\['y'\]` has NaN in row 3 and 2 more rows"),
        (
            {"X": X, "y": np.where(np.arange(20) == 5, np.nan, 0.0)},
            r"`data\['y'\]` has NaN in row 5. Drop",
        ),
        (WITH_NAN, "`data` has NaN in row 3"),
        (
            {"X": X, "y": ["a"] * 20},
            r"`data\['y'\]` has dtype <U1, which is not numbers. Encode categories",
        ),
        ({"X": X, "y": np.array([None] * 20)}, r"`data\['y'\]` has dtype object"),
        ({"X": X, "y": None}, r"`data\['y'\]` has dtype object"),
        ({"X": [[1.0, 2.0], [1.0]], "y": Y}, "`data` contains a list that cannot become an array"),
        ({"X": np.ma.masked_less(X, 0), "y": Y}, "masked array with masked entries"),
        (
            {"X": X, "y": np.array(["2020-01-01"] * 20, "datetime64[D]")},
            r"`data\['y'\]` has dtype datetime64",
        ),
    ],
)
def test_bad_data_are_named(data, sentence):
    with pytest.raises(TargetError, match=sentence):
        made(data)


EXAMPLE = {"m": 0.0}


@pytest.mark.parametrize(
    ("prior", "likelihood", "sentence"),
    [
        (
            lambda p: 0.0,
            lambda p, rows: jnp.sum(rows["y"] * p["m"]),
            r"`log_likelihood` returned shape \(\) for 21 rows",
        ),
        (
            lambda p: 0.0,
            lambda p, rows: rows["X"] * p["m"],
            r"`log_likelihood` returned shape \(21, 2\) for 21 rows.*\(21,\)",
        ),
        (
            lambda p: 0.0,
            lambda p, rows: Y * p["m"],
            r"`log_likelihood` returned shape \(20,\).*closes over",
        ),
        (lambda p: 0.0, lambda p, rows: None, "`log_likelihood` returned None"),
        (lambda p: 0.0, lambda p, rows: 1.0, "`log_likelihood` returned a float"),
        (
            lambda p: 0.0,
            lambda p, rows: (rows["y"] * p["m"]).astype(int),
            "`log_likelihood` returned dtype int",
        ),
        (
            lambda p: 0.0,
            lambda p, rows: rows["y"] * p["mm"],
            "`log_likelihood` raised KeyError: 'mm'",
        ),
        (
            lambda p: 0.0,
            lambda p, rows: np.exp(p["m"]) * rows["y"],
            "JAX cannot trace `log_likelihood`",
        ),
        (
            lambda p: p["m"] * jnp.ones(2),
            lambda p, rows: rows["y"] * p["m"],
            r"`log_prior` returned shape \(2,\)",
        ),
        (lambda p: p["q"], lambda p, rows: rows["y"] * p["m"], "`log_prior` raised KeyError: 'q'"),
        (
            lambda p: 0.0,
            lambda p, rows: 1.0 * rows["y"],
            r"`log_prior \+ log_likelihood` does not depend on 'm'",
        ),
    ],
)
def test_bad_functions_are_explained(prior, likelihood, sentence):
    with pytest.raises(TargetError, match=sentence):
        tb.from_rows(prior, likelihood, {"X": X, "y": Y}, EXAMPLE)


@pytest.mark.parametrize(
    ("prior", "likelihood", "name"),
    [(3.0, log_likelihood, "log_prior"), (log_prior, 3.0, "log_likelihood")],
)
def test_not_a_function(prior, likelihood, name):
    unchecked = inspect.unwrap(tb.from_rows)  # past the checks of types that only tests have
    with pytest.raises(TargetError, match=f"`{name}` must be a function, got float"):
        unchecked(prior, likelihood, X, EXAMPLE)


def test_a_likelihood_that_closes_over_its_data_is_found_out():
    with pytest.raises(TypeError) as caught:
        tb.from_rows(
            lambda p: 0.0, lambda p, rows: rows["y"] * p["m"] * X[:, 0], {"X": X, "y": Y}, EXAMPLE
        )
    assert any(
        "closes over data that belong into `data`" in note for note in caught.value.__notes__
    )


def test_float32_inside_is_recorded():
    target = tb.from_rows(
        lambda p: 0.0, lambda p, rows: rows.astype(jnp.float32) * p["m"], X[:, 0], EXAMPLE
    )
    assert target.returns_float32
    assert not made().returns_float32
