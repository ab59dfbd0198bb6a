"""The climb that `fit(target)` makes until the certificate passes, or says that it does not.

The start is rung 0 and the Gaussian (or what the recipe begins with) the first. Above them, in this
order: a Student-t where the weights show heavy tails and nothing else; a Gaussian nested on the
coordinate, or the two, that explain what it misses; other starts; a warped Gaussian or a t; where
the searches of the certificate find optima that q misses, a mixture over them. A rung replaces the
one below only for a significant gain in the ELBO on fresh draws.
"""

import dataclasses
import functools
from typing import TypedDict

import numpy as np
from jax.typing import DTypeLike

from .._numerics import key_words, to_device, to_host
from .._types import Key
from ..account import CERTIFICATE, START, Account, Budget, BudgetSpent, Stage
from ..certify.certificate import Certificate, certify, check, look_closer
from ..certify.climbed import Climbed
from ..certify.finding import Verdict
from ..families.base import AbstractFamily
from ..loop import Progress, Run, Trace, run
from ..objectives.base import AbstractObjective
from ..results import PairingError, Result
from ..solvers.base import AbstractSolver
from ..solvers.stochastic import StochasticGradient
from ..targets.base import AbstractTarget, Conjugate, Density
from . import policy
from .attempt import Attempt, Beginning, Climber, Recipe, RunSolver, reserve_of
from .rungs.factors import factor_solver
from .rungs.mixture import mixture
from .rungs.nested import nested
from .rungs.restart import restart
from .rungs.start import cut_short
from .rungs.student import student
from .rungs.warped import warped

# A run that may use nothing: it is stopped before its first step, and returns its start.
_NOTHING = Budget(1e-9, 1)
_INTERRUPTED = "interrupted during the climb"


class LoopOptions(TypedDict):
    """What goes to `loop.run` as it is."""

    key: Key
    tol: float
    max_steps: int | None
    progress: Progress | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a recipe.

    Attributes:
        run: the one that was kept, with the trace of all.
        rung: where on the ladder it stands, and why the climb stopped there.
        certificate: of its q; None where the caller chose the search.
    """

    run: Run
    rung: str
    certificate: Certificate | None = None


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The caller's choices, and the recipe for the rest."""

    recipe: Recipe
    q: AbstractFamily | None
    objective: AbstractObjective | None
    solver: AbstractSolver | None
    dtype: DTypeLike | None

    @property
    def climbs(self) -> bool:
        """Whether the search was left to the recipe: then it goes on to ladder and certificate."""
        return self.solver is None and self.objective is None

    def begun(self, target: AbstractTarget, key: Key, starts: int | None) -> Beginning:
        """The start, with the caller's choices in the place of the recipe's."""
        own = self.q
        if self.solver is not None and own is None:
            own = self.solver.own_start(target, key, starts)
        if self.solver is not None and own is not None:
            return self.completed(target, Beginning(own, self.solver))
        return self.completed(target, self.recipe.begin(target, key, starts))

    def completed(self, target: AbstractTarget, beginning: Beginning) -> Beginning:
        """A beginning with the caller's solver, or with one that serves the objective."""
        q, solver = beginning.q, beginning.solver if self.solver is None else self.solver
        if self.solver is None and self.objective is not None:
            solver = solver if _serves(solver, target, q, self.objective) else StochasticGradient()
        if self.dtype is not None:
            q = to_host(to_device(q, np.dtype(self.dtype)))
        return dataclasses.replace(beginning, q=q, solver=solver)

    def goal(self, solver: AbstractSolver) -> AbstractObjective | None:
        """What a run of the first solver is to reach."""
        return self.objective if self.objective is not None else solver.default_objective()


