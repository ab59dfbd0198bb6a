"""The compiled programs behind `tb.fit_batch`: one trace of the model, chunks of fixed width.

A chunk holds as many lanes as fit into the cache, decided from shapes alone, so memory is bounded
and bits are reproducible. Chunks are started before the one in front of them is fetched: on several
cores they overlap.
"""

import math
import weakref
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.core
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from .._numerics import to_host
from .._types import Array, PyTree, Validated
from ..search.natural_search import NaturalSearch
from ..targets.base import AbstractTarget, Density, require
from ..targets.batched import Compiled, compiled, equations
from .natural import RowDensity, run_lanes
from .newton import Local, Walk, local_gaussian, run_walks

MakeTarget: TypeAlias = Callable[[PyTree], Density]
"""One data set -> its target."""

Constants: TypeAlias = list[list[jax.Array]]
"""What log density and named values close over."""

# Tries of the search for a mode; those that need more have none, and their paths are looked at.
WALK = 40
PATIENCE = 6  # tries between two looks at which lanes still run
_NUMBERS = 2**20  # in one intermediate of a chunk: 8 MiB, what a core's caches hold
_WIDEST = 64  # more lanes at a time are no faster, and wait longer for the slowest
_AHEAD = 4  # chunks under way at a time

_known: "weakref.WeakKeyDictionary[MakeTarget, dict[str, LanePrograms]]" = (
    weakref.WeakKeyDictionary()
)


def programs_of(make_target: MakeTarget, rows: PyTree) -> "LanePrograms":
    """The programs of a model of data sets like `rows`: NumPy arrays, leading axis: data sets.

    The model is traced anew, so that what it closes over may change between calls; what was
    compiled for the same function is found again, and for another one of the same program text too.
    """
    traced = _Traced(make_target, rows)
    try:
        known = _known.setdefault(make_target, {})
    except TypeError:  # a function that cannot be referred to weakly
        known = {}
    if traced.text not in known:
        known[traced.text] = LanePrograms(traced)
    known[traced.text].constants = traced.constants
    return known[traced.text]


class _Traced:
    """Log density and named values of one data set, as jaxprs with closed-over arrays apart."""

    def __init__(self, make_target: MakeTarget, rows: PyTree):
        self.structs = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), rows
        )
        seen: list[Density] = []
        jax.eval_shape(lambda row: _seen(make_target(row), seen), self.structs)
        self.dim, self.names = seen[0].dim, seen[0].coordinate_names
        point = jax.ShapeDtypeStruct((self.dim,), np.float64)
        self.density = jax.make_jaxpr(
            lambda row, z: make_target(row).log_density(z).astype(np.float64)
        )(self.structs, point)
        self.values, shape = jax.make_jaxpr(
            lambda row, z: make_target(row).constrain(z), return_shape=True
        )(self.structs, point)
        self.values_structure = jax.tree.structure(shape)
        self.constants = [
            [jnp.asarray(c) for c in closed.consts] for closed in (self.density, self.values)
        ]
        shapes = [[(c.shape, c.dtype.name) for c in constants] for constants in self.constants]
        self.text = f"{self.density.jaxpr}\n{self.values.jaxpr}\n{shapes}\n{self.names}"


def _seen(target: Validated[AbstractTarget, "require"], seen: list[Density]) -> int:
    """Keep the target that a trace has made; the number is for `eval_shape`, which wants one."""
    seen.append(require("fit_batch", target, Density))
    return 0


def _sizes(jaxpr: jax.extend.core.Jaxpr) -> list[int]:
    avals = [v.aval for eqn in equations(jaxpr) for v in eqn.outvars]
    return [math.prod(aval.shape) for aval in avals if isinstance(aval, jax.core.ShapedArray)]


