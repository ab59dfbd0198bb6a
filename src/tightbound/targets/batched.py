"""Compiled programs on many points: values and scores of a log density, and the named values.

Compile time is most of what a user waits for, so a target has one program of each kind, for any
number of points. That of the log density, the only one that a default fit compiles, walks the batch
in chunks of a fixed size, as many as it is told. Arrays that a target holds or closes over are
hoisted out of the program into its arguments, so XLA does not fold them, and a target that is built
again with other data of the same shapes lowers to the same program text, which is found in the
cache and not compiled again.
"""

import hashlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import TypeAlias

import equinox as eqx
import jax
import jax.core
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.stages import Compiled, Lowered
from jaxtyping import Float

from .._numerics import SOUND_SUMS, scoped, to_device, to_host, x64
from .._types import Array, PyTree
from ..account import open_account
from .base import AbstractTarget, Density

_MAX_ROWS = 1024  # points per call of the compiled program
_MAX_CHUNK = 16  # points evaluated together; beyond this vectorisation on a CPU gains nothing
# Points that share one pass over a large matrix: most of the gain, and few idle places in a batch
# of starts
_SHARING = 4
# 1 MiB of doubles: intermediates of a chunk should stay in the second-level cache
_CACHE_ELEMENTS = 2**17
# Compiled programs that are kept, the oldest dropped first, so that the memory of a session with
# many models stays bounded.
_MAX_PROGRAMS = 64
# Points per call of the map to named values: draws come by the thousand, so that one shape serves
_MAP_ROWS = 1000

Arguments: TypeAlias = tuple[list[jax.Array], list[jax.Array]]
"""What a program reads beside the points: closed-over constants, and the target's own arrays."""

_programs: dict[str, Compiled] = {}
# By the id of the target, because a target with NumPy leaves has no hash; the weak reference tells
# whether the id has been given to another object since.
_by_target: dict[int, tuple[weakref.ref, "BatchedDensity"]] = {}
_maps: dict[int, tuple[weakref.ref, dict[tuple[int, int], "_ValueMap"]]] = {}


def batched(target: Density) -> "BatchedDensity":
    """The compiled evaluator of `target`, made once per target object."""
    entry = _by_target.get(id(target))
    if entry is not None and entry[0]() is target:
        return entry[1]
    evaluator = BatchedDensity(target)
    key = id(target)
    _by_target[key] = (weakref.ref(target, lambda _: _by_target.pop(key, None)), evaluator)
    return evaluator


def evaluations_of(target: object) -> int:
    """Points asked of the evaluator of `target` so far; none is made for the asking."""
    entry = _by_target.get(id(target))
    return entry[1].evaluations if entry is not None and entry[0]() is target else 0


