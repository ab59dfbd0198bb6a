"""The one loop, for every solver.

Blocks of steps, finite guard, stopping, trace, progress, budget and interruption.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Float, Int, PyTree

from ._numerics import as_key, to_device, to_host
from ._types import Key
from .account import Budget, BudgetSpent, open_account
from .families.base import AbstractFamily
from .objectives.base import AbstractObjective
from .results import Result
from .solvers.base import AbstractSolver, Info
from .targets.base import AbstractTarget

# Compiled steps between two looks at the clock, the budget and the stopping rule: a look costs
# about as much as one step of a small model.
_BLOCK = 200
# By whether the solver is compiled: a host solver takes few and large steps.
_DEFAULT_MAX_STEPS = {True: 100_000, False: 1_000}

Progress: TypeAlias = Callable[[int, float, str], None]
"""(steps so far, loss, note) -> nothing; shows it to the user."""

Moved: TypeAlias = tuple[AbstractTarget, AbstractFamily, PyTree, Info]
"""What a block of steps leaves: the target, q, the solver's state, and its Info."""

Advance: TypeAlias = Callable[[AbstractTarget, AbstractFamily, PyTree, int], Moved]
"""(target, q, state, number of steps) -> what they leave."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """One entry per step.

    `loss` in nats (smaller is better), `change` of q, `evaluations` used so far.
    """

    loss: Float[np.ndarray, "steps"]
    change: Float[np.ndarray, "steps"]
    evaluations: Float[np.ndarray, "steps"]

    @classmethod
    def empty(cls) -> "Trace":
        """Of a run that made no step."""
        return cls(np.empty(0), np.empty(0), np.empty(0))

    @classmethod
    def joined(cls, traces: "Sequence[Trace]") -> "Trace":
        """Of several runs, one after the other; evaluations count on."""
        before, counted = 0.0, []
        for trace in traces:
            counted.append(trace.evaluations + before)
            before += float(trace.evaluations[-1]) if len(trace.evaluations) else 0.0
        return cls(
            np.concatenate([trace.loss for trace in traces]),
            np.concatenate([trace.change for trace in traces]),
            np.concatenate(counted),
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop hands back: q, the target (learnt, perhaps), how it ended, and the trace."""

    q: AbstractFamily
    target: AbstractTarget
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

    def add(self, info: Info) -> float:
        """Keep an Info, of one step or stacked; the evaluations that it tells of."""
        loss, change, used = (
            np.atleast_1d(np.asarray(v, np.float64))
            for v in (info.loss, info.change, info.evaluations)
        )
        self.infos.append(Info(loss, change, used))
        self.steps += len(loss)
        self.evaluations += float(used.sum())
        if self.progress is not None:
            self.progress(self.steps, float(loss[-1]), f"{self.evaluations:,.0f} gradients")
        return float(used.sum())

    def affordable(self, budget: Budget) -> int:
        """Steps of a block that the budget covers, by what those so far took; at least one."""
        if budget.evaluations is None:
            return _BLOCK
        if not self.steps:  # what a step takes is not known yet
            return 1
        each = self.evaluations / self.steps
        return int(np.clip((budget.evaluations - self.evaluations) / max(each, 1e-9), 1, _BLOCK))

    def trace(self) -> Trace:
        if not self.infos:
            return Trace.empty()
        columns = [
            np.concatenate([np.asarray(getattr(i, name)) for i in self.infos])
            for name in ("loss", "change", "evaluations")
        ]
        return Trace(columns[0], columns[1], np.cumsum(columns[2]))


