"""One rung's attempt: a run, what fresh draws say of its q, and how two attempts are compared."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias, cast, runtime_checkable

import numpy as np

from ..account import CERTIFICATE, Account, Budget, Stage
from ..certify.certificate import cost_of_findings, judge
from ..certify.climbed import Climbed
from ..certify.draws import FreshDraws, fresh_sample, wants_more
from ..certify.finding import About, Finding, Verdict
from ..certify.findings.coverage import misses
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..loop import Run, Trace
from ..search.conditionals import Explained, explained
from ..solvers.base import AbstractSolver
from ..starts.paths import LocalGaussian
from . import policy

RunSolver: TypeAlias = Callable[[AbstractFamily, AbstractSolver, Budget], Run]
"""(q, solver, what it may use) -> Run on the target at hand."""


@dataclasses.dataclass(frozen=True)
class Beginning:
    """Where rung 0, the start, has ended.

    Attributes:
        q: to start from.
        solver: to run from it.
        others: local Gaussians at other ends of the start's searches, best first.
        rival: a member of another family, such as a mixture over known modes, to be judged as well.
    """

    q: AbstractFamily
    solver: AbstractSolver
    others: tuple[LocalGaussian, ...] = ()
    rival: AbstractFamily | None = None


Begin: TypeAlias = Callable[..., Beginning]
"""(target, key, number of starts) -> where the climb begins."""


@runtime_checkable
class Ladder(Protocol):
    """What stands above the first run."""

    def __call__(
        self, first: Run, beginning: Beginning, run_solver: RunSolver, *, key: int, account: Account
    ) -> Climbed:
        """The run that was kept, with its certificate."""
        ...


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a target is fitted when nothing is chosen.

    Attributes:
        begin: finds the q to start from, and says which solver moves it.
        settled: why no ladder stands above, where none does; the fit is then certified as it is.
            `{solver}` and `{family}` in it are filled in.
        ladder: that stands above otherwise; None is the one of `climb.py`.
        note: on the start, for the user.
    """

    begin: Begin
    settled: str = ""
    ladder: Ladder | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A run, fresh draws from its q, and what the findings that need no search say of them.

    Attributes:
        name: of q's family.
        judging: what drawing and judging used.
        gaussian: the full-rank Gaussian that richer families start from.
        explained: which coordinates explain what that Gaussian misses.
    """

    name: str
    run: Run
    sample: FreshDraws
    found: tuple[Finding, ...]
    judging: Stage
    gaussian: Gaussian | None = None
    explained: Explained | None = None

    @property
    def settled(self) -> bool:
        """Whether no rung above could do more.

        Long tails of a posterior that q fits are its own, and pulls on q are small. What the budget
        left out is no reason to spend more.
        """
        doubts = {f.about for f in self.found if f.verdict is not Verdict.PASS}
        doubts -= {About.BUDGET}
        fits = self.sample.smoothed.ess > policy.WELL_FITTED * len(self.sample.z)
        return not doubts or (fits and doubts <= {About.TAILS, About.SEARCH})


@dataclasses.dataclass
class Climber:
    """What all rungs of one climb share: how a solver is run, the key, and the account.

    Attributes:
        run_solver: on the target at hand.
        key: of draws and checks.
        account: of the fit.
        others: local Gaussians at other ends of the start's searches, best first.
        nested: the nested rungs, which others climb as well from the Gaussians that they find:
            handed over, since a rung that imports another is one file more to follow.
        traces: of all runs so far.
        kept: the attempt that the last rung which ended has left.
    """

    run_solver: RunSolver
    key: int
    account: Account
    nested: "Callable[[Attempt, Climber], Attempt]"
    others: tuple[LocalGaussian, ...] = ()
    traces: list[Trace] = dataclasses.field(default_factory=list)
    kept: Attempt | None = None

    def left(self) -> Budget | None:
        """What the next rung may use; None when nothing is left, or the patience is at its end."""
        left = self.account.left(self.reserve)
        if left is None or self.account.budget.evaluations is not None:
            return left
        patience = policy.PATIENCE - self.account.climbed
        return None if patience <= 0 else dataclasses.replace(left, evaluations=policy.PATIENCE)

    @property
    def reserve(self) -> float:
        """Evaluations that rungs leave to the certificate, where there is a budget."""
        return reserve_of(self.account.budget)

    def has_room(self, evaluations: int) -> bool:
        """Whether a rung that takes about so many ends within the patience, if no budget binds."""
        if self.account.budget.evaluations is not None:
            return True
        return self.account.climbed + evaluations <= policy.PATIENCE

    def shared(self, left: Budget, room: int = 0) -> Budget:
        """For rungs that are a second thought: no more than is left of the patience.

        `room`: evaluations kept for judging what they find.
        """
        if self.account.budget.evaluations is not None:
            return left
        most = int(policy.PATIENCE - self.account.climbed) - room
        return dataclasses.replace(left, evaluations=max(most, 1))

    def run(self, name: str, q: AbstractFamily, solver: AbstractSolver, left: Budget) -> Run:
        """Run a solver from q, charged to the rung `name`."""
        with self.account.stage(name, reserve=self.reserve):
            run = self.run_solver(q, solver, left)
        self.traces.append(run.trace)
        return run

    def attempted(self, name: str, run: Run) -> Attempt:
        """The attempt that a run is: judged on fresh draws, and on more where these would help."""
        with self._judging() as judging:
            allowance = self.account.allowance
            reserve = 0 if allowance is None else cost_of_findings(run)
            sample = fresh_sample(run, self.key, extend=False, allowance=allowance, reserve=reserve)
            found = judge(run.q, sample, self.key, allowance=self.account.allowance)
        full = run.q.covariance_structure == "full" and run.result.usable
        # Only a Gaussian has a full covariance of its own.
        gaussian = cast(Gaussian, run.q) if full else None
        attempt = Attempt(name, run, sample, found, judging(), gaussian)
        if attempt.settled:
            return attempt
        attempt = dataclasses.replace(attempt, explained=_explained(attempt))
        # Good weights, too few of them: more draws come before a richer family, unless the next
        # one has much to gain.
        missed = attempt.explained
        promising = missed is not None and missed.both > policy.PROMISING
        lost = sample.smoothed.khat >= policy.LOST
        return attempt if promising or lost else self.extended(attempt)

    def extended(self, attempt: Attempt) -> Attempt:
        """The attempt judged on more draws, where few of the first ones are effective."""
        if not wants_more(attempt.sample):
            return attempt
        with self._judging() as judging:
            sample = fresh_sample(attempt.run, self.key, allowance=self.account.allowance)
            if len(sample.z) <= len(attempt.sample.z):  # a budget may not cover more
                return dataclasses.replace(attempt, judging=attempt.judging + judging())
            found = judge(attempt.run.q, sample, self.key, allowance=self.account.allowance)
        used = attempt.judging + judging()
        return dataclasses.replace(attempt, sample=sample, found=found, judging=used)

    def tried(
        self, attempt: Attempt, name: str, q: AbstractFamily, solver: AbstractSolver, left: Budget
    ) -> Attempt:
        """The better of the attempt and of what the solver makes of q.

        A solver that gives the Gaussian back has found nothing.
        """
        run = self.run(name, q, solver, left)
        if not run.result.usable or run.q.covariance_structure != "none":
            return attempt
        new = self.attempted(type(run.q).__name__, run)
        new = dataclasses.replace(new, gaussian=attempt.gaussian, explained=attempt.explained)
        return self.better_of(attempt, new)

    def better_of(self, old: Attempt, new: Attempt) -> Attempt:
        """The new attempt where its ELBO on fresh draws is significantly higher, else the old one.

        The old one, too, where its draws show mass that the new q misses.
        """
        a, b = old.sample.elbo, new.sample.elbo
        gain = b.value - a.value
        noise = float(np.hypot(np.nan_to_num(a.stderr), np.nan_to_num(b.stderr)))
        error = policy.SIGNIFICANT * noise if np.isfinite(a.value) else 0.0
        better = (
            np.isfinite(b.value) and gain > error and not misses(new.run.q, new.sample, old.sample)
        )
        kept, dropped = (new, old) if better else (old, new)
        self.drop(dropped)
        return kept

    def trace(self) -> Trace:
        """The traces of all runs, one after the other."""
        return Trace.joined(self.traces)

    def drop(self, attempt: Attempt) -> None:
        """Draws of a q that is not kept belong to its rung, and not to the certificate."""
        self.account.transfer(attempt.judging, to=attempt.name)

    @contextlib.contextmanager
    def _judging(self) -> Iterator[Callable[[], Stage]]:
        """Charge what is inside to the certificate; what is yielded tells how much it was."""
        before, began = self.account.total, time.perf_counter()
        with self.account.stage(CERTIFICATE, binds=False):
            yield lambda: Stage(
                self.account.total.evaluations - before.evaluations, time.perf_counter() - began
            )


def reserve_of(budget: Budget) -> float:
    """Evaluations of a budget that start and rungs leave to the certificate."""
    if budget.evaluations is None:
        return 0.0
    return float(min(policy.CERTIFICATE_SHARE * budget.evaluations, policy.CERTIFICATE_MOST))


def _explained(attempt: Attempt) -> Explained | None:
    """Which coordinates explain what a Gaussian misses; None where its draws do not tell."""
    q, sample = attempt.gaussian, attempt.sample
    if q is None or attempt.run.q is not q or q.dim < 2 or not np.all(sample.finite):
        return None
    pairs = q.dim <= policy.PAIR_UP_TO
    try:
        return explained(q, sample.z, sample.log_w, sample.scores, pairs=pairs)
    except np.linalg.LinAlgError:
        # q is so thin that its regression on one coordinate is lost in rounding.
        return None
