"""Where a parameter lives: from what a user may write as its support to a NumPyro constraint and
its bijection.

NumPyro is imported when the first constrained parameter asks for it: a model on the real line never
pays for it.
"""

import difflib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from ..results import TargetError

SUPPORTS = {
    "real": "real",
    "positive": "positive",
    "unit_interval": "unit_interval",
    "simplex": "simplex",
    "ordered": "ordered_vector",
    "positive_ordered": "positive_ordered_vector",
    "correlation_cholesky": "corr_cholesky",
    "lower_cholesky": "lower_cholesky",
    "circular": "circular",
}
"""The names that `support` knows, and what NumPyro calls them."""

_PROPER = ("_Interval", "_Simplex", "_CorrCholesky", "_CorrMatrix", "_L1Ball")


def as_constraint(support: Any, name: str, shape: tuple[int, ...]) -> Any:
    """The NumPyro constraint that `support` means for the parameter `name`.

    None stands for the whole real line.

    Arguments:
        support: one of the names in `SUPPORTS`, a pair `(low, high)` whose ends may be None or
            infinite (open) and numbers or arrays that broadcast to `shape`, or a NumPyro
            constraint.
        name: the parameter, for messages.
        shape: the shape of its value.

    Raises:
        TargetError: for anything else, and for discrete or dependent constraints, with what is
            accepted.
    """
    if isinstance(support, str):
        return _named(support, name)
    if isinstance(support, (tuple, list)):
        return _between(support, name, shape)
    return normalised(_checked(support, name))


def normalised(constraint: Any) -> Any:
    """`constraint` without its event dimensions and with float64 bounds; None for the real line.

    A layout adds up log-Jacobians over all elements, so that how many axes make up one event makes
    no difference.
    """
    from numpyro.distributions import constraints

    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint is constraints.real:
        return None
    return jax.tree.map(_bound, constraint)


def bijection(constraint: Any) -> Any:
    """NumPyro's bijection from an unconstrained space onto the set that `constraint` describes."""
    from numpyro.distributions import biject_to

    return biject_to(constraint)


