"""Types that every layer shares.

Arrays, estimates, and what a finished fit looks like to its judges.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

if TYPE_CHECKING:
    Array = jax.Array | np.ndarray
else:  # NumPy's scalars (np.float64) are arrays to everyone but the type checkers
    Array = jax.Array | np.ndarray | np.generic
"""A JAX array inside compiled code, a NumPy array or scalar on the host; all hold float64 in a fit.
"""

PyTree = Any
Key = Any
"""An int, a typed JAX key (`jax.random.key`) or a legacy `jax.random.PRNGKey` array."""


class Estimate(NamedTuple):
    """A Monte Carlo estimate with its standard error, both in the unit of the quantity (nats for an
    ELBO).
    """

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.stderr:.3f}"


@dataclasses.dataclass(frozen=True)
class Budget:
    """An upper bound on what a fit may use; reaching it is a result, not an error.

    Arguments:
        seconds: wall-clock seconds, checked between blocks of steps.
        evaluations: gradients of the log density, checked between blocks of steps.
    """

    seconds: float | None = None
    evaluations: int | None = None

    def __post_init__(self):
        for name in ("seconds", "evaluations"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float, np.number)) and value > 0):
                raise ValueError(
                    f"Budget: `{name}` must be positive or None (no limit), got {value!r}."
                )


@runtime_checkable
class Fitted(Protocol):
    """All that a check or a report may know of a fit: the approximation and what it approximates."""

    @property
    def q(self) -> Any:
        """The approximation: a member of a family."""
        ...

    @property
    def target(self) -> Any:
        """What it approximates."""
        ...
