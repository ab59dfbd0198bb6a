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
from ..targets.base import AbstractTarget, Density
from . import policy
from .attempt import Attempt, Beginning, Climber, Recipe, RunSolver, reserve_of
from .rungs.bent import bent
from .rungs.mixture import mixture
from .rungs.nested import nested
from .rungs.restart import restart
from .rungs.start import cut_short
from .rungs.student import student

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
        if self.solver is not None:
            own = self.q if self.q is not None else self.solver.own_start(target, key, starts)
            if own is not None:
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
    stage that it falls into. What was found by then is returned. Call inside `x64()`.
    """
    reserve = reserve_of(account.budget) if chosen.climbs else 0.0
    beginning, ended = _begun(chosen, target, account, loop["key"], starts, reserve)
    beginning.solver.check(target, beginning.q, chosen.goal(beginning.solver))

    def run_solver(q: AbstractFamily, solver: AbstractSolver, left: Budget) -> Run:
        goal = chosen.goal(solver) if solver is beginning.solver else solver.default_objective()
        return run(target, q, goal, solver, budget=left, **loop)

    if ended is Result.interrupted:
        nothing = Trace(np.empty(0), np.empty(0), np.empty(0))
        return Outcome(
            Run(to_host(beginning.q), target, ended, 0, nothing, 0.0), "interrupted at the start"
        )
    with account.stage(type(beginning.q).__name__, reserve=reserve):
        left = account.left(reserve) or _NOTHING
        first = run_solver(beginning.q, beginning.solver, left)
    usable = first.result.usable and first.result is not Result.interrupted
    if not (chosen.climbs and usable):
        return Outcome(first, "chosen by the caller")
    seed = int(np.random.SeedSequence(list(key_words(loop["key"]))).generate_state(1)[0])
    try:
        return _certified(first, beginning, chosen.recipe, run_solver, account, seed)
    except KeyboardInterrupt:
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

    What is left of it then is the best point that it saw.
    """
    try:
        with account.stage(START, reserve=reserve):
            return chosen.begun(target, key, starts), None
    except (BudgetSpent, KeyboardInterrupt) as cut:
        if not isinstance(target, Density):
            raise
        ended = Result.budget if isinstance(cut, BudgetSpent) else Result.interrupted
        return chosen.completed(target, cut_short(target, account.best)), ended


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
    with account.stage(CERTIFICATE, binds=False):
        certificate = look_closer(end.run, end.certificate, seed, allowance=account.allowance)
    result = Result.unbounded if "proper" in certificate else end.run.result
    ran = dataclasses.replace(end.run, result=result, trace=end.trace)
    rung = f"{end.why} ({recipe.note})" if recipe.note else end.why
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
    attempt = climber.attempted(type(first.q).__name__, first)
    if beginning.rival is not None:
        rival = dataclasses.replace(first, q=beginning.rival)
        attempt = climber.better_of(
            attempt, climber.attempted(type(beginning.rival).__name__, rival)
        )
    # No family fits an improper posterior, though some look as if they did.
    if first.result is not Result.unbounded:
        # A t is tried even where all passes: in a few thousand draws its tails can look Gaussian.
        attempt = student(attempt, climber)
        for rung in (nested, restart, bent):
            attempt = attempt if attempt.settled else rung(attempt, climber)
    attempt, certificate = _mixed(attempt, climber)
    return Climbed(attempt.run, certificate, _why(attempt, certificate, climber), climber.trace())


def _mixed(attempt: Attempt, climber: Climber) -> tuple[Attempt, Certificate]:
    """The attempt with the rivals that its certificate finds, and the certificate of the last."""
    for _ in range(policy.MOST_MIXTURES):
        attempt = climber.extended(attempt)
        certificate = _certificate(attempt, climber)
        if not certificate.rivals:
            return attempt, certificate
        # Searches that lead to another rung are part of the climb, and no longer of a certificate.
        used = Stage(certificate.evaluations, certificate.seconds) + -attempt.judging
        climber.account.transfer(used, to="Mixture")
        mixed = mixture(attempt, certificate, climber)
        if mixed is attempt:
            climber.account.transfer(-used, to="Mixture")
            return attempt, certificate
        attempt = mixed
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
