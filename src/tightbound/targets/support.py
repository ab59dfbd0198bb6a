"""Where a parameter lives: what a user may write as its support, and what becomes of it.

That is a NumPyro constraint and its bijection. NumPyro is imported when the first constrained
parameter asks for it: a model on the real line never pays for it.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

import jax
import numpy as np
from jaxtyping import Float

from ..results import TargetError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike as ArrayLike
    from numpyro.distributions.constraints import Constraint

    class Transform(Protocol):
        """What we use of a transform of NumPyro, whose own types allow Python numbers as well."""

        def __call__(self, x: jax.Array) -> jax.Array: ...
        @property
        def inv(self) -> Callable[[jax.Array], jax.Array]: ...
        def log_abs_det_jacobian(self, x: jax.Array, y: jax.Array) -> jax.Array: ...
        def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]: ...
else:
    # Names for the annotations alone: the import of NumPyro waits until it is needed, and a check
    # at run time of NumPy's ArrayLike refuses Python's floats.
    ArrayLike = Constraint = Transform = object

Support: TypeAlias = "str | Sequence[ArrayLike | None] | Constraint | Mapping[str, Support]"
"""What a user may write: a name in `SUPPORTS`, `(low, high)`, a constraint, or a dict of these."""

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

# NumPyro's (private) classes of constraints on bounded sets, on which a flat density is proper
_PROPER = ("_Interval", "_Simplex", "_CorrCholesky", "_CorrMatrix", "_L1Ball")


def as_constraint(support: object, name: str, shape: tuple[int, ...]) -> Constraint | None:
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


def normalised(constraint: Constraint) -> Constraint | None:
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


def bijection(constraint: Constraint) -> Transform:
    """NumPyro's bijection from an unconstrained space onto the set that `constraint` describes."""
    from numpyro.distributions import biject_to

    return cast(Transform, biject_to(constraint))


def free_shape(constraint: Constraint | None, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
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


def holds(constraint: Constraint | None, value: Float[np.ndarray, "..."]) -> bool:
    """Whether `value` lies inside the constraint, off its boundary.

    Decided on the host, without compiling anything.
    """
    if constraint is None:
        return True
    # NumPyro's own check lets values on a boundary pass, where the bijection is not finite.
    low = getattr(constraint, "lower_bound", -np.inf)
    high = getattr(constraint, "upper_bound", np.inf)
    if not (np.all(np.less(low, value)) and np.all(np.less(value, high))):
        return False
    if type(constraint).__name__ == "_Simplex" and not np.all(value > 0):
        return False
    # The tolerance of the checks on sums and norms follows the dtype; an example may have been
    # computed in float32.
    return any(bool(np.all(constraint(value.astype(dtype)))) for dtype in (np.float64, np.float32))


def is_proper_when_flat(constraint: Constraint | None) -> bool:
    """Whether the flat density on the set has a finite integral.

    A parameter with such a support may appear in no term of the log density.
    """
    return any(base.__name__ in _PROPER for base in type(constraint).__mro__)


def describe(constraint: Constraint | None) -> str:
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


def flat_supports(support: object, names: Mapping[str, object]) -> dict[str, Support]:
    """`support` with nested dicts written as "outer.inner", its names checked."""
    if support is None:
        return {}
    if not isinstance(support, Mapping):
        raise TargetError(
            f"`support` must be a dict from names to supports, got {type(support).__name__}"
            f" {support!r}."
        )
    flat = _flattened(support)
    for name in flat:
        if name not in names:
            raise TargetError(
                f"`support` names {name!r}, which is not in `example`. Its names:"
                f" {known(names, name)}"
            )
    return flat


def _flattened(support: Mapping[str, Support], outer: str = "") -> dict[str, Support]:
    flat: dict[str, Support] = {}
    for name, entry in support.items():
        flat |= (
            _flattened(entry, f"{outer}{name}.")
            if isinstance(entry, Mapping)
            else {f"{outer}{name}": entry}
        )
    return flat


def _named(support: str, name: str) -> Constraint | None:
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


def _between(
    pair: Sequence[ArrayLike | None], name: str, shape: tuple[int, ...]
) -> Constraint | None:
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

    # The constraint with the fewest bounds, and NumPyro's own object where there is one: messages
    # and the search for conjugate families know those by name.
    if open_low and open_high:
        return None
    if open_high:
        return constraints.positive if np.all(low == 0) else constraints.greater_than(_bound(low))
    if open_low:
        return constraints.less_than(_bound(high))
    if np.all(low == 0) and np.all(high == 1):
        return constraints.unit_interval
    return constraints.interval(_bound(low), _bound(high))


def _end(
    end: ArrayLike | None, name: str, shape: tuple[int, ...], default: float
) -> Float[np.ndarray, "..."]:
    try:
        value = np.asarray(default if end is None else end, np.float64)
        # Spelled out per element, because code under `jax_numpy_rank_promotion="raise"` may not
        # broadcast by itself.
        value = value if value.ndim == 0 else np.broadcast_to(value, shape)
    except (TypeError, ValueError) as error:
        raise TargetError(
            f"`support[{name!r}]`: the ends of an interval are numbers, None for an open end, or"
            f" arrays that broadcast to the value's shape {shape}; got {end!r}."
        ) from error
    if np.isnan(value).any():
        raise TargetError(
            f"`support[{name!r}]`: an end of the interval is NaN; write None for an open end."
        )
    return value


def _is_open(end: Float[np.ndarray, "..."], name: str) -> bool:
    if np.isinf(end).any() and not np.isinf(end).all():
        raise TargetError(
            f"`support[{name!r}]` has finite and infinite ends in one parameter. Split it into two"
            " parameters, one for each kind."
        )
    return bool(np.isinf(end).all())


def _bound(end: ArrayLike) -> float | Float[np.ndarray, "..."]:
    """A number as a Python float (static under jit), an array as float64 (traced)."""
    value = np.asarray(end, np.float64)
    return float(value) if value.ndim == 0 else value


def _checked(constraint: object, name: str) -> Constraint:
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


def reason_against(constraint: Constraint) -> str | None:
    """Why R^d cannot be mapped onto `constraint`, with the way out; None where it can."""
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
