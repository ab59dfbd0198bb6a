import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import tightbound as tb
from tightbound import TargetError
from tightbound._numerics import to_device, x64
from tightbound.targets.batched import batched

Y = np.array([0.3, -1.2, 2.2, 0.9])


def regression(params):
    residuals = (Y - params["mu"]) / params["sigma"]
    return (
        -0.5 * jnp.sum(residuals**2)
        - len(Y) * jnp.log(params["sigma"])
        - params["mu"] ** 2
        - params["sigma"]
    )


def made(**keywords):
    return tb.from_log_density(
        regression, {"mu": 0.0, "sigma": 1.0}, support={"sigma": "positive"}, **keywords
    )


def test_is_the_log_density_plus_log_jacobian():
    target, z = made(), np.array([0.4, -0.3])
    by_hand = regression({"mu": 0.4, "sigma": np.exp(-0.3)}) - 0.3
    assert target.log_density(z) == pytest.approx(float(by_hand), rel=1e-6)
    assert target.log_joint(target.constrain(z)) == pytest.approx(
        target.log_density(z) + 0.3, rel=1e-14
    )


def test_equals_a_density_of_another_library():
    target = tb.from_log_density(
        lambda p: -2 * jnp.log(p["s"]) - 3 / p["s"] - jnp.log(p["s"]),
        {"s": 1.0},
        support={"s": "positive"},
    )
    for z in (-1.0, 0.2, 2.0):
        s = np.exp(z)
        expected = scipy.stats.invgamma(2, scale=3).logpdf(s) - 2 * np.log(3) + z
        assert target.log_density(np.array([z])) == pytest.approx(expected, abs=1e-12)


def test_gradient_equals_finite_differences():
    evaluate, z = batched(made()), np.array([0.4, -0.3])
    h = 1e-5 * np.eye(2)
    up, down = evaluate(z + h)[0], evaluate(z - h)[0]
    np.testing.assert_allclose(evaluate(z[None])[1][0], (up - down) / 2e-5, rtol=1e-8)


def test_results_are_float64_with_the_flag_off():
    target, z = made(), np.array([0.4, -0.3])
    assert not jax.config.jax_enable_x64
    for result in (
        target.log_density(z),
        target.unconstrain({"mu": 0.1, "sigma": 2}),
        *target.constrain(z).values(),
    ):
        assert isinstance(result, np.ndarray)
        assert result.dtype == np.float64


def test_float32_arrays_that_it_closes_over_are_widened():
    weights = jnp.asarray([0.1, 0.2], jnp.float32)  # made outside the scope
    target = tb.from_log_density(lambda p: -jnp.sum(weights * p["x"] ** 2), {"x": np.zeros(2)})
    z = np.array([1.0, 1.0 + 1e-12])
    assert target.log_density(z) != target.log_density(np.ones(2))
    assert not target.returns_float32
    assert batched(target)(z[None])[0][0] == pytest.approx(target.log_density(z), rel=1e-15)


@pytest.mark.parametrize(
    "transform", [jax.jit, jax.grad, lambda f: jax.jit(jax.grad(f)), jax.hessian]
)
def test_transforms_outside_the_scope_follow_the_callers_precision(transform):
    target, z = made(), jnp.asarray([0.4, -0.3])
    outside = transform(target.log_density)(z)
    assert outside.dtype == np.float32
    with x64():
        inside = transform(target.log_density)(jnp.asarray([0.4, -0.3]))
    np.testing.assert_allclose(outside, inside, rtol=1e-5)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda p: -jnp.sum(p["x"] ** 2), False),
        (lambda p: -jnp.sum(p["x"].astype(jnp.float32) ** 2), True),
        (lambda p: -jnp.sum(p["x"].astype(jnp.float32).astype(float) ** 2), True),
        (jax.jit(lambda p: -jnp.sum(p["x"].astype(jnp.float16) ** 2)), True),
    ],
)
def test_float32_inside_is_recorded(function, expected):
    assert tb.from_log_density(function, {"x": np.zeros(2)}).returns_float32 is expected


def test_derived_values_appear_in_draws_and_names():
    target = made(derived=lambda p: {"ratio": jnp.stack([p["mu"], p["sigma"]]) / 2})
    values = target.constrain(np.array([0.4, 0.0]))
    np.testing.assert_allclose(values["ratio"], [0.2, 0.5])
    assert target.value_names == ("mu", "ratio[0]", "ratio[1]", "sigma")
    assert target.coordinate_names == ("mu", "sigma")
    np.testing.assert_allclose(target.unconstrain(values), [0.4, 0.0], atol=1e-15)
    assert target.log_joint(values) == pytest.approx(float(regression({"mu": 0.4, "sigma": 1.0})))


class Net(eqx.Module):
    weights: np.ndarray

    def __call__(self, params):
        return -jnp.sum((self.weights * params["x"]) ** 2)


def test_arrays_of_a_callable_module_are_leaves():
    target = tb.from_log_density(Net(np.array([1.0, 2.0])), {"x": np.zeros(2)})
    with x64():
        arrays = eqx.filter(to_device(target), eqx.is_array)
    assert [leaf.shape for leaf in jax.tree.leaves(arrays)] == [(2,)]
    assert target.log_density(np.ones(2)) == -5


