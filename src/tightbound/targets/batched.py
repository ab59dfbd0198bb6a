"""The one function that a default fit compiles: values and scores of a log density at a batch of
points.

Compile time is most of what a user waits for, so there is one program per target, for any number of
points: it walks the batch in chunks of a fixed size, as many as it is told. Closed-over arrays are
hoisted out of the program into its arguments, so XLA does not fold them, and a target that is built
again with other data of the same shapes lowers to the same program text, which is found in the
cache and not compiled again.
"""

import hashlib
import math
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.extend
import jax.numpy as jnp
import numpy as np

from .._numerics import SOUND_SUMS, to_device, x64
from .base import Density

_MAX_ROWS = 1024  # points per call of the compiled program
_MAX_CHUNK = 16  # points evaluated together; beyond this vectorisation on a CPU gains nothing
# points that share one pass over a large matrix: most of the gain, and few idle places in a batch
# of starts
_SHARING = 4
# 1 MiB of doubles: intermediates of a chunk should stay in the second-level cache
_CACHE_ELEMENTS = 2**17
_MAX_PROGRAMS = 64

_programs: dict[str, Any] = {}
_by_target: dict[int, tuple[Any, "BatchedDensity"]] = {}


def batched(target: Density) -> "BatchedDensity":
    """The compiled evaluator of `target`, made once per target object."""
    entry = _by_target.get(id(target))
    if entry is not None and entry[0]() is target:
        return entry[1]
    evaluator = BatchedDensity(target)
    key = id(target)
    _by_target[key] = (weakref.ref(target, lambda _: _by_target.pop(key, None)), evaluator)
    return evaluator


def evaluations_of(target: Any) -> int:
    """Points asked of the evaluator of `target` so far; none is made for the asking."""
    entry = _by_target.get(id(target))
    return entry[1].evaluations if entry is not None and entry[0]() is target else 0


