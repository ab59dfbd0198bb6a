"""Look at a user's function before anything is compiled.

What it returns, what it reads, how precisely it computes. A function is traced once on shapes
alone, and whatever goes wrong in it becomes a sentence that names the argument.
"""

import collections
import contextlib
import functools
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.core import AbstractValue, Tracer
from jax.extend.core import Jaxpr
from jaxtyping import Float, Shaped

from .._numerics import to_host, x64
from .._types import PyTree
from ..results import TargetError
from .support import known

P = ParamSpec("P")
ReturnT = TypeVar("ReturnT")

# What JAX raises where a function asks a parameter for its number
UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


# Objects that `is_traced` looks at: targets hold some dozens, and a search through the whole of a
# large object that a user's function closes over would take longer than a fit.
_MOST_OBJECTS = 10_000


def host_unless_traced(method: Callable[P, ReturnT]) -> Callable[P, ReturnT]:
    """Run a public method inside `x64()` and return NumPy arrays, which no precision flag narrows.

    When JAX traces it (jax.grad, jax.jit), the scope is the caller's: the backward pass runs after
    the method has returned, and one program cannot be half in float64 where the flag is off.
    """

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> ReturnT:
        if _has_tracer((args, kwargs)):
            return method(*args, **kwargs)
        with x64():
            out = method(*args, **kwargs)
        # Traced after all: called with known numbers inside a jit
        return out if _has_tracer(out) else to_host(out)

    return wrapper


def _has_tracer(tree: PyTree) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def is_traced(target: object) -> bool:
    """Whether `target` was made from arrays that JAX traces, inside `jax.jit`, `vmap` or `grad`.

    Such a target has no numbers to fit to. Its leaves and fields are looked at, and what its
    functions hold: closures, defaults, bound objects, wrapped functions. What a function reads from
    global variables, or an object keeps in slots, is not seen.
    """
    waiting, seen = collections.deque([target]), set()
    while waiting and len(seen) < _MOST_OBJECTS:
        held = waiting.popleft()
        if isinstance(held, Tracer):
            return True
        if id(held) not in seen:
            seen.add(id(held))
            waiting.extend(_held_by(held))
    return False


def _held_by(thing: object) -> Iterator[object]:
    """The objects that an object holds and that may be, or lead to, a tracer."""
    if isinstance(thing, (type, types.ModuleType, np.ndarray, jax.Array)):
        return
    if isinstance(thing, dict):
        yield from thing.values()
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from thing
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, types.MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, types.FunctionType):
        yield from (thing.__defaults__, thing.__kwdefaults__)
        for cell in thing.__closure__ or ():
            # A cell is empty while the name that it stands for is not assigned
            with contextlib.suppress(ValueError):
                yield cell.cell_contents
    if callable(thing):
        yield getattr(thing, "__wrapped__", None)  # behind functools.wraps and jax.jit
    yield from getattr(thing, "__dict__", {}).values()


class Traced(NamedTuple):
    """What a trace showed.

    Attributes:
        reads: for each array leaf of the first argument, whether the result depends on it.
        returns_float32: whether the result, or a number on the way to it, was rounded below
            float64.
        constants: the arrays that the function closes over.
    """

    reads: list[bool]
    returns_float32: bool
    constants: list[PyTree]


def trace(function: Callable[..., jax.Array], first: PyTree, *rest: PyTree) -> Traced:
    """Trace `function(first, *rest)`, which returns one array, on arrays or shapes.

    Call inside `x64()`.
    """
    mend_numpy_constants()
    closed = jax.make_jaxpr(function)(first, *rest)
    live = _live_inputs(closed.jaxpr)[: len(jax.tree.leaves(first))]
    narrow = rounds(closed.jaxpr, [True] * len(closed.jaxpr.invars)) or any(
        _is_narrow(v.aval) for v in closed.jaxpr.outvars
    )
    return Traced(live, narrow, list(closed.consts))


def rounds(jaxpr: Jaxpr, depends: list[bool]) -> bool:
    """Whether a float64 number that depends on the marked inputs is rounded to a narrower float.

    What is closed over does not count: float32 data, and the numbers that libraries make to go with
    them, cost no digit of a parameter.

    Arguments:
        jaxpr: of the function.
        depends: for each input, whether it counts.
    """
    moving = {v for v, d in zip(jaxpr.invars, depends, strict=True) if d}
    for eqn in jaxpr.eqns:
        inputs = [not isinstance(v, jax.extend.core.Literal) and v in moving for v in eqn.invars]
        if not any(inputs):
            continue
        moving.update(eqn.outvars)
        converts = eqn.primitive.name == "convert_element_type"
        wide = converts and _float_bits(eqn.invars[0].aval) == 64
        if wide and _is_narrow(eqn.outvars[0].aval):
            return True
        for sub in jax.extend.core.jaxprs_in_params(eqn.params):
            # A call has the inputs of its equation; a loop or a branch may not, and counts as
            # moving throughout
            if rounds(sub, inputs if len(sub.invars) == len(inputs) else [True] * len(sub.invars)):
                return True
    return False


def _is_narrow(aval: AbstractValue) -> bool:
    return 0 < _float_bits(aval) < 64


def _float_bits(aval: AbstractValue) -> int:
    """Bits of a floating number; 0 for everything else, keys and tokens included."""
    dtype = getattr(aval, "dtype", None)
    return jnp.finfo(dtype).bits if dtype and jnp.issubdtype(dtype, jnp.floating) else 0