def carry_out(
    chosen: Chosen,
    target: AbstractTarget,
    account: Account,
    *,
    starts: int | None,
    loop: LoopOptions,
) -> Outcome:
    """Start, first run, and where the search was left to the recipe ladder and certificate.

    Everything is charged to `account`, whose budget ends what it does not cover; Ctrl-C ends the
    stage that it falls into. What was found by then is returned; only where the start
    has found nothing before it ends, as a simulator's, Ctrl-C is raised. Call inside `x64()`.
    """
    reserve = reserve_of(account.budget) if chosen.climbs else 0.0
    beginning, ended = _begun(chosen, target, account, loop["key"], starts, reserve)
    beginning.solver.check(target, beginning.q, chosen.goal(beginning.solver))
    if ended is Result.interrupted:
        q = to_host(beginning.q)
        return Outcome(Run(q, target, ended, 0, Trace.empty(), 0.0), "interrupted at the start")

    def run_solver(q: AbstractFamily, solver: AbstractSolver, left: Budget) -> Run:
        # What the caller asked for is for the first solver; those of the rungs have their own goal.
        goal = chosen.goal(solver) if solver is beginning.solver else solver.default_objective()
        return run(target, q, goal, solver, budget=left, **loop)

    with account.stage(type(beginning.q).__name__, reserve=reserve):
        left = account.left(reserve) or _NOTHING
        first = run_solver(beginning.q, beginning.solver, left)
    if not chosen.climbs:
        return Outcome(first, "chosen by the caller")
    if first.result is Result.interrupted:
        return Outcome(first, _INTERRUPTED)
    if not first.result.usable:
        return Outcome(first, "the first run found no q to climb from")
    seed = int(np.random.SeedSequence(list(key_words(loop["key"]))).generate_state(1)[0])
    try:
        return _certified(first, beginning, chosen.recipe, run_solver, account, seed)
    except KeyboardInterrupt:  # Before any rung had ended: those that did are kept by `climb`.
        return Outcome(dataclasses.replace(first, result=Result.interrupted), _INTERRUPTED)


def _begun(
    chosen: Chosen,
    target: AbstractTarget,
    account: Account,
    key: Key,
    starts: int | None,
    reserve: float,
) -> tuple[Beginning, Result | None]:
    """Where the start ended; with a result where the budget or the user cut it short.

    What is left of it then is the best point that it saw, or of factors their first values.
    """
    try:
        with account.stage(START, reserve=reserve):
            return chosen.begun(target, key, starts), None
    except (BudgetSpent, KeyboardInterrupt) as cut:
        ended = Result.budget if isinstance(cut, BudgetSpent) else Result.interrupted
        if isinstance(target, Conjugate) and chosen.climbs:
            first = target.start(key)
            left = Beginning(first, factor_solver(target, first))
        elif isinstance(target, Density):
            left = cut_short(target, account.best)
        else:
            raise
        return chosen.completed(target, left), ended


def _certified(
    first: Run,
    beginning: Beginning,
    recipe: Recipe,
    run_solver: RunSolver,
    account: Account,
    seed: int,
) -> Outcome:
    """The end of the ladder, with its certificate."""

    def run_or_stop(q: AbstractFamily, solver: AbstractSolver, left: Budget) -> Run:
        ran = run_solver(q, solver, left)
        if ran.result is Result.interrupted:  # one Ctrl-C ends the climb, not only its rung
            raise KeyboardInterrupt
        return ran

    if recipe.settled:
        names = {"solver": type(beginning.solver).__name__, "family": type(first.q).__name__}
        with account.stage(CERTIFICATE, binds=False):
            certificate = check(first, key=seed, allowance=account.allowance)
        return Outcome(first, recipe.settled.format(**names), certificate)
    ladder = climb if recipe.ladder is None else recipe.ladder
    end = ladder(first, beginning, run_or_stop, key=seed, account=account)
    ran = dataclasses.replace(end.run, trace=end.trace)
    if end.certificate is None:
        return Outcome(ran, end.why)
    rung = f"{end.why} ({recipe.note})" if recipe.note else end.why
    try:
        with account.stage(CERTIFICATE, binds=False):
            certificate = look_closer(end.run, end.certificate, seed, allowance=account.allowance)
    except KeyboardInterrupt:
        return Outcome(dataclasses.replace(ran, result=Result.interrupted), _INTERRUPTED)
    if "proper" in certificate:
        ran = dataclasses.replace(ran, result=Result.unbounded)
    return Outcome(ran, rung, certificate)


