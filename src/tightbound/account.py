"""What a fit may use, and what it has used: one account of evaluations and seconds.

What a fit evaluates goes through one compiled evaluator for each target (`targets/batched.py`),
which charges the account that is open; blocks of compiled steps book what they used. So no part of
a fit has to know of budgets: where the budget of a stage is spent, the charge raises `BudgetSpent`,
which the owner of the stage turns into a result.

An evaluation is one value with its gradient; a value alone counts a third, a product with the
Hessian two, one on B of N rows B / N.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

import numpy as np
from jaxtyping import Float

from ._types import Validated

CERTIFICATE = "certificate"
START = "start"


@dataclasses.dataclass(frozen=True)
class Budget:
    """An upper bound on what a fit may use; reaching it is a result, not an error.

    Start, solvers, ladder and certificate share it. Evaluations are exceeded by a tenth, or by 512,
    at most: a certificate needs some draws, however small the budget. Of an amortised fit it binds
    the training only: the simulations of its certificate are neither counted nor limited. Sweeps of
    coordinate ascent and passes of annealing evaluate no log density and count 0 in `fit.spent`; a
    run of such a `solver` ends after `evaluations` of them.

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


_NO_LIMIT = Budget()


class BudgetSpent(Exception):
    """The budget of the open stage does not cover what was asked for; it never leaves a fit."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one stage of a fit has used.

    Attributes:
        evaluations: values of the log density with their gradients.
        seconds: wall-clock time.
    """

    evaluations: float | int = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Stage") -> "Stage":
        return Stage(self.evaluations + other.evaluations, self.seconds + other.seconds)

    def __neg__(self) -> "Stage":
        return Stage(-self.evaluations, -self.seconds)


@dataclasses.dataclass(frozen=True)
class Spent(Mapping[str, Stage]):
    """What a fit has used, by stage: the start, each rung that was tried, the certificate.

    `fit.spent["start"].seconds`; `print(fit.spent)` is a table.
    """

    stages: dict[str, Stage]

    def __getitem__(self, name: str) -> Stage:
        return self.stages[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    @property
    def total(self) -> Stage:
        """Of all stages together."""
        return sum(self.stages.values(), Stage())

    @property
    def without_certificate(self) -> Stage:
        """What finding q took."""
        return self.total + -self.stages.get(CERTIFICATE, Stage())

    def __str__(self) -> str:
        rows = [*self.stages.items(), ("total", self.total)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(
            f"{name:<{width}}  {used.evaluations:>12,.0f} evaluations  {used.seconds:>8.2f} s"
            for name, used in rows
        )


@dataclasses.dataclass(frozen=True)
class Best:
    """The best point that a start has evaluated, and its log density."""

    point: Float[np.ndarray, "dim"]
    value: float


class Account:
    """The account of one fit: what its budget leaves, and what each stage has used."""

    def __init__(self, budget: Budget | None = None):
        self.budget = _NO_LIMIT if budget is None else budget
        self.best: Best | None = None
        self._began = time.perf_counter()
        self._stages: dict[str, Stage] = {}
        self._open: list[str] = []
        self._since = self._began
        self._limit, self._deadline = math.inf, math.inf

    @contextlib.contextmanager
    def stage(self, name: str, *, reserve: float = 0.0, binds: bool = True) -> Iterator[None]:
        """Charge what is evaluated inside to `name`; a stage inside another takes over from it.

        Arguments:
            name: of the stage; entered again, it goes on.
            reserve: evaluations of the budget that the stage must leave.
            binds: whether the budget ends it at all (the least certificate is made in any case).
        """
        outer = self._limit, self._deadline
        self._limit, self._deadline = math.inf, math.inf
        if binds and self.budget.evaluations is not None:
            self._limit = self.budget.evaluations - reserve
        if binds and self.budget.seconds is not None:
            self._deadline = self._began + self.budget.seconds
        self._clock()
        self._open.append(name)
        token = _account.set(self)
        try:
            yield
        finally:
            _account.reset(token)
            self._clock()
            self._open.pop()
            self._limit, self._deadline = outer

    def charge(self, evaluations: float | int) -> None:
        """Called before an evaluation.

        Raises:
            BudgetSpent: the stage that is open may not use so many, or its time is over.
        """
        over = self.total.evaluations + evaluations > self._limit
        if over or time.perf_counter() > self._deadline:
            raise BudgetSpent
        self.add(evaluations)

    def add(self, evaluations: float | int) -> None:
        """Book what was used already, such as by a compiled block of steps."""
        self._book(self._open[-1], Stage(evaluations, 0.0))

    def saw(self, points: Float[np.ndarray, "n dim"], values: Float[np.ndarray, "n"]) -> None:
        """Keep the best point of the start: all that is left of it if it is cut short."""
        if self._open[-1] != START or not np.any(np.isfinite(values)):
            return
        i = int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))
        if self.best is None or values[i] > self.best.value:
            self.best = Best(np.array(points[i]), float(values[i]))

    def transfer(self, used: Stage, *, to: str) -> None:
        """Rebook part of the certificate: draws of a q that was judged, and not kept."""
        self._book(CERTIFICATE, -used)
        self._book(to, used)

    @property
    def total(self) -> Stage:
        """All that was used so far."""
        return sum(self._stages.values(), Stage())

    @property
    def climbed(self) -> float:
        """Evaluations of the rungs: neither of the start nor of the certificate."""
        apart = (START, CERTIFICATE)
        return sum(used.evaluations for name, used in self._stages.items() if name not in apart)

    @property
    def allowance(self) -> int | None:
        """Evaluations that the budget leaves, at least 0; None where it names no number."""
        if self.budget.seconds is not None and self._seconds_left() <= 0:
            return 0
        if self.budget.evaluations is None:
            return None
        return max(int(self.budget.evaluations - self.total.evaluations), 0)

    def left(self, reserve: float = 0.0) -> Budget | None:
        """The budget that is left but for a reserve; None where that is nothing."""
        seconds = None if self.budget.seconds is None else self._seconds_left()
        evaluations = self.budget.evaluations
        if evaluations is not None:
            evaluations = int(evaluations - reserve - self.total.evaluations)
        over = (seconds is not None and seconds <= 0) or (
            evaluations is not None and evaluations <= 0
        )
        return None if over else Budget(seconds, evaluations)

    @property
    def spent(self) -> Spent:
        """What each stage has used so far, for good."""
        self._clock()
        # What was rebooked to a stage and back again leaves a stage of nothing.
        return Spent({name: s for name, s in self._stages.items() if s.seconds > 1e-9})

    def _seconds_left(self) -> float:
        return (self.budget.seconds or 0.0) - (time.perf_counter() - self._began)

    def _clock(self) -> None:
        """Book the time since the last change of stage to the stage that is open."""
        now = time.perf_counter()
        if self._open:
            self._book(self._open[-1], Stage(0.0, now - self._since))
        self._since = now

    def _book(self, name: str, used: Stage) -> None:
        self._stages[name] = self._stages.get(name, Stage()) + used


_account: ContextVar[Account | None] = ContextVar("account", default=None)


def open_account() -> Account | None:
    """The account that evaluations are charged to now; None outside a fit."""
    return _account.get()


__all__ = [
    "CERTIFICATE",
    "START",
    "Account",
    "Best",
    "Budget",
    "BudgetSpent",
    "Spent",
    "Stage",
    "open_account",
]
