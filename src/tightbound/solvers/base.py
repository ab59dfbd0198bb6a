"""Question 3b: how is the closest member found? A solver moves q.

The loop around it lives in `loop.py`.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax

from .._types import Array, PyTree
from ..objectives.base import AbstractObjective
from ..results import Result


class Info(eqx.Module):
    """What a diagnostician wants of one step; stacked over steps it is the fit's trace.

    Attributes:
        loss: the objective's loss after the step, nats (smaller is better); NaN where a solver has
            none.
        change: size of the move of q, in posterior sds where the solver knows them.
        evaluations: gradients of the log density used by the step.
    """

    loss: Array | float
    change: Array | float
    evaluations: Array | float | int


class AbstractSolver(eqx.Module):
    """A search for the closest member: `init`, `step`, `done`.

    `compiled`: the loop scans `step` under jit in blocks (True), or calls it from Python with NumPy
    arrays on the host (False); guard, stopping, trace, progress and budget are the same around
    both.
    """

    compiled: ClassVar[bool] = True

    @abc.abstractmethod
    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        """Refuse a pairing that cannot work, before anything is compiled (PairingError, naming the
        parts).
        """

    def default_objective(self) -> AbstractObjective | None:
        """What `objective=None` means for this solver.

        None for solvers with an objective of their own.
        """
        return None

    def own_start(self, target: Any, key: Any, starts: int | None) -> Any:
        """The q to start from where the caller gave none, for solvers that need one of their own.

        None for the default's.
        """
        return None

    @abc.abstractmethod
    def init(
        self,
        target: Any,
        q: Any,
        objective: AbstractObjective | None,
        key: jax.Array | Any,
        tol: float,
    ) -> PyTree:
        """The state before the first step. `tol` is the accuracy asked for, in posterior sds."""

    @abc.abstractmethod
    def step(
        self, target: Any, q: Any, objective: AbstractObjective | None, state: PyTree, key: Any
    ) -> tuple[Any, Any, PyTree, Info]:
        """One step.

        The target (its learnable leaves may move too), the new q, the new state, and its Info.
        """

    @abc.abstractmethod
    def done(self, state: PyTree) -> Result | None:
        """How the run has ended, or None to go on; called on the host between blocks."""

    def finish(self, target: Any, q: Any, state: PyTree) -> Any:
        """The q to return (an average of iterates, say); by default the last one."""
        return q
