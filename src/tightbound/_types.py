"""Types that every layer shares: arrays, keys, pytrees, estimates and budgets.

Shapes are written with jaxtyping on every array: `Float[Array, "n dim"]`. The names of axes are
those of docs/notation.md: `dim` (coordinates), `n` (draws), `rows` (of data), `m` (pairs of a
design), `noise` (standard normals of one draw).
"""

import dataclasses
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, PyTree

if TYPE_CHECKING:
    from typing import Annotated as Validated
    from typing import Self as Self

    Array: TypeAlias = jax.Array | np.ndarray
    Key: TypeAlias = int | np.integer | jax.Array | np.ndarray
else:
    # beartype knows what Self is only in a class that it decorates as a whole; the tests' hook
    # decorates one function at a time.
    Self = object
    # NumPy's scalars (np.float64) are arrays to everyone but the type checkers.
    Array = jax.Array | np.ndarray | np.generic
    # `_numerics.key_words` refuses a wrong key with a sentence that says more than a type error.
    Key = object

    class Validated:
        """`Validated[T, "who says what is wrong"]`: T to type checkers, anything at run time.

        For arguments of public functions that check them themselves: the run-time type checks of
        the tests would otherwise answer first, and say less.
        """

        def __class_getitem__(cls, item: object) -> type:
            return object


Scalar: TypeAlias = Float[Array, ""] | float | np.floating
"""One real number: 0-d under JAX, a NumPy or Python float on the host."""

Flag: TypeAlias = Array | bool | np.bool_
"""One truth value, or one for each lane."""

CovarianceStructure: TypeAlias = Literal["full", "diagonal", "low_rank", "none"]
"""How a Gaussian stores its covariance; "none" for a family that is no Gaussian."""


class Estimate(NamedTuple):
    """A Monte Carlo estimate with its standard error, both in the quantity's unit."""

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.stderr:.3f}"


@dataclasses.dataclass(frozen=True)
class Budget:
    """An upper bound on what a fit may use; reaching it is a result, not an error.

    Start, solvers, ladder and certificate share it. Evaluations are exceeded by a tenth, or by 512,
    at most: a certificate needs some draws, however small the budget. Of an amortised fit it binds
    the training only: the simulations of its certificate are neither counted nor limited.

    Arguments:
        seconds: wall-clock seconds, checked at every evaluation outside compiled loops.
        evaluations: values of the log density with their gradients.
    """

    seconds: Validated[float | None, "__post_init__"] = None
    evaluations: Validated[int | None, "__post_init__"] = None

    def __post_init__(self) -> None:
        for name in ("seconds", "evaluations"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float, np.number)) and value > 0):
                raise ValueError(
                    f"Budget: `{name}` must be positive or None (no limit), got {value!r}."
                )


__all__ = [
    "Array",
    "Budget",
    "CovarianceStructure",
    "Estimate",
    "Key",
    "PyTree",
    "Scalar",
    "Self",
    "Validated",
]
