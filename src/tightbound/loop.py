"""The one loop, for every solver.

Blocks of steps, finite guard, stopping, trace, progress, budget and interruption.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import numpy as np

from ._numerics import as_key, to_device, to_host
from ._types import Budget
from .objectives.base import AbstractObjective
from .results import Result
from .solvers.base import AbstractSolver, Info

_BLOCK = 200  # compiled steps between two looks at the clock, the budget and the stopping rule
_DEFAULT_MAX_STEPS = {True: 100_000, False: 1_000}

Progress = Callable[[int, float, str], None]


@dataclasses.dataclass(frozen=True)
class Trace:
    """One entry per step.

    `loss` in nats (smaller is better), `change` of q, `evaluations` used so far.
    """

    loss: np.ndarray
    change: np.ndarray
    evaluations: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop hands back.

    The approximation, the (possibly learnt) target, how it ended, and the way there.
    """

    q: Any
    target: Any
    result: Result
    steps: int
    trace: Trace
    seconds: float


class _Log:
    """Infos as they come, and what the user sees of them."""

    def __init__(self, progress: Progress | None):
        self.infos: list[Info] = []
        self.steps = 0
        self.evaluations = 0.0
        self.progress = progress

    def add(self, info: Info) -> None:
        loss, change, used = (
            np.atleast_1d(np.asarray(v, np.float64))
            for v in (info.loss, info.change, info.evaluations)
        )
        self.infos.append(Info(loss, change, used))
        self.steps += len(loss)
        self.evaluations += float(used.sum())
        if self.progress is not None:
            self.progress(self.steps, float(loss[-1]), f"{self.evaluations:,.0f} gradients")

    def trace(self) -> Trace:
        if not self.infos:
            return Trace(np.empty(0), np.empty(0), np.empty(0))
        columns = [
            np.concatenate([getattr(i, name) for i in self.infos])
            for name in ("loss", "change", "evaluations")
        ]
        return Trace(columns[0], columns[1], np.cumsum(columns[2]))


def run(
    target: Any,
    q: Any,
    objective: AbstractObjective | None,
    solver: AbstractSolver,
    *,
    key: Any,
    tol: float,
    budget: Budget,
    max_steps: int | None,
    progress: Progress | None = None,
) -> Run:
    """Move q until the solver is done, the budget is spent, or the user presses Ctrl-C.

    Call inside `x64()`.

    The last state whose q is finite is what comes back, whatever happens after it.
    """
    started = time.perf_counter()
    log = _Log(progress)
    most = _DEFAULT_MAX_STEPS[solver.compiled] if max_steps is None else max_steps
    advance = (
        _compiled_blocks(objective, solver, key)
        if solver.compiled
        else _host_steps(objective, solver, key)
    )
    dtype, given = q.dtype, target
    state, result, good = None, None, (target, q)
    try:
        if solver.compiled:
            target, q = to_device(target, dtype), to_device(q, dtype)
        state = solver.init(target, q, objective, as_key(key) if solver.compiled else key, tol)
        good = (target, q)
        while result is None:
            result = solver.done(state) or _spent(log, budget, started, most)
            if result is not None:
                break
            target, q, state, info = advance(target, q, state, min(_BLOCK, most - log.steps))
            log.add(info)
            if is_finite(q):
                good = (target, q)
            elif not solver.compiled:
                result = Result.nonfinite
    except KeyboardInterrupt:
        result = Result.interrupted
    except np.linalg.LinAlgError:  # NumPy's algebra on a matrix that holds NaN, or is singular
        result = Result.nonfinite
    target, q = good
    if state is not None and is_finite(q):
        finished = solver.finish(target, q, state)
        q = finished if is_finite(finished) else q
    assert result is not None
    return Run(
        to_host(q),
        _unless_learnt(given, target),
        result,
        log.steps,
        log.trace(),
        time.perf_counter() - started,
    )


def _unless_learnt(given: Any, target: Any) -> Any:
    """The very target that was given, where the run moved none of its leaves.

    What is compiled for it is found again.
    """
    if target is given:
        return given
    pairs = zip(jax.tree.leaves(given), jax.tree.leaves(target), strict=True)
    same = all(
        a is b or np.array_equal(np.asarray(a, b.dtype), b, equal_nan=True)
        for a, b in pairs
        if eqx.is_array(b)
    )
    return given if same else to_host(target)


def _spent(log: _Log, budget: Budget, started: float, most: int) -> Result | None:
    if budget.seconds is not None and time.perf_counter() - started >= budget.seconds:
        return Result.budget
    if budget.evaluations is not None and log.evaluations >= budget.evaluations:
        return Result.budget
    return Result.max_steps if log.steps >= most else None


def _host_steps(objective: Any, solver: Any, key: Any) -> Callable:
    def advance(target, q, state, _):
        return solver.step(target, q, objective, state, key)

    return advance


def _compiled_blocks(objective: Any, solver: Any, key: Any) -> Callable:
    """A block of steps in one compiled scan.

    The last block is cut short step by step only when `max_steps` asks for it.
    """
    position = 0

    def advance(target, q, state, steps):
        nonlocal position
        target, q, state, info = _scan(
            target,
            q,
            objective,
            solver,
            state,
            as_key(key),
            jax.numpy.asarray(position),
            jax.numpy.asarray(steps),
        )
        position += steps
        return target, q, state, jax.tree.map(lambda leaf: np.asarray(leaf)[:steps], info)

    return advance


@eqx.filter_jit
def _scan(target, q, objective, solver, state, key, position, steps):
    """`steps` of at most _BLOCK steps.

    The rest of the block leaves everything as it is, so one program serves all.
    """
    dynamic, static = eqx.partition((target, q, state), eqx.is_array)

    def take(dynamic, i):
        target, q, state = eqx.combine(dynamic, static)
        target, q, state, info = solver.step(
            target, q, objective, state, jr.fold_in(key, position + i)
        )
        return eqx.filter((target, q, state), eqx.is_array), info

    def skip(dynamic, i):
        shapes = eqx.filter_eval_shape(take, dynamic, i)[1]
        return dynamic, jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), shapes)

    def body(dynamic, i):
        return jax.lax.cond(i < steps, take, skip, dynamic, i)

    dynamic, info = jax.lax.scan(body, dynamic, jax.numpy.arange(_BLOCK))
    return *eqx.combine(dynamic, static), info


def is_finite(q: Any) -> bool:
    """Whether every number of q is finite."""
    leaves = jax.tree.leaves(eqx.filter(q, eqx.is_inexact_array_like))
    return all(bool(np.all(np.isfinite(np.asarray(leaf)))) for leaf in leaves)
