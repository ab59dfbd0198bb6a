import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound._numerics import x64
from tightbound.targets.batched import batched
from tightbound.targets.constants import mend_numpy_constants

Y = np.array([1.0, 2.0, 3.0, 4.0]) / 3


def log_density(params):
    return -jnp.sum((Y - params["m"]) ** 2) - jnp.sum(Y * params["m"])


def test_a_users_own_float32_program_and_ours_do_not_disturb_each_other():
    theirs, params = jax.jit(log_density), {"m": jnp.asarray(0.4)}
    before = theirs(params)  # JAX now holds Y in float32

    target = tb.from_log_density(log_density, {"m": 0.0})
    exact = -np.sum((Y - 0.4) ** 2) - np.sum(Y * 0.4)
    assert batched(target)(np.array([[0.4]]))[0][0] == pytest.approx(exact, rel=1e-15)
    with x64():
        held = jax.jit(log_density)
        # JAX now holds Y in float64 as well
        assert held({"m": 0.4}) == pytest.approx(exact, rel=1e-15)

    assert theirs(params) == before
    assert jax.jit(lambda params: log_density(params))(params) == before
    slope = jax.grad(log_density)(params)["m"]
    assert slope.dtype == np.float32
    assert slope == pytest.approx(2 * np.sum(Y - 0.4) - np.sum(Y), rel=1e-6)


def test_an_array_that_is_used_twice_is_one_constant():
    mend_numpy_constants()
    with x64():
        assert len(jax.make_jaxpr(log_density)({"m": 0.4}).consts) == 1


def test_an_array_never_takes_over_what_is_remembered_of_another():
    mend_numpy_constants()
    kept = []
    for i in range(500):  # ids of freed arrays are given out again
        array = np.full(3, float(i))

        def add(x, array=array):
            return x + array

        for flag, dtype in ((False, np.float32), (True, np.float64)):
            with jax.enable_x64(flag):
                (const,) = jax.make_jaxpr(add)(0.0).consts
                assert const.dtype == dtype
                assert const[0] == i
        kept += [const] * (i % 3 == 0)
    gc.collect()