def free_shape(constraint: Any, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the unconstrained array behind a value of `shape`.

    Raises:
        TargetError: when the constraint cannot hold for a value of this shape (a simplex needs an
            axis, a Cholesky factor two of the same length).
    """
    if constraint is None:
        return shape
    try:
        free = tuple(int(n) for n in bijection(constraint).inverse_shape(shape))
    except (ValueError, TypeError) as error:
        raise TargetError(
            f"`{name}` has shape {shape}, which does not fit its support {describe(constraint)}:"
            f" {error}. Constraints on vectors and matrices hold for the last axes; give the value"
            " these axes, or change its support."
        ) from error
    if any(n < 0 for n in free):
        raise TargetError(
            f"`{name}` has shape {shape}, which is too short for its support"
            f" {describe(constraint)}."
        )
    return free


def holds(constraint: Any, value: np.ndarray) -> bool:
    """Whether `value` lies inside the constraint, off its boundary.

    Decided on the host, without compiling anything.
    """
    if constraint is None:
        return True
    low, high = (
        getattr(constraint, "lower_bound", -np.inf),
        getattr(constraint, "upper_bound", np.inf),
    )
    if not (np.all(np.less(low, value)) and np.all(np.less(value, high))):
        return False
    if type(constraint).__name__ == "_Simplex" and not np.all(value > 0):
        return False
    # The tolerance of the checks on sums and norms follows the dtype; an example may have been
    # computed in float32.
    return any(bool(np.all(constraint(value.astype(dtype)))) for dtype in (np.float64, np.float32))


def is_proper_when_flat(constraint: Any) -> bool:
    """Whether the flat density on the set has a finite integral, so that a parameter may appear in
    no other factor.
    """
    return any(base.__name__ in _PROPER for base in type(constraint).__mro__)


def describe(constraint: Any) -> str:
    """The constraint as a user would write it."""
    if constraint is None:
        return "'real'"
    from numpyro.distributions import constraints

    for ours, theirs in SUPPORTS.items():
        if constraint is getattr(constraints, theirs):
            return f"'{ours}'"
    return repr(constraint)


def known(names: Iterable[str], wrong: str) -> str:
    """`a, b, c` for a message, with a guess at what `wrong` was meant to be."""
    names = list(names)
    close = difflib.get_close_matches(wrong, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") + "." + hint


def _named(support: str, name: str) -> Any:
    if support not in SUPPORTS:
        raise TargetError(
            f"`support[{name!r}]` is {support!r}, which is not a support that tightbound knows."
            f" Known names: {known(SUPPORTS, support)} A pair (low, high) or a NumPyro constraint"
            " works too."
        )
    if support == "real":
        return None
    from numpyro.distributions import constraints

    return getattr(constraints, SUPPORTS[support])


def _between(pair: Any, name: str, shape: tuple[int, ...]) -> Any:
    """The constraint for `(low, high)`: an interval, a half-line, or the real line."""
    if len(pair) != 2:
        raise TargetError(
            f"`support[{name!r}]` has {len(pair)} entries; an interval is a pair (low, high)."
        )
    low, high = (
        _end(end, name, shape, np.inf * sign) for end, sign in zip(pair, (-1, 1), strict=True)
    )
    if not np.all(low < high):
        raise TargetError(f"`support[{name!r}]` is {tuple(pair)!r}, but low must be below high.")
    open_low, open_high = (_is_open(end, name) for end in (low, high))
    from numpyro.distributions import constraints

    if open_low and open_high:
        return None
    if open_high:
        return constraints.positive if np.all(low == 0) else constraints.greater_than(_bound(low))
    if open_low:
        return constraints.less_than(_bound(high))
    if np.all(low == 0) and np.all(high == 1):
        return constraints.unit_interval
    return constraints.interval(_bound(low), _bound(high))


def _end(end: Any, name: str, shape: tuple[int, ...], default: float) -> np.ndarray:
    try:
        end = np.asarray(default if end is None else end, np.float64)
        # Spelled out per element, because code under `jax_numpy_rank_promotion="raise"` may not
        # broadcast by itself.
        end = end if end.ndim == 0 else np.broadcast_to(end, shape)
    except (TypeError, ValueError) as error:
        raise TargetError(
            f"`support[{name!r}]`: the ends of an interval are numbers, None for an open end, or"
            f" arrays that broadcast to the value's shape {shape}; got {end!r}."
        ) from error
    if np.isnan(end).any():
        raise TargetError(
            f"`support[{name!r}]`: an end of the interval is NaN; write None for an open end."
        )
    return end


def _is_open(end: np.ndarray, name: str) -> bool:
    if np.isinf(end).any() and not np.isinf(end).all():
        raise TargetError(
            f"`support[{name!r}]` has finite and infinite ends in one parameter. Split it into two"
            " parameters, one for each kind."
        )
    return bool(np.isinf(end).all())


def _bound(end: Any) -> Any:
    """A number as a Python float (static under jit), an array as float64 (traced)."""
    end = np.asarray(end, np.float64)
    return float(end) if end.ndim == 0 else end


def _checked(constraint: Any, name: str) -> Any:
    from numpyro.distributions import constraints

    if isinstance(constraint, type) and issubclass(constraint, constraints.Constraint):
        raise TargetError(
            f"`support[{name!r}]` is the class {constraint.__name__.lstrip('_')}, not a constraint:"
            " call it with its bounds, or write a pair (low, high)."
        )
    if not isinstance(constraint, constraints.Constraint):
        raise TargetError(
            f"`support[{name!r}]` is {constraint!r} of type {type(constraint).__name__}. A support"
            f" is one of the names {', '.join(SUPPORTS)}; a pair (low, high); or a constraint from"
            " numpyro.distributions.constraints."
        )
    if constraints.is_dependent(constraint):
        raise TargetError(
            f"`support[{name!r}]` depends on other values. Write the parameter as a function of one"
            " with a fixed support, with its log-Jacobian, or use tb.from_numpyro, where a support"
            " may depend on other sites."
        )
    reason = reason_against(constraint)
    if reason:
        raise TargetError(f"`support[{name!r}]` is {describe(constraint)}: {reason}.")
    return constraint


def reason_against(constraint: Any) -> str | None:
    """Why the values of `constraint` cannot be mapped from R^d, with the way out.

    None where they can.
    """
    if constraint.is_discrete:
        return (
            "its values are discrete, but a log density on R^d needs continuous ones; sum the"
            " discrete values out"
        )
    try:
        transform = bijection(constraint)
    except NotImplementedError:  # how NumPyro says that it knows no bijection
        return (
            "NumPyro has no bijection onto it from an unconstrained space; write the parameter in"
            " other coordinates"
        )
    if type(transform).__name__ == "ComplexTransform":
        return "its values are complex; use two real parameters"
    return None
