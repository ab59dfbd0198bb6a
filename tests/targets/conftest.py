"""Targets run the user's code, so these tests run as a user does: float64 off, JAX's standard promotion."""

import jax
import pytest


@pytest.fixture(autouse=True)
def as_a_user():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
