"""The battery of solvers."""

from collections.abc import Callable
from typing import Protocol, TypeAlias, cast

import numpy as np
from jaxtyping import Float

from .._numerics import scoped
from .._types import Array, Key
from ..account import Budget
from ..families.base import AbstractFamily
from ..loop import Run, run
from ..objectives.base import AbstractObjective
from ..solvers.base import AbstractSolver
from ..targets.base import AbstractTarget


class _Moments(Protocol):
    """A family that knows its means and sds."""

    @property
    def mean(self) -> Float[Array, "dim"]: ...

    @property
    def sd(self) -> Float[Array, "dim"]: ...


MeansAndSds: TypeAlias = tuple[Float[Array, "dim"], Float[Array, "dim"]]
"""Means and sds."""


@scoped
def check_solver(
    solver: AbstractSolver,
    target: AbstractTarget,
    q: AbstractFamily,
    *,
    mean: Float[Array, "dim"],
    sd: Float[Array, "dim"],
    objective: AbstractObjective | None = None,
    key: Key = 0,
    tol: float = 0.02,
    max_steps: int | None = None,
    monotone: bool = False,
    moments: Callable[[Run], MeansAndSds] | None = None,
    error: Callable[[Run], tuple[float, float]] | None = None,
) -> Run:
    """The solver ends well by itself, at the known best member.

    Arguments:
        solver: to be tested.
        target: with a known best member.
        q: where it starts.
        mean: of the best member; it must be met to within `tol` sds.
        sd: of the best member; they must be met to within `tol` of themselves.
        objective: None is the solver's own.
        key: of the run.
        tol: accuracy asked for, and required.
        max_steps: of the run.
        monotone: whether the loss may not rise from step to step, except by rounding.
        moments: means and sds of what the run ended at (or of what it learnt), for families that do
            not know them; by default those of its q.
        error: what is required in the place of `tol`, of a solver with an error of its own: of the
            means in sds, and of the sds relative to themselves. Of draws, four standard errors.

    Returns:
        The run, for what else there is to test.
    """
    name = type(solver).__name__
    objective = solver.default_objective() if objective is None else objective
    solver.check(target, q, objective)
    ran = run(target, q, objective, solver, key=key, tol=tol, budget=Budget(), max_steps=max_steps)
    assert ran.result.ok, f"{name} ended after {ran.steps} steps with: {ran.result}"
    if moments is None:
        ended = cast(_Moments, ran.q)  # the caller knows the means and sds of its best member
        found_mean, found_sd = ended.mean, ended.sd
    else:
        found_mean, found_sd = moments(ran)
    most, most_of_sd = (tol, tol) if error is None else error(ran)
    off = np.abs(found_mean - mean) / sd
    assert off.max() <= most, (
        f"{name}: coordinate {off.argmax()} of the mean is {off.max():.3f} sds off; {most:.2g} are"
        " allowed."
    )
    ratio = np.abs(found_sd / sd - 1)
    assert ratio.max() <= most_of_sd, (
        f"{name}: sd {ratio.argmax()} is off by {100 * ratio.max():.1f} %; {100 * most_of_sd:.2g} %"
        " are allowed."
    )
    # Relative to the loss: near the optimum its last digits are rounding.
    if monotone:
        rises = np.diff(ran.trace.loss) - 1e-9 * np.abs(ran.trace.loss[1:])
        assert rises.size == 0 or rises.max() <= 0, (
            f"{name} is monotone, but its loss rises by {rises.max():.2g} in a step."
        )
    return ran