def _live_inputs(jaxpr: Jaxpr) -> list[bool]:
    """Which inputs the outputs depend on.

    An equation with an inner jaxpr counts as reading all its inputs.
    """
    needed = {v for v in jaxpr.outvars if not isinstance(v, jax.extend.core.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(v for v in eqn.invars if not isinstance(v, jax.extend.core.Literal))
    return [v in needed for v in jaxpr.invars]


@contextlib.contextmanager
def explained(argument: str, names: Iterable[str] | None = None) -> Iterator[None]:
    """Turn what a user's function raises while it is traced into a sentence that names `argument`.

    Errors that tightbound cannot explain better than their author keep their type and gain a note.
    `names` are the parameters that the function may ask for.
    """
    try:
        yield
    except TargetError:
        raise
    except UNTRACEABLE as error:
        raise TargetError(
            f"JAX cannot trace `{argument}`: it uses a value where only a known number will do"
            " (NumPy or SciPy on a parameter, `if` or `float()` on one). Write it with jax.numpy,"
            " jax.scipy, jnp.where and jax.lax.cond; code that must stay outside JAX goes into"
            " jax.pure_callback inside a jax.custom_jvp function that supplies its derivative. JAX"
            f" said: {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:
        if isinstance(error, KeyError) and error.args and names is not None:
            missing = str(error.args[0])
            raise TargetError(
                f"`{argument}` raised KeyError: {missing!r}. The parameters in `example` are"
                f" {known(names, missing)} If {missing!r} is a parameter, add it to `example`; if"
                " it is data, it is missing there."
            ) from error
        error.add_note(
            f"tightbound: raised by `{argument}` while JAX traced it on shapes alone, in float64."
        )
        raise


def scalar(out: object, argument: str, *, may_be_constant: bool = False) -> Float[jax.Array, ""]:
    """`out` if it is what a log density returns: one traced floating number.

    Arguments:
        out: what the user's function returned.
        argument: its name, for messages.
        may_be_constant: whether it may ignore its parameters, as a flat prior does.

    Raises:
        TargetError: for anything else, saying what came back and what to do about it.
    """
    if out is None:
        raise TargetError(f"`{argument}` returned None; is its `return` missing?")
    if not isinstance(out, (jax.Array, np.ndarray, np.generic, float, int)):
        raise TargetError(
            f"`{argument}` returned a {type(out).__name__}; it must return one number, the log"
            " density in nats."
        )
    if np.shape(out) != ():
        raise TargetError(
            f"`{argument}` returned shape {np.shape(out)}, but a log density is one number in nats."
            " Sum over the terms, for instance jnp.sum(...)."
        )
    constant = not isinstance(out, Tracer)
    if constant and not may_be_constant:
        raise TargetError(
            f"`{argument}` returned the constant {out!r}, which does not depend on the parameters:"
            " the posterior would be flat. Compute the log density from the parameters with"
            " jax.numpy (not with float() or math)."
        )
    return _real(jnp.asarray(out), argument, constant)


def vector(out: object, argument: str, length: int) -> Float[jax.Array, "rows"]:
    """`out` if it is one floating number for each of `length` rows.

    Raises:
        TargetError: for anything else, saying what came back and what to do about it.
    """
    if out is None:
        raise TargetError(f"`{argument}` returned None; is its `return` missing?")
    if not isinstance(out, (jax.Array, np.ndarray)) or out.shape != (length,):
        shape = getattr(out, "shape", None)
        shown = f"a {type(out).__name__}" if shape is None else f"shape {shape}"
        raise TargetError(
            f"`{argument}` returned {shown} for {length} rows of data, but it must return the log"
            f" likelihood of each row, shape ({length},), for any number of rows. Sum over all axes"
            " but the first, not over the rows, and compute from the `rows` that are passed, not"
            " from data that the function closes over."
        )
    return _real(jnp.asarray(out), argument, False)


def _real(out: jax.Array, argument: str, constant: bool) -> Float[jax.Array, "..."]:
    if constant:
        return out.astype(jnp.result_type(float))
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TargetError(
            f"`{argument}` returned dtype {out.dtype}, but a log density is a floating number whose"
            " gradient exists. Check for comparisons, counts, and astype(int)."
        )
    return out


@functools.cache
def mend_numpy_constants() -> None:
    """Make JAX look at the precision flag each time that it meets a NumPy array; once is enough.

    A flaw of JAX 0.10: NumPy arrays that a function closes over keep the precision of their first
    use. JAX remembers the canonical form of a NumPy array for as long as anything holds that form,
    such as a jaxpr in one of its caches, and forgets that the form depends on the flag. So an array
    that a user's jitted function closes over in float32 stays float32 inside our scope of float64
    (and the other way round after a fit), while its type says float64. The program then fails with
    "requires compatible types for all operands" or RuntimeProgramInputMismatch. The remedy is the
    same memory, with the dtype in its key.
    """
    try:
        from jax._src.dtypes import canonicalize_dtype, register_canonicalize_value_handler
        from jax._src.literals import TypedNdArray
    except ImportError:
        # A JAX with other internals: tests/targets/test_tracing.py says whether it needs the remedy
        return

    remembered: dict[tuple[int, np.dtype], tuple[weakref.ref, weakref.ref]] = {}

    def canonical(array: Shaped[np.ndarray, "..."]) -> TypedNdArray:
        dtype = np.dtype(canonicalize_dtype(array.dtype))
        key = (id(array), dtype)
        if key in remembered:
            source, form = (reference() for reference in remembered[key])
            if source is array and form is not None:  # not another array that has been given its id
                return form
        form = TypedNdArray(np.asarray(array, dtype))
        remembered[key] = (
            weakref.ref(array),
            weakref.ref(form, lambda _: remembered.pop(key, None)),
        )
        return form

    register_canonicalize_value_handler(np.ndarray, canonical)