def _serves(
    solver: AbstractSolver, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective
) -> bool:
    try:
        solver.check(target, q, objective)
    except PairingError:
        return False
    return True


def climb(
    first: Run, beginning: Beginning, run_solver: RunSolver, *, key: int, account: Account
) -> Climbed:
    """Judge the first run, climb while it does not pass and the budget lasts, certify what is kept.

    Arguments:
        first: the run of the recipe's solver.
        beginning: what its start found; a `rival` is kept where its ELBO is significantly better.
        run_solver: runs a solver on the same target.
        key: of draws and checks.
        account: of the fit.
    """
    again = functools.partial(nested, again=True)
    climber = Climber(run_solver, key, account, again, beginning.others, [first.trace])
    try:
        attempt = _fitted(first, beginning, climber)
        attempt, certificate = _mixed(attempt, climber)
    except KeyboardInterrupt:
        run = first if climber.kept is None else climber.kept.run
        stopped = dataclasses.replace(run, result=Result.interrupted)
        return Climbed(stopped, None, _INTERRUPTED, climber.trace())
    return Climbed(attempt.run, certificate, _why(attempt, certificate, climber), climber.trace())


def _fitted(first: Run, beginning: Beginning, climber: Climber) -> Attempt:
    """The best attempt of the rungs that need no certificate: one family for one optimum."""
    attempt = climber.kept = climber.attempted(type(first.q).__name__, first)
    # A budget that the first draws have used up leaves none for those of another family.
    if beginning.rival is not None and climber.left() is not None:
        rival = dataclasses.replace(first, q=beginning.rival)
        judged = climber.attempted(type(beginning.rival).__name__, rival)
        attempt = climber.kept = climber.better_of(attempt, judged)
    # No family fits an improper posterior, though some look as if they did.
    if first.result is Result.unbounded:
        return attempt
    # A t is tried even where all passes: in a few thousand draws its tails can look Gaussian.
    attempt = climber.kept = student(attempt, climber)
    for rung in (nested, restart, warped):
        if attempt.settled:
            break
        attempt = climber.kept = rung(attempt, climber)
    return attempt


def _mixed(attempt: Attempt, climber: Climber) -> tuple[Attempt, Certificate]:
    """The attempt with the rivals that its certificate finds, and the certificate of the last."""
    for _ in range(policy.MOST_MIXTURES):
        attempt = climber.kept = climber.extended(attempt)
        certificate = _certificate(attempt, climber)
        if not certificate.rivals:
            return attempt, certificate
        # Searches that lead to another rung are part of the climb, and no longer of a certificate:
        # booked before the rung runs, whose share of the patience depends on it.
        used = Stage(certificate.evaluations, certificate.seconds) + -attempt.judging
        climber.account.transfer(used, to="Mixture")
        mixed = mixture(attempt, certificate, climber)
        if mixed is attempt:
            climber.account.transfer(-used, to="Mixture")
            return attempt, certificate
        attempt = climber.kept = mixed
    attempt = climber.extended(attempt)
    return attempt, _certificate(attempt, climber)


def _certificate(attempt: Attempt, climber: Climber) -> Certificate:
    used, seconds = int(attempt.judging.evaluations), attempt.judging.seconds
    with climber.account.stage(CERTIFICATE, binds=False):
        return certify(
            attempt.run.q,
            attempt.sample,
            attempt.found,
            key=climber.key,
            seconds=seconds,
            used=used,
            allowance=climber.account.allowance,
        )


def _why(attempt: Attempt, certificate: Certificate, climber: Climber) -> str:
    if certificate.verdict is Verdict.PASS:
        return f"{attempt.name}: the certificate passes."
    searched = certificate.get("optima")
    if attempt.settled and searched is not None and searched.verdict is Verdict.PASS:
        return f"{attempt.name}: q fits; no richer family would settle what the certificate doubts."
    if climber.left() is None:
        return f"{attempt.name}: the budget is spent; a larger `budget` climbs further."
    return f"{attempt.name}: the last rung; no richer family gained ELBO beyond its error."
