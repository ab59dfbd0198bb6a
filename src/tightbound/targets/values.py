"""Draws in the user's terms: unconstrained points to named, constrained values, many at a time."""

import functools
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.core
import numpy as np

from .._numerics import scoped, to_device, to_host
from .base import AbstractTarget
from .batched import compiled

# points per call of the compiled map, so that its memory stays bounded and its shape is reused
_ROWS = 1000

_by_target: dict[int, tuple[Any, dict[tuple[int, int], "_Map"]]] = {}


def constrain_batch(target: AbstractTarget, points: np.ndarray) -> Any:
    """`target.constrain` of each row of `points [n, d]`: the user's pytree with a leading axis n,
    NumPy leaves.

    A target that is built again, with functions of the same text, compiles nothing again.
    """
    n, dim = points.shape
    rows = min(_ROWS, max(n, 1))
    padded = (
        np.concatenate([points, np.repeat(points[-1:], -n % rows, axis=0)])
        if n
        else np.zeros((rows, dim))
    )
    constrain = _map_of(target, rows, dim)
    parts = [constrain(padded[i : i + rows]) for i in range(0, len(padded), rows)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)


def _map_of(target: AbstractTarget, rows: int, dim: int) -> "_Map":
    """The compiled map of `rows` points, made once per target object."""
    key = id(target)
    if key not in _by_target or _by_target[key][0]() is not target:
        _by_target[key] = (weakref.ref(target, lambda _: _by_target.pop(key, None)), {})
    maps = _by_target[key][1]
    if (rows, dim) not in maps:
        maps[rows, dim] = _Map(target, rows, dim)
    return maps[rows, dim]


class _Map:
    """`constrain` of `[rows, dim]` points, in float64.

    Closed-over arrays are arguments of the program, as in `batched`.
    """

    @scoped
    def __init__(self, target: AbstractTarget, rows: int, dim: int):
        arrays, static = eqx.partition(to_device(target), eqx.is_array)
        points = jax.ShapeDtypeStruct((rows, dim), np.float64)

        def constrain(arrays, points):
            return jax.vmap(eqx.combine(arrays, static).constrain)(points)

        closed, shape = jax.make_jaxpr(constrain, return_shape=True)(arrays, points)
        self._structure = jax.tree.structure(shape)
        # Data that only the density reads are left out: other data, of whatever shape, are no other
        # program.
        everything = [*map(jax.numpy.asarray, closed.consts), *jax.tree.leaves(arrays)]
        variables = [*closed.jaxpr.constvars, *closed.jaxpr.invars[:-1]]
        read = {id(v) for eqn in closed.jaxpr.eqns for v in eqn.invars} | {
            id(v) for v in closed.jaxpr.outvars
        }
        places = [i for i, variable in enumerate(variables) if id(variable) in read]
        self._arguments = [everything[i] for i in places]
        count = len(closed.consts)

        def program(arguments, points):
            given: list[Any] = [None] * len(everything)
            for i, argument in zip(places, arguments, strict=True):
                given[i] = argument
            return jax.core.eval_jaxpr(closed.jaxpr, given[:count], *given[count:], points)

        self._program = compiled(jax.jit(program, keep_unused=True).lower(self._arguments, points))

    @scoped
    def __call__(self, points: np.ndarray) -> Any:
        leaves = self._program(self._arguments, np.asarray(points, np.float64))
        return to_host(jax.tree.unflatten(self._structure, leaves))


def flatten_values(values: Any) -> tuple[tuple[str, ...], np.ndarray]:
    """Names such as `beta[0]` and one column each, `[n, P]`, of a pytree of arrays with a leading
    axis n.

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
    parts = [
        str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))
        for entry in path
    ]
    return ".".join(parts) or "z"


@functools.lru_cache(maxsize=256)
def _indices(shape: tuple[int, ...]) -> tuple[str, ...]:
    return tuple("[" + ", ".join(map(str, index)) + "]" for index in np.ndindex(*shape))


def indexed_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """`name` for a scalar, else `name[0]`, `name[1]`, ... in row-major order."""
    return [name] if shape == () else [name + index for index in _indices(shape)]