class BatchedDensity:
    """Values and scores of a target's log density: `evaluator(points) -> (values, scores)`.

    NumPy in, NumPy out, float64. Non-finite values and scores are passed through: the caller
    decides. `evaluations` counts the points asked for over the evaluator's life; `share` is the
    part of an evaluation that a point costs the account of a fit (B / N on B of N rows).
    """

    def __init__(self, target: Density):
        self.dim = target.dim
        self.evaluations = 0
        self.share = 1.0
        self._along: Compiled | None = None
        with x64():
            self._arguments, self._jaxpr = _trace(target)
            self.chunk = chunk_size(self._jaxpr.jaxpr)
            # A block is a whole number of chunks, and at most 2^22 numbers (32 MiB)
            self.rows = max(
                self.chunk, min(_MAX_ROWS, 2**22 // max(self.dim, 1)) // self.chunk * self.chunk
            )
            self._program = self._compiled(self._value_and_score, 1)

    def __call__(
        self, points: Float[Array, "n dim"]
    ) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n dim"]]:
        account = open_account()
        if account is not None:
            account.charge(self.share * len(points))
        values, scores = self._in_blocks(self._program, points)
        self.evaluations += len(points)
        if account is not None:
            account.saw(np.asarray(points), values)
        return values, scores

    def hessian_products(
        self, points: Float[Array, "n dim"], directions: Float[Array, "n dim"]
    ) -> Float[np.ndarray, "n dim"]:
        """The Hessian of the log density at each point times the direction in the same row.

        A second program, compiled when it is first asked for. Each product counts as two
        evaluations.
        """
        if self._along is None:
            with x64():
                self._along = self._compiled(self._hessian_product, 2)
        account = open_account()
        if account is not None:
            account.charge(2.0 * self.share * len(points))
        (products,) = self._in_blocks(self._along, points, directions)
        self.evaluations += 2 * len(points)
        return products

    def _value_and_score(
        self, arguments: Arguments, z: Float[jax.Array, "dim"]
    ) -> tuple[jax.Array, ...]:
        consts, arrays = arguments
        return tuple(jax.core.eval_jaxpr(self._jaxpr.jaxpr, consts, *arrays, z))

    def _hessian_product(
        self,
        arguments: Arguments,
        z: Float[jax.Array, "dim"],
        direction: Float[jax.Array, "dim"],
    ) -> tuple[jax.Array, ...]:
        return (jax.jvp(lambda at: self._value_and_score(arguments, at)[1], (z,), (direction,))[1],)

    def _compiled(self, one: Callable[..., tuple[jax.Array, ...]], inputs: int) -> Compiled:
        return _compile(one, self._arguments, self.rows, self.chunk, self.dim, inputs)

    def _in_blocks(
        self, program: Compiled, *inputs: Float[Array, "n dim"]
    ) -> tuple[Float[np.ndarray, "n *value"], ...]:
        """The outputs of `program` for all rows of the inputs, a block at a time."""
        n, parts = len(inputs[0]), []
        with x64():
            for start in range(0, max(n, 1), self.rows):
                blocks = [x[start : start + self.rows] for x in inputs]
                count = len(blocks[0])
                out = program(self._arguments, np.int64(count), *map(self._padded, blocks))
                parts.append([np.asarray(leaf)[:count] for leaf in out])
        return tuple(np.concatenate(leaves) for leaves in zip(*parts, strict=True))

    def _padded(self, block: Float[Array, "n dim"]) -> Float[np.ndarray, "rows dim"]:
        """`block` in a buffer of the program's shape, its last chunk filled with the first point.

        Copies rather than zeros: a log density may loop for ever, or print, where it is undefined.
        """
        if len(block) == self.rows:
            return np.ascontiguousarray(block, dtype=np.float64)
        buffer = np.zeros((self.rows, self.dim))
        buffer[: len(block)] = block
        used = -(-len(block) // self.chunk) * self.chunk
        buffer[len(block) : used] = block[:1]
        return buffer


def _trace(target: Density) -> tuple[Arguments, ClosedJaxpr]:
    """The jaxpr of value and score at one point, and the arguments that it reads."""

    def value_and_score(target, z):
        value, score = jax.value_and_grad(target.log_density)(z)
        return value.astype(jnp.float64), score.astype(jnp.float64)

    arguments, closed, _ = hoisted(target, value_and_score)
    return arguments, closed


def hoisted(
    target: Density, function: Callable[[Density, jax.Array], PyTree]
) -> tuple[Arguments, ClosedJaxpr, Callable[[Arguments, jax.Array], PyTree]]:
    """`function(target, z)` at one point as (arguments, jaxpr, call).

    `call(arguments, z)` evaluates it in compiled code. The arrays that the target holds, or closes
    over, are its arguments, and not constants that XLA would fold.
    """
    arrays, static = eqx.partition(to_device(target), eqx.is_array)
    point = jax.ShapeDtypeStruct((target.dim,), jnp.float64)

    def of_arrays(arrays, z):
        return function(eqx.combine(arrays, static), z)

    closed, shape = jax.make_jaxpr(of_arrays, return_shape=True)(arrays, point)
    structure = jax.tree.structure(shape)

    def call(arguments, z):
        consts, leaves = arguments
        return jax.tree.unflatten(structure, jax.core.eval_jaxpr(closed.jaxpr, consts, *leaves, z))

    return (jax.tree.map(jnp.asarray, list(closed.consts)), jax.tree.leaves(arrays)), closed, call


def _compile(
    one: Callable[..., tuple[jax.Array, ...]],
    arguments: Arguments,
    rows: int,
    chunk: int,
    dim: int,
    inputs: int,
) -> Compiled:
    """The compiled program that walks `inputs` arrays of points in chunks.

    `one(arguments, *points)` is what it evaluates, at one point of each array.
    """

    def program(arguments, count, *points):
        def evaluate_chunk(i, out):
            at = [jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in points]
            together = jax.vmap(lambda *z: one(arguments, *z))
            # One point goes without vmap, under which a branch (lax.cond) computes both its sides
            new = (
                together(*at)
                if chunk > 1
                else [leaf[None] for leaf in one(arguments, *(z[0] for z in at))]
            )
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(o, v, i * chunk, 0)
                for o, v in zip(out, new, strict=True)
            )

        shapes = jax.eval_shape(lambda *z: one(arguments, *z), *(x[0] for x in points))
        empty = tuple(jnp.zeros((rows, *s.shape), s.dtype) for s in shapes)
        return jax.lax.fori_loop(0, (count + chunk - 1) // chunk, evaluate_chunk, empty)

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
    points = jax.ShapeDtypeStruct((rows, dim), jnp.float64)
    count = jax.ShapeDtypeStruct((), jnp.int64)
    return compiled(jax.jit(program, keep_unused=True).lower(shapes, count, *[points] * inputs))


def compiled(lowered: Lowered) -> Compiled:
    """The compiled program, from the cache when this process compiled the same text before.

    Lower with `keep_unused=True`: the text of a program does not show the shapes of arguments that
    were dropped.
    """
    text = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    if text not in _programs:
        while len(_programs) >= _MAX_PROGRAMS:
            _programs.pop(next(iter(_programs)))
        _programs[text] = lowered.compile(compiler_options={**SOUND_SUMS})
    return _programs[text]


def chunk_size(jaxpr: Jaxpr) -> int:
    """How many points to evaluate together.

    From the shapes and the primitives alone, never by the clock: the same model must give the same
    bits on a busy machine. Vectorising pays until a chunk's intermediates leave the cache; gathers
    and scatters do not vectorise on a CPU; a matrix that is read anew for each point is worth
    sharing between a few, however large the intermediates are.
    """
    largest, shared, irregular = 1, 0, False
    for eqn in equations(jaxpr):
        largest = max([largest, *(_size(v.aval) for v in eqn.outvars)])
        irregular |= eqn.primitive.name.startswith(("gather", "scatter"))
        if eqn.primitive.name == "dot_general":
            shared = max([shared, *(_size(v.aval) for v in eqn.invars)])
    chunk = _SHARING if irregular else _MAX_CHUNK
    while chunk > _SHARING and chunk * largest > _CACHE_ELEMENTS:
        chunk //= 2
    while chunk > 1 and chunk * largest > max(_CACHE_ELEMENTS, shared):
        chunk //= 2
    return chunk


def _size(aval: jax.core.AbstractValue) -> int:
    """Numbers in an array; 0 for what has no shape, such as a token."""
    shape = getattr(aval, "shape", None)
    return 0 if shape is None else math.prod(shape)


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations of a jaxpr, those of inner ones included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from equations(sub)


def constrain_batch(target: AbstractTarget, points: Float[Array, "n dim"]) -> PyTree:
    """`target.constrain` of each point: the user's pytree with a leading axis n, NumPy leaves.

    A target that is built again, with functions of the same text, compiles nothing again.
    """
    n, dim = points.shape
    rows = min(_MAP_ROWS, max(n, 1))
    padded = (
        np.concatenate([points, np.repeat(points[-1:], -n % rows, axis=0)])
        if n
        else np.zeros((rows, dim))
    )
    constrain = _map_of(target, rows, dim)
    parts = [constrain(padded[i : i + rows]) for i in range(0, len(padded), rows)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)


def _map_of(target: AbstractTarget, rows: int, dim: int) -> "_ValueMap":
    """The compiled map of `rows` points, made once per target object."""
    key = id(target)
    if key not in _maps or _maps[key][0]() is not target:
        _maps[key] = (weakref.ref(target, lambda _: _maps.pop(key, None)), {})
    maps = _maps[key][1]
    if (rows, dim) not in maps:
        maps[rows, dim] = _ValueMap(target, rows, dim)
    return maps[rows, dim]


class _ValueMap:
    """`constrain` of `[rows, dim]` points, in float64."""

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
        everything = [*map(jnp.asarray, closed.consts), *jax.tree.leaves(arrays)]
        variables = [*closed.jaxpr.constvars, *closed.jaxpr.invars[:-1]]
        read = {id(v) for eqn in closed.jaxpr.eqns for v in eqn.invars} | {
            id(v) for v in closed.jaxpr.outvars
        }
        places = [i for i, variable in enumerate(variables) if id(variable) in read]
        self._arguments = [everything[i] for i in places]
        count = len(closed.consts)

        def program(arguments, points):
            given: list[jax.Array | None] = [None] * len(everything)
            for i, argument in zip(places, arguments, strict=True):
                given[i] = argument
            return jax.core.eval_jaxpr(closed.jaxpr, given[:count], *given[count:], points)

        self._program = compiled(jax.jit(program, keep_unused=True).lower(self._arguments, points))

    @scoped
    def __call__(self, points: Float[Array, "rows dim"]) -> PyTree:
        leaves = self._program(self._arguments, np.asarray(points, np.float64))
        return to_host(jax.tree.unflatten(self._structure, leaves))