class BatchedDensity:
    """Values and scores of a target's log density: `evaluator(points [n, d]) -> (values [n], scores
    [n, d])`.

    NumPy in, NumPy out, float64. Non-finite values and scores are passed through: the caller
    decides. `evaluations` counts the points asked for over the evaluator's life.
    """

    def __init__(self, target: Density):
        self.dim = target.dim
        self.evaluations = 0
        self._along: Any = None
        with x64():
            self._arguments, self._jaxpr = _trace(target)
            self.chunk = chunk_size(self._jaxpr.jaxpr)
            self.rows = max(
                self.chunk, min(_MAX_ROWS, 2**22 // max(self.dim, 1)) // self.chunk * self.chunk
            )
            self._program = self._compiled(self._value_and_score, 1)

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, scores = self._in_blocks(self._program, points)
        self.evaluations += len(points)
        return values, scores

    def hessian_products(self, points: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """The Hessian of the log density at each row of `points [n, d]` times the same row of
        `directions`: `[n, d]`.

        A second program, compiled when it is first asked for. Each product counts as two
        evaluations.
        """
        if self._along is None:
            with x64():
                self._along = self._compiled(self._hessian_product, 2)
        (products,) = self._in_blocks(self._along, points, directions)
        self.evaluations += 2 * len(points)
        return products

    def _value_and_score(self, arguments: Any, z: Any) -> tuple[Any, ...]:
        consts, arrays = arguments
        return tuple(jax.core.eval_jaxpr(self._jaxpr.jaxpr, consts, *arrays, z))

    def _hessian_product(self, arguments: Any, z: Any, direction: Any) -> tuple[Any, ...]:
        return (jax.jvp(lambda at: self._value_and_score(arguments, at)[1], (z,), (direction,))[1],)

    def _compiled(self, one: Any, inputs: int) -> Any:
        return _compile(one, self._arguments, self.rows, self.chunk, self.dim, inputs)

    def _in_blocks(self, program: Any, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The outputs of `program` for all rows of the inputs `[n, d]`, a block at a time."""
        n, parts = len(inputs[0]), []
        with x64():
            for start in range(0, max(n, 1), self.rows):
                blocks = [x[start : start + self.rows] for x in inputs]
                count = len(blocks[0])
                out = program(self._arguments, np.int64(count), *map(self._padded, blocks))
                parts.append([np.asarray(leaf)[:count] for leaf in out])
        return tuple(np.concatenate(leaves) for leaves in zip(*parts, strict=True))

    def _padded(self, block: np.ndarray) -> np.ndarray:
        """`block` in a buffer of the program's shape.

        The last chunk is filled with copies of the first point.

        Copies rather than zeros: a log density may loop for ever, or print, where it is undefined.
        """
        if len(block) == self.rows:
            return np.ascontiguousarray(block, dtype=np.float64)
        buffer = np.zeros((self.rows, self.dim))
        buffer[: len(block)] = block
        used = -(-len(block) // self.chunk) * self.chunk
        buffer[len(block) : used] = block[:1]
        return buffer


def _trace(target: Density):
    """The jaxpr of value and score at one point, with the target's arrays and closed-over constants
    as arguments.
    """

    def value_and_score(target, z):
        value, score = jax.value_and_grad(target.log_density)(z)
        return value.astype(jnp.float64), score.astype(jnp.float64)

    arguments, closed, _ = hoisted(target, value_and_score)
    return arguments, closed


def hoisted(target: Density, function: Any) -> tuple[Any, Any, Any]:
    """`function(target, z)` at one point as (arguments, jaxpr, call): `call(arguments, z)`
    evaluates it in compiled code.

    The arrays that the target holds, or closes over, are its arguments, and not constants that XLA
    would fold.
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


def _compile(one: Any, arguments: Any, rows: int, chunk: int, dim: int, inputs: int) -> Any:
    """The program that walks `inputs` arrays of points in chunks with `one(arguments, *rows)`,
    compiled for these shapes.
    """

    def program(arguments, count, *points):
        def evaluate_chunk(i, out):
            at = [jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in points]
            together = jax.vmap(lambda *z: one(arguments, *z))
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
    points, count = (
        jax.ShapeDtypeStruct((rows, dim), jnp.float64),
        jax.ShapeDtypeStruct((), jnp.int64),
    )
    return compiled(jax.jit(program, keep_unused=True).lower(shapes, count, *[points] * inputs))


def compiled(lowered: Any) -> Any:
    """The compiled program, from the cache when the same text was compiled before in this process.

    Lower with `keep_unused=True`: the text of a program does not show the shapes of arguments that
    were dropped.
    """
    text = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    if text not in _programs:
        while len(_programs) >= _MAX_PROGRAMS:
            _programs.pop(next(iter(_programs)))
        _programs[text] = lowered.compile(compiler_options=SOUND_SUMS)
    return _programs[text]


def chunk_size(jaxpr) -> int:
    """How many points to evaluate together, from the shapes and the primitives alone (never by the
    clock).

    Vectorising pays until a chunk's intermediates leave the cache; gathers and scatters do not
    vectorise on a CPU; a matrix that is read anew for each point is worth sharing between a few,
    however large the intermediates are.
    """
    largest, shared, irregular = 1, 0, False
    for eqn in equations(jaxpr):
        largest = max(
            [largest, *(math.prod(v.aval.shape) for v in eqn.outvars if hasattr(v.aval, "shape"))]
        )
        irregular |= eqn.primitive.name.startswith(("gather", "scatter"))
        if eqn.primitive.name == "dot_general":
            shared = max([shared, *(math.prod(v.aval.shape) for v in eqn.invars)])
    chunk = _SHARING if irregular else _MAX_CHUNK
    while chunk > _SHARING and chunk * largest > _CACHE_ELEMENTS:
        chunk //= 2
    while chunk > 1 and chunk * largest > max(_CACHE_ELEMENTS, shared):
        chunk //= 2
    return chunk


def equations(jaxpr):
    """All equations of a jaxpr, those of inner ones included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from equations(sub)