class LanePrograms:
    """What is compiled for one model, for any number of data sets.

    NumPy in, NumPy out, leading axes of lanes.
    """

    def __init__(self, traced: _Traced):
        self.dim, self.names = traced.dim, traced.names
        self.constants = traced.constants
        self._traced = traced
        self._largest = max([traced.dim, *_sizes(traced.density.jaxpr)])
        self._programs: dict[tuple[object, ...], Compiled] = {}

    def walk(self, rows: PyTree, points: Float[np.ndarray, "n dim"]) -> Walk:
        """Newton searches from `points`.

        Those that still run are gathered into full chunks now and then.
        """

        def program(constants: Constants, rows: PyTree, walks: Walk) -> Walk:
            return run_walks(self._density(constants), walks, rows, PATIENCE)

        walks, active = jax.tree.map(np.array, Walk.start(points, WALK)), np.arange(len(points))
        while len(active):
            lanes = take(rows, active), take(walks, active)
            put(walks, active, self._in_chunks("walk", program, self.dim, lanes))
            active = active[~walks.done[active] & (walks.tries[active] < WALK)]
        return walks

    def local(
        self,
        rows: PyTree,
        points: Float[np.ndarray, "n dim"],
        scales: Float[np.ndarray, "n"],
        design: Float[np.ndarray, "m dim"],
    ) -> tuple[np.ndarray, ...]:
        """`local_gaussian` at `points`, at `scales` of the Laplace root, of each lane."""

        def program(
            constants: Constants,
            rows: PyTree,
            points: Float[jax.Array, "n dim"],
            scales: Float[jax.Array, "n"],
            design: Float[jax.Array, "m dim"],
        ) -> tuple[Float[Array, "n ..."], ...]:
            density = self._density(constants)

            def one(row: PyTree, x: Float[jax.Array, "dim"], scale: Float[jax.Array, ""]) -> Local:
                return local_gaussian(lambda z: density(row, z), x, scale, design)

            return jax.vmap(one)(rows, points, scales)

        return self._in_chunks("local", program, 2 * len(design), (rows, points, scales), (design,))

    def advance(
        self,
        rows: PyTree,
        lanes: NaturalSearch,
        design: Float[np.ndarray, "m dim"],
        tol: float,
    ) -> NaturalSearch:
        """At most PATIENCE more tries of each lane that runs, on the design."""

        def program(
            constants: Constants,
            rows: PyTree,
            lanes: NaturalSearch,
            design: Float[jax.Array, "m dim"],
            tol: Float[jax.Array, ""],
        ) -> NaturalSearch:
            return run_lanes(self._density(constants), lanes, rows, design, tol, PATIENCE)

        return self._in_chunks(
            "advance",
            program,
            2 * len(design),
            (rows, lanes),
            (design, np.asarray(tol, np.float64)),
        )

    def log_density(
        self,
        rows: PyTree,
        mean: Float[np.ndarray, "n dim"],
        root: Float[np.ndarray, "n dim dim"],
        noise: Float[np.ndarray, "draws dim"],
    ) -> Float[np.ndarray, "n draws"]:
        """log p at mean + root u for each row u of `noise`."""

        def program(
            constants: Constants,
            rows: PyTree,
            mean: Float[jax.Array, "n dim"],
            root: Float[jax.Array, "n dim dim"],
            noise: Float[jax.Array, "draws dim"],
        ) -> Float[Array, "n draws"]:
            density = self._density(constants)

            def one(
                row: PyTree, mean: Float[jax.Array, "dim"], root: Float[jax.Array, "dim dim"]
            ) -> Float[Array, "draws"]:
                return jax.vmap(lambda u: density(row, mean + root @ u))(noise)

            return jax.vmap(one)(rows, mean, root)

        return self._in_chunks("log density", program, len(noise), (rows, mean, root), (noise,))

    def values(self, rows: PyTree, points: Float[np.ndarray, "n draws dim"]) -> PyTree:
        """The user's named values at `points`: leaves `[n, draws, ...]`."""
        closed, structure = self._traced.values, self._traced.values_structure

        def program(
            constants: Constants, rows: PyTree, points: Float[jax.Array, "n draws dim"]
        ) -> PyTree:
            def one(row: PyTree, z: Float[jax.Array, "dim"]) -> PyTree:
                leaves = jax.core.eval_jaxpr(closed.jaxpr, constants[1], *jax.tree.leaves(row), z)
                return jax.tree.unflatten(structure, leaves)

            return jax.vmap(lambda row, z: jax.vmap(lambda x: one(row, x))(z))(rows, points)

        return self._in_chunks("values", program, points.shape[1], (rows, points))

    def _density(self, constants: Constants) -> RowDensity:
        closed = self._traced.density
        return lambda row, z: jax.core.eval_jaxpr(
            closed.jaxpr, constants[0], *jax.tree.leaves(row), z
        )[0]

    def _in_chunks(
        self,
        name: str,
        program: Callable[..., PyTree],
        per_lane: int,
        lanes: tuple[PyTree, ...],
        shared: tuple[Array, ...] = (),
    ) -> PyTree:
        """`program(constants, *lanes, *shared)` over chunks of lanes.

        The last is filled up with copies of its first.
        """
        count = len(jax.tree.leaves(lanes)[0])
        width = int(min(max(_NUMBERS // (per_lane * self._largest), 1), _WIDEST))
        under_way, done = [], []
        for start in range(0, count, width):
            index = np.minimum(np.arange(start, start + width), count - 1)
            chunk = jax.tree.map(lambda leaf: leaf[index], lanes)  # noqa: B023
            call = self._compiled(name, program, (self.constants, *chunk, *shared))
            under_way.append(call(self.constants, *chunk, *shared))
            if len(under_way) == _AHEAD:
                done.append(to_host(under_way.pop(0)))
        done += [to_host(chunk) for chunk in under_way]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *done)

    def _compiled(
        self, name: str, program: Callable[..., PyTree], arguments: tuple[PyTree, ...]
    ) -> Compiled:
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)), arguments
        )
        key = (name, *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes)))
        if key not in self._programs:
            self._programs[key] = compiled(jax.jit(program, keep_unused=True).lower(*shapes))
        return self._programs[key]


def take(tree: PyTree, index: int | Int[np.ndarray, "lanes"]) -> PyTree:
    """The lanes at `index` of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def put(tree: PyTree, index: Int[np.ndarray, "lanes"], new: PyTree) -> None:
    """Write the lanes `new` back to `index` of every leaf, in place."""
    for old, leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(new), strict=True):
        old[index] = leaf


__all__ = ["PATIENCE", "WALK", "LanePrograms", "programs_of", "put", "take"]
