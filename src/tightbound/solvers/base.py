"""Question 3b: how is the closest member found? A solver moves q.

The loop around it lives in `loop.py`.
"""

import abc
from typing import ClassVar

import equinox as eqx

from .._types import Array, Key, PyTree
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective
from ..results import PairingError, Result
from ..targets.base import AbstractTarget, Density, require


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
    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        """Refuse a pairing that cannot work, before anything is compiled.

        Raises:
            PairingError: it names the parts, and what would fit.
        """

    def default_objective(self) -> AbstractObjective | None:
        """The objective that `objective=None` means; None where the solver has one of its own."""
        return None

    def own_start(
        self, target: AbstractTarget, key: Key, starts: int | None
    ) -> AbstractFamily | None:
        """The q to start from where the caller gave none; None leaves it to the recipe."""
        return None

    @abc.abstractmethod
    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> PyTree:
        """The state before the first step. `tol` is the accuracy asked for, in posterior sds."""

    @abc.abstractmethod
    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: PyTree,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, PyTree, Info]:
        """One step: the target (learnable leaves may move), the new q and state, and its Info."""

    @abc.abstractmethod
    def done(self, state: PyTree) -> Result | None:
        """How the run has ended, or None to go on; called on the host between blocks."""

    def finish(self, target: AbstractTarget, q: AbstractFamily, state: PyTree) -> AbstractFamily:
        """The q to return (an average of iterates, say); by default the last one."""
        return q


def check_elbo(
    solver: AbstractSolver, objective: AbstractObjective | None, instead: str = "leave it out"
) -> None:
    """Refuse every objective but the ELBO (PairingError); `instead`: what to do, in words."""
    if objective is None or not objective.is_elbo:
        raise PairingError(
            f"{type(solver).__name__} maximises the ELBO and nothing else, got"
            f" {type(objective).__name__}; {instead}."
        )


def check_no_objective(
    solver: AbstractSolver,
    objective: AbstractObjective | None,
    does: str,
    instead: str = "leave it out",
) -> None:
    """Refuse any objective (PairingError).

    Arguments:
        solver: that has an aim of its own.
        objective: that was asked for.
        does: what the solver does, in words.
        instead: what to do, in words.
    """
    if objective is not None:
        raise PairingError(
            f"{type(solver).__name__} {does} and takes no objective, got"
            f" {type(objective).__name__}; {instead}."
        )


def check_full_rank(
    solver: AbstractSolver,
    q: AbstractFamily,
    instead: str = "pass q=tb.families.Gaussian.full(dim), or no q",
) -> None:
    """Refuse all but a full-rank Gaussian (PairingError); `instead`: what to do, in words."""
    if q.covariance_structure != "full":
        raise PairingError(f"{type(solver).__name__} returns a full-rank Gaussian; {instead}.")


def check_gaussian_start(
    solver: AbstractSolver,
    target: AbstractTarget,
    q: AbstractFamily,
    objective: AbstractObjective | None,
) -> None:
    """Refuse what solvers that refit a Gaussian at knots cannot start from.

    Raises:
        PairingError: q is no full-rank Gaussian, or an objective is given.
    """
    require(solver, target, Density)
    name = type(solver).__name__
    if q.covariance_structure != "full":
        raise PairingError(
            f"{name} starts from a full-rank Gaussian, not {type(q).__name__}; fit one first: "
            f"tb.fit(target, gaussian_fit.q, solver=tb.solvers.{name}())."
        )
    if objective is not None:
        raise PairingError(
            f"{name} maximises the ELBO at each knot and takes no other objective; leave"
            " `objective` out."
        )
