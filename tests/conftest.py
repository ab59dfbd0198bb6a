"""Strict mode for the internals: float64, no implicit promotion of ranks or dtypes.

What runs the user's own code is tested as a user runs it (tests/targets/conftest.py,
tests/test_user_mode.py).
"""

import gc

import jax
import jax.random as jr
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key():
    """The same key for every test: statistical comparisons are decided once and for all."""
    return jr.key(20250131)


@pytest.fixture
def as_a_user():
    """JAX as a user has it: float64 off, standard promotion.

    For tests that run the user's own code.
    """
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """Compiled programs are dropped after each file.

    Each holds some maps of memory, of which Linux gives a process 65,530: with all programs of the
    suite the compiler dies of a segmentation fault.
    """
    yield
    jax.clear_caches()
    gc.collect()
