"""Comparisons with known truth that fail with a sentence."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Float, Num

from .._numerics import as_key
from .._types import Array, Key, PyTree

ALLOWED = 4.0
"""Standard errors that a statistical comparison allows.

A new key fails a correct part about once in 10,000 numbers.
"""

LEAST_P = 1e-4
"""p-value below which draws do not follow their law: a correct part has one in 10,000 numbers."""

_ROUNDING = 1e-9  # added to a standard error, which is zero where every sample is the same


def seed_of(key: Key) -> list[int]:
    """The integers of any kind of key, for a NumPy generator."""
    return [int(word) for word in np.asarray(jr.key_data(as_key(key)))]


def rows(count: int, *trees: PyTree) -> Num[np.ndarray, "count p"]:
    """Trees of arrays with a leading axis of `count` (or scalars, for 1), side by side."""
    leaves = [leaf for tree in trees for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]
    return np.concatenate([np.asarray(leaf).reshape(count, -1) for leaf in leaves], axis=1)


def mean_is(
    samples: Num[Array, "n *shape"], truth: Num[Array, "..."] | float, sentence: str
) -> None:
    """The mean over the first axis equals `truth` to within four of its standard errors."""
    samples = np.asarray(samples)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    _assert_within(samples.mean(0), np.asarray(truth), error, sentence)


def means_agree(
    first: Num[np.ndarray, "n *shape"], second: Num[np.ndarray, "m *shape"], sentence: str
) -> None:
    """The means of two independent samples agree.

    To within four standard errors of their difference.
    """
    errors = [s.std(0, ddof=1) / np.sqrt(len(s)) for s in (first, second)]
    _assert_within(first.mean(0), second.mean(0), np.hypot(*errors), sentence)


def _assert_within(
    mean: Num[Array, "*shape"],
    truth: Num[Array, "..."],
    error: Float[Array, "*shape"],
    sentence: str,
) -> None:
    z = np.abs(mean - truth) / (error + _ROUNDING)
    worst = np.unravel_index(np.argmax(z), np.shape(z))
    value = float(np.asarray(mean)[worst])
    expected = float(np.broadcast_to(truth, np.shape(z))[worst])
    assert np.max(z) <= ALLOWED, (
        f"{sentence}: {value:.5g}, not {expected:.5g} ({np.max(z):.1f} standard errors)."
    )


def close(
    value: Num[Array, "..."] | float | list[float],
    expected: Num[Array, "..."] | float,
    tolerance: float,
    sentence: str,
) -> None:
    """All entries equal to within `tolerance`, absolute and relative."""
    assert np.allclose(np.asarray(value), np.asarray(expected), rtol=tolerance, atol=tolerance), (
        sentence
    )


def refuses(call: Callable[[], object], error: type[Exception], sentence: str) -> None:
    """`call` raises `error`."""
    try:
        call()
    except error:
        return
    raise AssertionError(sentence)
