"""The battery of solvers."""

from typing import Any

import numpy as np

from .._numerics import scoped
from .._types import Budget
from ..loop import Run, run
from ..objectives.base import AbstractObjective


@scoped
def check_solver(
    solver: Any,
    target: Any,
    q: Any,
    *,
    mean: np.ndarray,
    sd: np.ndarray,
    objective: AbstractObjective | None = None,
    key: Any = 0,
    tol: float = 0.02,
    max_steps: int | None = None,
    monotone: bool = False,
) -> Run:
    """The solver ends well by itself, at the known best member: mean within `tol` sds, sds within
    `tol` of themselves.

    `monotone`: the loss may not rise from step to step, except by rounding. Returns the run, for
    what else there is to test.
    """
    name = type(solver).__name__
    objective = solver.default_objective() if objective is None else objective
    solver.check(target, q, objective)
    ran = run(target, q, objective, solver, key=key, tol=tol, budget=Budget(), max_steps=max_steps)
    assert ran.result.ok, f"{name} ended after {ran.steps} steps with: {ran.result}"
    off = np.abs(ran.q.mean - mean) / sd
    assert off.max() <= tol, (
        f"{name}: coordinate {off.argmax()} of the mean is {off.max():.3f} sds off; {tol} are"
        " allowed."
    )
    ratio = np.abs(ran.q.sd / sd - 1)
    assert ratio.max() <= tol, (
        f"{name}: sd {ratio.argmax()} is off by {100 * ratio.max():.1f} %; {100 * tol:.0f} % are"
        " allowed."
    )
    if monotone:
        rises = np.diff(ran.trace.loss) - 1e-9 * np.abs(ran.trace.loss[1:])
        assert rises.size == 0 or rises.max() <= 0, (
            f"{name} is monotone, but its loss rises by {rises.max():.2g} in a step."
        )
    return ran
