"""Scopes, keys and small helpers."""

import importlib.metadata
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.special as sp

from tightbound._numerics import (
    as_key,
    host_algebra,
    host_rng,
    key_words,
    logmeanexp,
    scoped,
    to_device,
    to_host,
    x64,
)

KEYS = [0, 1, 2**31, 2**32 - 1]


@pytest.mark.parametrize("seed", KEYS)
def test_words_are_those_of_jax(as_a_user, seed):
    expected = tuple(int(w) for w in np.asarray(jr.key_data(jr.key(seed))))
    assert (
        key_words(seed)
        == key_words(np.int64(seed))
        == key_words(jr.key(seed))
        == key_words(jr.PRNGKey(seed))
        == expected
    )
    assert key_words(np.asarray(jr.PRNGKey(seed))) == expected


def test_large_and_negative_seeds():
    assert key_words(2**40 + 5) == (2**8, 5)
    assert key_words(-1) == (2**32 - 1, 2**32 - 1)
    assert key_words(2**64) == key_words(0)
    with jax.enable_x64(True):
        assert key_words(2**40 + 5) == tuple(
            int(w) for w in np.asarray(jr.key_data(jr.key(2**40 + 5)))
        )


@pytest.mark.parametrize(
    "key", [True, np.bool_(False), 1.0, "0", None, np.zeros(2), np.zeros((2, 2), np.uint32), (0, 1)]
)
def test_what_is_not_a_key(key):
    with pytest.raises(TypeError, match="`key` must be an int, a key from jax.random.key"):
        key_words(key)


def test_a_batch_of_keys_is_refused_with_the_way_out():
    with pytest.raises(
        TypeError, match=r"shape \(3,\).*split a batch of keys and pass one of them"
    ):
        key_words(jr.split(jr.key(0), 3))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_other_generators_keep_their_words(impl):
    key = jr.key(7, impl=impl)
    again = as_key(key)
    np.testing.assert_array_equal(jr.key_data(again), jr.key_data(key))
    np.testing.assert_array_equal(jr.normal(again, (3,)), jr.normal(key, (3,)))


def test_a_traced_key_passes_through():
    out = jax.jit(lambda k: jr.normal(as_key(k), (2,)))(jr.key(3))
    np.testing.assert_array_equal(out, jr.normal(jr.key(3), (2,)))
    np.testing.assert_array_equal(jax.jit(lambda k: jr.normal(as_key(k), (2,)))(jr.PRNGKey(3)), out)


def test_host_streams_are_functions_of_key_and_name():
    a, b, c, d = (
        host_rng(k, s).standard_normal(1000)
        for k, s in [(0, "x"), (jr.key(0), "x"), (0, "y"), (1, "x")]
    )
    np.testing.assert_array_equal(a, b)
    for other in (c, d):
        assert abs(np.corrcoef(a, other)[0, 1]) < 4 / np.sqrt(1000)


def test_the_scope_is_float64_and_leaves_no_trace(as_a_user):
    before = jax.config.jax_enable_x64
    with x64():
        assert jnp.ones(1).dtype == np.float64
    assert jax.config.jax_enable_x64 == before
    assert jnp.ones(1).dtype == np.float32


def test_scoped_methods_compute_in_float64_and_keep_their_names(as_a_user):
    @scoped
    def third():
        """One third."""
        return jnp.asarray(1.0) / 3.0

    assert third().dtype == np.float64
    assert float(third()) == 1 / 3
    assert (third.__name__, third.__doc__) == ("third", "One third.")

    @scoped
    def broken():
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        broken()
    assert jnp.ones(1).dtype == np.float32, "the scope ends with an error too"


def test_host_algebra_is_silent_and_single_threaded():
    import threadpoolctl

    with host_algebra():
        assert np.isinf(np.float64(1e308) * 10)
        assert np.isnan(np.log(np.float64(-1)))
        assert {
            pool["num_threads"]
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"
        } <= {1}
    with pytest.warns(RuntimeWarning):
        np.log(np.float64(-1))


def test_trees_go_to_the_device_and_back():
    tree = {
        "f": np.ones(2, np.float32),
        "i": np.arange(2),
        "b": np.array([True]),
        "s": 3.0,
        "t": "text",
        "n": None,
    }
    with x64():
        there = to_device(tree)
        assert (there["f"].dtype, there["i"].dtype, there["b"].dtype) == (
            np.float64,
            np.int64,
            np.bool_,
        )
        assert isinstance(there["f"], jax.Array)
        assert (there["s"], there["t"], there["n"]) == (3.0, "text", None)
        assert to_device(tree, np.float32)["f"].dtype == np.float32
    back = to_host(there)
    assert isinstance(back["f"], np.ndarray)
    np.testing.assert_array_equal(back["i"], tree["i"])


def test_typed_keys_in_a_tree_stay_keys():
    key = jr.key(0)
    assert to_host({"key": key})["key"] is key


@pytest.mark.parametrize(
    "values", [[0.0], [1.0, 2.0, 3.0], [1e4, -1e4], [-np.inf, 0.0], [-1e300, 5.0]]
)
def test_logmeanexp_is_scipys(values):
    expected = sp.logsumexp(values) - np.log(len(values))
    assert logmeanexp(np.array(values)) == pytest.approx(expected, rel=1e-14)


def test_logmeanexp_of_nothing_finite():
    assert logmeanexp(np.array([-np.inf, -np.inf])) == -np.inf
    assert logmeanexp(np.array([np.inf, 0.0])) == np.inf
    assert np.isnan(logmeanexp(np.array([np.nan, 0.0])))


@pytest.mark.skipif(
    importlib.metadata.version("jaxlib") not in ("0.10.2", "0.11.0"),
    reason="this jaxlib adds up as it should",
)
@pytest.mark.parametrize("computed", [True, False])
def test_an_import_that_comes_too_late_for_sound_sums_says_so(computed):
    lines = ["import jax.numpy as jnp", *["jnp.ones(3) + 1"] * computed, "import tightbound"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    )
    assert ("JAX computed before tightbound was imported" in done.stderr) is computed
