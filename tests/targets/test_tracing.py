"""Looking at functions: NumPy arrays that they close over, and arrays that are being traced."""

import functools
import gc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import tightbound as tb
from tightbound._numerics import x64
from tightbound.targets import Clutter, LinearSites
from tightbound.targets.batched import batched
from tightbound.targets.conjugate import NormalSample
from tightbound.targets.tracing import is_traced, mend_numpy_constants

# -- NumPy constants
# -------------------------------------------------------------------------------------------------

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


# -- targets that are being traced
# -------------------------------------------------------------------------------------------------


def square(y, params):
    return -jnp.sum((y - params["m"]) ** 2)


def normal_model(y):
    m = numpyro.sample("m", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(m, 1), obs=y)


class Model:
    """A user's own object that holds its data."""

    def __init__(self, y):
        self.y = y

    def log_density(self, params):
        return square(self.y, params)


class OwnTarget(tb.targets.Density):
    """A target of a user's own, whose function is in a static field and thus no leaf."""

    function: object = eqx.field(static=True)
    dim = 1
    coordinate_names = ("m",)

    def constrain(self, z):
        return {"m": z[0]}

    def unconstrain(self, values):
        return jnp.reshape(values["m"], (1,))

    def log_density(self, z):
        return self.function({"m": z[0]})


def from_density(function):
    return tb.from_log_density(function, {"m": 0.0})


def a_default(y):
    def log_density(params, y=y):
        return square(y, params)

    return from_density(log_density)


def a_wrapped_function(y):
    @functools.wraps(square)
    def log_density(params):
        return square(y, params)

    return from_density(jax.jit(log_density))


def an_inner_closure(y):
    data = {"deep": [y, 1.0]}

    def inner(params):
        return square(data["deep"][0], params)

    return from_density(lambda params: inner(params))


TARGETS = {
    "a closure": lambda y: from_density(lambda params: square(y, params)),
    "a closure in a closure": an_inner_closure,
    "a default": a_default,
    "a partial": lambda y: from_density(functools.partial(square, y)),
    "a JAX partial": lambda y: from_density(jax.tree_util.Partial(square, y)),
    "a bound method": lambda y: from_density(Model(y).log_density),
    "a jitted function": a_wrapped_function,
    "derived values": lambda y: tb.from_log_density(
        lambda params: -(params["m"] ** 2), {"m": 0.0}, derived=lambda params: {"y": y}
    ),
    "rows": lambda y: tb.from_rows(
        lambda params: 0.0, lambda params, rows: -((rows - params["m"]) ** 2), y, {"m": 0.0}
    ),
    "numpyro": lambda y: tb.from_numpyro(normal_model, y),
    "clutter": lambda y: Clutter(y),
    "linear sites": lambda y: LinearSites(np.ones((4, 1)), lambda s, v: -((s - v) ** 2), y),
    "a static field": lambda y: OwnTarget(lambda params: square(y, params)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_made_from_what_is_traced_is_found_out(name):
    seen = []

    def body(y):
        seen.append(TARGETS[name](y))
        assert is_traced(seen[-1])
        return jnp.sum(y)

    jax.jit(body)(Y)
    assert is_traced(seen[0]), "and after its program was traced, when its arrays have leaked"
    jax.vmap(body)(Y[None])
    jax.grad(body)(jnp.asarray(Y))
    assert len(seen) == 3


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_of_numbers_is_not(name):
    assert not is_traced(TARGETS[name](Y))
    assert not is_traced(TARGETS[name](jnp.asarray(Y)))
    inside = []
    jax.jit(lambda x: (inside.append(TARGETS[name](Y)), x)[1])(1.0)
    assert not is_traced(inside[0]), "a target of numbers that is made inside a program"


def test_known_targets_and_conjugate_ones_are_not():
    zoo = tb.targets.zoo
    for known in (zoo.gaussian(), zoo.eight_schools(), zoo.normal_normal(), zoo.funnel()):
        assert not is_traced(known.target)
    assert not is_traced(NormalSample(Y))


def test_a_cell_that_is_empty_is_passed_over():
    def make(assign):
        def log_density(params):
            return later * params["m"] ** 2

        if assign:
            later = -1.0
        return log_density

    assert not is_traced(make(False))


def test_an_object_that_holds_itself_ends():
    circle = [1.0]
    circle.append(circle)
    assert not is_traced(circle)
