"""Targets run the user's code, so these tests run as a user does.

Float64 off, JAX's standard promotion.
"""

import pytest


@pytest.fixture(autouse=True)
def _as_a_user(as_a_user):
    return
