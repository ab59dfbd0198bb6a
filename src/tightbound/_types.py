"""Types that every layer shares: arrays, keys, pytrees and estimates.

Shapes are written with jaxtyping on every array: `Float[Array, "n dim"]`. The names of axes are
those of docs/notation.md: `dim` (coordinates), `n` (draws), `rows` (of data), `m` (pairs of a
design), `noise` (standard normals of one draw).
"""

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


__all__ = [
    "Array",
    "CovarianceStructure",
    "Estimate",
    "Key",
    "PyTree",
    "Scalar",
    "Self",
    "Validated",
]
