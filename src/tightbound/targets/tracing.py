"""Look at a user's function before anything is compiled: what it returns, what it reads, how
precisely it computes.

A function is traced once on shapes alone. Whatever goes wrong in it becomes a sentence that names
the argument.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._numerics import to_host, x64
from .._types import PyTree
from ..results import TargetError
from .constants import mend_numpy_constants
from .support import known

F = TypeVar("F", bound=Callable)

_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def host_unless_traced(method: F) -> F:
    """Run a public method inside `x64()` and return NumPy arrays, which no precision flag can
    narrow.

    When JAX traces it (jax.grad, jax.jit), the scope is the caller's: the backward pass runs after
    the method has returned, and one program cannot be half in float64 where the flag is off.
    """

    @functools.wraps(method)
    def wrapper(*args, **kwargs):
        if _is_traced((args, kwargs)):
            return method(*args, **kwargs)
        with x64():
            out = method(*args, **kwargs)
        # traced after all: called with known numbers inside a jit
        return out if _is_traced(out) else to_host(out)

    return wrapper  # pyright: ignore[reportReturnType]


def _is_traced(tree: PyTree) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


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
    constants: list[Any]


def trace(function: Callable[..., Any], first: PyTree, *rest: PyTree) -> Traced:
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


def rounds(jaxpr: Any, depends: list[bool]) -> bool:
    """Whether a jaxpr converts a float64 number that depends on the inputs marked by `depends` to a
    narrower float.

    What is closed over does not count: float32 data, and the numbers that libraries make to go with
    them, cost no digit of a parameter.
    """
    moving = {v for v, d in zip(jaxpr.invars, depends, strict=True) if d}
    for eqn in jaxpr.eqns:
        inputs = [not isinstance(v, jax.extend.core.Literal) and v in moving for v in eqn.invars]
        if not any(inputs):
            continue
        moving.update(eqn.outvars)
        converts = eqn.primitive.name == "convert_element_type"
        if converts and eqn.invars[0].aval.dtype == np.float64 and _is_narrow(eqn.outvars[0].aval):
            return True
        for sub in jax.extend.core.jaxprs_in_params(eqn.params):
            # a call has the inputs of its equation; a loop or a branch may not, and counts as
            # moving throughout
            if rounds(sub, inputs if len(sub.invars) == len(inputs) else [True] * len(sub.invars)):
                return True
    return False


def _is_narrow(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.floating) and jnp.finfo(aval.dtype).bits < 64


def _live_inputs(jaxpr: Any) -> list[bool]:
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
    except _UNTRACEABLE as error:
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


def scalar(out: Any, argument: str, *, may_be_constant: bool = False) -> jax.Array:
    """`out` if it is what a log density returns: one traced floating number.

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


def vector(out: Any, argument: str, length: int) -> jax.Array:
    """`out` if it is one floating number per row, `[length]`.

    Raises:
        TargetError: for anything else, saying what came back and what to do about it.
    """
    if out is None:
        raise TargetError(f"`{argument}` returned None; is its `return` missing?")
    if not isinstance(out, (jax.Array, np.ndarray)) or np.shape(out) != (length,):
        shown = f"shape {np.shape(out)}" if hasattr(out, "shape") else f"a {type(out).__name__}"
        raise TargetError(
            f"`{argument}` returned {shown} for {length} rows of data, but it must return the log"
            f" likelihood of each row, shape ({length},), for any number of rows. Sum over all axes"
            " but the first, not over the rows, and compute from the `rows` that are passed, not"
            " from data that the function closes over."
        )
    return _real(jnp.asarray(out), argument, False)


def _real(out: jax.Array, argument: str, constant: bool) -> jax.Array:
    if constant:
        return out.astype(jnp.result_type(float))
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TargetError(
            f"`{argument}` returned dtype {out.dtype}, but a log density is a floating number whose"
            " gradient exists. Check for comparisons, counts, and astype(int)."
        )
    return out
