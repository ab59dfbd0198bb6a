"""Draws in the user's terms: unconstrained points to named, constrained values, many at a time."""

import functools
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._numerics import scoped, to_device, to_host
from .base import AbstractTarget

_ROWS = 1000  # points per call of the compiled map, so that its memory stays bounded and its shape is reused


def constrain_batch(target: AbstractTarget, points: np.ndarray) -> Any:
    """`target.constrain` of each row of `points [n, d]`: the user's pytree with a leading axis n, NumPy leaves."""
    n = len(points)
    rows = min(_ROWS, max(n, 1))
    padded = np.concatenate([points, np.repeat(points[-1:], -n % rows, axis=0)]) if n else np.zeros((rows, points.shape[1]))
    parts = [_constrain(target, padded[i : i + rows]) for i in range(0, len(padded), rows)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)


@scoped
def _constrain(target: AbstractTarget, points: np.ndarray) -> Any:
    return to_host(_constrain_compiled(to_device(target), points))


@eqx.filter_jit
def _constrain_compiled(target, points):
    return jax.vmap(target.constrain)(points)


def flatten_values(values: Any) -> tuple[tuple[str, ...], np.ndarray]:
    """Names such as `beta[0]` and one column each, `[n, P]`, of a pytree of arrays with a leading axis n.

    Integer and boolean values become floats; values without elements are left out.
    """
    names: list[str] = []
    columns: list[np.ndarray] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        leaf = np.asarray(leaf)
        names += indexed_names(path_name(path), leaf.shape[1:])
        columns.append(leaf.reshape(len(leaf), -1).astype(np.float64))
    return tuple(names), np.concatenate(columns, axis=1) if columns else np.empty((0, 0))


def path_name(path: Any) -> str:
    """The user's name of a leaf: dict keys, attributes and indices joined by dots."""
    parts = [str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path]
    return ".".join(parts) or "z"


@functools.lru_cache(maxsize=256)
def _indices(shape: tuple[int, ...]) -> tuple[str, ...]:
    return tuple("[" + ", ".join(map(str, index)) + "]" for index in np.ndindex(*shape))


def indexed_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """`name` for a scalar, else `name[0]`, `name[1]`, ... in row-major order."""
    return [name] if shape == () else [name + index for index in _indices(shape)]