def test_array_bounds_are_leaves_too():
    target = tb.from_log_density(
        lambda p: p["x"].sum(), {"x": np.ones(2)}, support={"x": (np.zeros(2), np.array([2, 3]))}
    )
    with x64():
        arrays = eqx.filter(to_device(target), eqx.is_array)
    assert [leaf.shape for leaf in jax.tree.leaves(arrays)] == [(2,), (2,)]
    np.testing.assert_allclose(target.constrain(np.zeros(2))["x"], [1.0, 1.5])


def test_other_data_of_the_same_shapes_compile_nothing():
    def fitted_to(y):
        target = tb.from_log_density(lambda p: -jnp.sum((y - p["m"]) ** 2), {"m": 0.0})
        return batched(target)

    first, second = fitted_to(Y), fitted_to(Y + 1)
    assert first._program is second._program
    assert first(np.zeros((1, 1)))[0] != second(np.zeros((1, 1)))[0]


def raising(error):
    def log_density(params):
        raise error

    return log_density


NAN_SAFE = {"x": np.zeros(5), "s": 1.0}


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            lambda p: -(p["x"] ** 2),
            r"`log_density` returned shape \(5,\), but a log density is one number.*jnp.sum",
        ),
        (lambda p: -jnp.sum(p["x"] ** 2)[None], r"returned shape \(1,\)"),
        (
            lambda p: 0.0,
            r"`log_density` returned the constant 0.0, which does not depend on the parameters",
        ),
        (lambda p: np.float64(1.5), "returned the constant"),
        (
            lambda p: jnp.sum(p["x"] > 0),
            r"`log_density` returned dtype int.*floating number whose gradient exists",
        ),
        (lambda p: jnp.all(p["x"] > 0), "returned dtype bool"),
        (lambda p: jnp.sum(p["x"]) + 1j, "returned dtype complex"),
        (lambda p: None, "`log_density` returned None; is its `return` missing"),
        (
            lambda p: (jnp.sum(p["x"]), 0),
            "`log_density` returned a tuple; it must return one number",
        ),
        (lambda p: {"lp": jnp.sum(p["x"])}, "returned a dict"),
        (
            lambda p: p["sigma"],
            r"`log_density` raised KeyError: 'sigma'. The parameters in `example` are s, x",
        ),
        (lambda p: p["ss"], r"Did you mean 's'\?"),
        (
            lambda p: np.sum(np.exp(p["x"])),
            "JAX cannot trace `log_density`.*jax.numpy.*jax.pure_callback inside a jax.custom_jvp",
        ),
        (lambda p: scipy.stats.norm.logpdf(p["x"]).sum(), "JAX cannot trace `log_density`"),
        (lambda p: float(p["s"]), "JAX cannot trace `log_density`"),
        (lambda p: p["s"] if p["s"] > 0 else -p["s"], "JAX cannot trace `log_density`"),
        (lambda p: sum(range(p["s"].astype(int))), "JAX cannot trace `log_density`"),
        (lambda p: jnp.sum(p["x"][p["x"] > 0]), "JAX cannot trace `log_density`"),
        (
            lambda p: -jnp.sum(p["x"] ** 2),
            r"`log_density` does not depend on 's' \(support 'real'\)",
        ),
    ],
)
def test_bad_log_densities_are_explained(function, sentence):
    with pytest.raises(TargetError, match=sentence):
        tb.from_log_density(function, NAN_SAFE)


def test_a_parameter_without_a_term_may_stay_where_its_support_is_bounded():
    target = tb.from_log_density(
        lambda p: -(p["x"] ** 2), {"x": 0.0, "u": 0.5}, support={"u": "unit_interval"}
    )
    evidence = np.log(np.sqrt(np.pi))
    u, x = np.meshgrid(np.linspace(-30, 30, 601), np.linspace(-8, 8, 161))
    values, _ = batched(target)(np.stack([u.ravel(), x.ravel()], 1))
    assert np.log(np.exp(values).sum() * 0.1 * 0.1) == pytest.approx(evidence, abs=1e-8)


def test_other_errors_keep_their_type_and_gain_a_note():
    with pytest.raises(ZeroDivisionError) as caught:
        tb.from_log_density(raising(ZeroDivisionError("mine")), {"x": 0.0})
    assert any("raised by `log_density`" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("derived", "sentence"),
    [
        (lambda p: p["mu"], "`derived` returned a .*; it must return a dict"),
        (lambda p: {"mu": p["sigma"]}, "`derived` returned 'mu', which is also a parameter"),
        (lambda p: {"a": p["nu"]}, "`derived` raised KeyError: 'nu'"),
        (lambda p: {"a": np.exp(p["mu"])}, "JAX cannot trace `derived`"),
    ],
)
def test_bad_derived_values_are_explained(derived, sentence):
    with pytest.raises(TargetError, match=sentence):
        made(derived=derived)


def test_derived_values_need_a_dict():
    with pytest.raises(TargetError, match="`derived` needs an `example` that is a dict"):
        tb.from_log_density(lambda x: -jnp.sum(x**2), np.zeros(2), derived=lambda x: {"a": x})


def test_not_a_function():
    with pytest.raises(
        TargetError, match="`log_density` must be a function of the parameters, got float"
    ):
        # past the checks of types that only tests have
        inspect.unwrap(tb.from_log_density)(3.0, {"x": 0.0})