def run(
    target: AbstractTarget,
    q: AbstractFamily,
    objective: AbstractObjective | None,
    solver: AbstractSolver,
    *,
    key: Key,
    tol: float,
    budget: Budget,
    max_steps: int | None,
    progress: Progress | None = None,
) -> Run:
    """Move q until the solver is done, the budget is spent, or the user presses Ctrl-C.

    Call inside `x64()`. The last state whose q is finite is what comes back, whatever happens after
    it. The budget is looked at between steps here; the open account ends a step within, where it
    does not cover what the step asks for.
    """
    started = time.perf_counter()
    log = _Log(progress)
    most = _DEFAULT_MAX_STEPS[solver.compiled] if max_steps is None else max_steps
    make = _compiled_blocks if solver.compiled else _host_steps
    advance = make(objective, solver, key)
    dtype, given = q.dtype, target
    state, result, good = None, None, (target, q)
    try:
        if solver.compiled:
            target, q = to_device(target, dtype), to_device(q, dtype)
        own_key = as_key(key) if solver.compiled else key
        state = solver.init(target, q, objective, own_key, tol)
        good = (target, q)
        while result is None:
            result = solver.done(state) or _spent(log, budget, started, most)
            if result is not None:
                break
            steps = min(_BLOCK, most - log.steps, log.affordable(budget))
            target, q, state, info = advance(target, q, state, steps)
            used = log.add(info)
            if solver.compiled:
                _book(used)
            if is_finite(q):
                good = (target, q)
            elif not solver.compiled:
                result = Result.nonfinite
    except KeyboardInterrupt:
        result = Result.interrupted
    except BudgetSpent:
        result = Result.budget
    except np.linalg.LinAlgError:  # NumPy's algebra on a matrix that holds NaN, or is singular
        result = Result.nonfinite
    target, q = good
    if state is not None:
        q = _finished(solver, state, target, q)
    target = _given_if_unchanged(given, target)
    return Run(to_host(q), target, result, log.steps, log.trace(), time.perf_counter() - started)


def _finished(
    solver: AbstractSolver, state: PyTree, target: AbstractTarget, q: AbstractFamily
) -> AbstractFamily:
    """The q that the solver returns of its last good state, such as an average of iterates."""
    if not is_finite(q):
        return q
    try:
        finished = solver.finish(target, q, state)
    except BudgetSpent:  # what the last step left is an answer too
        return q
    return finished if is_finite(finished) else q


def _book(evaluations: float) -> None:
    """Tell the open account what a compiled block has used: its evaluator was not asked."""
    account = open_account()
    if account is not None:
        account.add(evaluations)


def _given_if_unchanged(given: AbstractTarget, target: AbstractTarget) -> AbstractTarget:
    """`given` itself where the run moved none of its leaves.

    Its compiled programs are then found again.
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


def _host_steps(objective: AbstractObjective | None, solver: AbstractSolver, key: Key) -> Advance:
    def advance(target: AbstractTarget, q: AbstractFamily, state: PyTree, _: int) -> Moved:
        return solver.step(target, q, objective, state, key)

    return advance


def _compiled_blocks(
    objective: AbstractObjective | None, solver: AbstractSolver, key: Key
) -> Advance:
    """A block of steps in one compiled scan.

    A block is cut short only where `max_steps` or the budget asks for it.
    """
    position = 0

    def advance(target: AbstractTarget, q: AbstractFamily, state: PyTree, steps: int) -> Moved:
        nonlocal position
        place, count = jax.numpy.asarray(position), jax.numpy.asarray(steps)
        target, q, state, info = _scan(
            target, q, objective, solver, state, as_key(key), place, count
        )
        position += steps
        return target, q, state, jax.tree.map(lambda leaf: np.asarray(leaf)[:steps], info)

    return advance


@eqx.filter_jit
def _scan(
    target: AbstractTarget,
    q: AbstractFamily,
    objective: AbstractObjective | None,
    solver: AbstractSolver,
    state: PyTree,
    key: jax.Array,
    position: Int[jax.Array, ""],
    steps: Int[jax.Array, ""],
) -> Moved:
    """`steps` of at most _BLOCK steps.

    The rest of the block leaves everything as it is, so that one program serves all lengths.
    """
    dynamic, static = eqx.partition((target, q, state), eqx.is_array)

    def take(dynamic: PyTree, i: Int[jax.Array, ""]) -> tuple[PyTree, Info]:
        target, q, state = eqx.combine(dynamic, static)
        target, q, state, info = solver.step(
            target, q, objective, state, jr.fold_in(key, position + i)
        )
        return eqx.filter((target, q, state), eqx.is_array), info

    def skip(dynamic: PyTree, i: Int[jax.Array, ""]) -> tuple[PyTree, Info]:
        shapes = eqx.filter_eval_shape(take, dynamic, i)[1]
        return dynamic, jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), shapes)

    def body(dynamic: PyTree, i: Int[jax.Array, ""]) -> tuple[PyTree, Info]:
        return jax.lax.cond(i < steps, take, skip, dynamic, i)

    dynamic, info = jax.lax.scan(body, dynamic, jax.numpy.arange(_BLOCK))
    return *eqx.combine(dynamic, static), info


def is_finite(q: AbstractFamily) -> bool:
    """Whether every number of q is finite."""
    leaves = jax.tree.leaves(eqx.filter(q, eqx.is_inexact_array_like))
    return all(bool(np.all(np.isfinite(np.asarray(leaf)))) for leaf in leaves)
