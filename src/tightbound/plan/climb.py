"""The ladder that `fit(target)` climbs until the certificate passes, or says plainly that it does
not.

Rungs: the Gaussian of `default.py`; a Student-t where its weights show heavy tails and nothing
else; a Gaussian nested on the coordinate, or the two, that explain what it misses; other starts; a
warped Gaussian or a Student-t; where the searches of the check find optima that q misses, a mixture
over them. A rung replaces the one below only for a significant gain in the ELBO on fresh draws.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .._types import Budget
from ..certify.certificate import certify, fresh_sample, judge, wants_more
from ..certify.draws import FreshDraws
from ..certify.finding import Certificate, Finding, Verdict
from ..certify.findings.coverage import misses
from ..families.gaussian import Gaussian
from ..families.mixture import Mixture
from ..families.student import StudentT
from ..families.warped import Warped
from ..loop import Run, Trace
from ..results import Result
from ..search.explained import Explained, explained
from ..solvers.base import AbstractSolver
from ..solvers.fixed_noise import FixedNoise
from ..solvers.natural import NaturalGradient
from ..solvers.nested import Nested
from ..solvers.nested_pair import NestedPair
from ..starts.paths import LocalGaussian
from ..starts.student import heavy_tailed_start
from ..targets.batched import batched

# gradients after which no further rung is tried, and that one rung may use, where no budget says
# else
_PATIENCE = 40_000
_TO_JUDGE = 10_000  # gradients that judging one more family takes, where its first draws do not do
_MAX_MIXTURES = 2
_MAX_RIVALS = 4
_APART = 4.0  # nats of log density (median) by which two components of a mixture differ
_MAX_RESTARTS = 2
_NESTED_COST = 100  # gradients per dimension, about
_SMALL = 8  # dimensions in which one coordinate costs next to nothing: either is tried first
_LARGE = 30  # dimensions above which two cost all the patience, and one is tried first
_PAIR_UP_TO = 64  # dimensions; above it the fits at some 60 knots cost more than they bring
_WELL_FITTED = 0.7  # share of effective draws from which on q is the posterior, up to details
# share of the variance of log weights that one or two coordinates explain, from which on to nest
# first
_PROMISING = 0.5
_HOPELESS = 0.2  # below it no nested family comes near
# by which two coordinates must explain more to be tried after one, or before it
_LITTLE_MORE, _MUCH_MORE = 0.05, 0.2
_NEARLY_EQUAL = 0.9
_LOST = 0.7  # k-hat of a Gaussian that may sit on the wrong optimum
_CHECK_STARTS = 32

_BENT: dict[str, Callable[[Gaussian], Any]] = {"Warped": Warped.around, "StudentT": StudentT.around}

RunSolver = Callable[[Any, AbstractSolver, Budget], Run]
"""(q, solver, what is left of the budget) -> Run on the target at hand."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A run, fresh draws from its q, and what the findings that need no search say of them."""

    name: str
    run: Run
    sample: FreshDraws
    found: tuple[Finding, ...]
    seconds: float
    used: int  # gradients that drawing and judging took
    gaussian: Any = None  # the full-rank Gaussian that richer families start from
    told: Explained | None = None  # which coordinates explain what that Gaussian misses

    @property
    def settled(self) -> bool:
        """Whether no rung above could do more.

        Long tails of a posterior that q fits are its own, pulls on q small.
        """
        doubts = {f.name for f in self.found if f.verdict is not Verdict.PASS}
        fits = self.sample.smoothed.ess > _WELL_FITTED * len(self.sample.z)
        return not doubts or (fits and doubts <= {"tails", "converged"})


@dataclasses.dataclass(frozen=True)
class Climb:
    """Where a climb ended: the run that was kept, its certificate, and why it stopped there."""

    run: Run
    certificate: Certificate
    why: str
    evaluations: int  # of the fit: all runs, and the draws that were only used to compare rungs
    trace: Trace


@dataclasses.dataclass
class _Spent:
    """What the climb has used so far, against the budget."""

    budget: Budget
    started: float
    evaluations: int = 0
    traces: list[Trace] = dataclasses.field(default_factory=list)

    def add(self, run: Run) -> None:
        shifted = dataclasses.replace(
            run.trace, evaluations=run.trace.evaluations + self.evaluations
        )
        self.traces.append(shifted)
        self.evaluations += int(run.trace.evaluations[-1]) if run.steps else 0

    def trace(self) -> Trace:
        """The traces of all runs, one after the other.

        Evaluations count on, those of comparisons in between included.
        """
        columns = ("loss", "change", "evaluations")
        return Trace(
            *(np.concatenate([getattr(trace, name) for trace in self.traces]) for name in columns)
        )

    def left(self) -> Budget | None:
        """What the next rung may use.

        None when nothing is left, or after 40,000 evaluations where no budget says else.
        """
        seconds, evaluations = self.budget.seconds, self.budget.evaluations
        seconds = None if seconds is None else seconds - (time.perf_counter() - self.started)
        evaluations = _PATIENCE if evaluations is None else evaluations - self.evaluations
        if self.budget.evaluations is None and self.evaluations >= _PATIENCE:
            return None
        if (seconds is not None and seconds <= 0) or evaluations <= 0:
            return None
        return Budget(seconds, evaluations)

    def has_room(self, evaluations: int) -> bool:
        """Whether a rung that takes about so many evaluations ends within the patience, where no
        budget says else.
        """
        return self.budget.evaluations is not None or self.evaluations + evaluations <= _PATIENCE

    def shared(self, left: Budget, room: int = 0) -> Budget:
        """For rungs that are a second thought.

        No more than is left of the patience, with room to be judged.
        """
        if self.budget.evaluations is not None:
            return left
        return dataclasses.replace(left, evaluations=max(_PATIENCE - self.evaluations - room, 1))


def climb(
    first: Run,
    others: tuple[LocalGaussian, ...],
    run_solver: RunSolver,
    *,
    key: Any,
    budget: Budget,
    started: float,
    rival: Any = None,
) -> Climb:
    """Judge the first run, climb while it does not pass and the budget lasts, and certify what was
    kept.

    `others`: local Gaussians at other ends of the start's searches, best first. `rival`: a member
    of another family that the start found, such as a mixture over known modes; kept where its ELBO
    is significantly better.
    """
    spent = _Spent(budget, started)
    spent.add(first)
    attempt = _attempt(type(first.q).__name__, first, key)
    if rival is not None:
        attempt = _better_of(
            attempt, _attempt(type(rival).__name__, dataclasses.replace(first, q=rival), key), spent
        )
    # no family fits an improper posterior, though some look as if they did
    if first.result is not Result.unbounded:
        attempt = _heavy_tailed(attempt, run_solver, key, spent)
        attempt = _nested(attempt, run_solver, key, spent)
        attempt = _restarted(attempt, others, run_solver, key, spent)
        attempt = _bent(attempt, run_solver, key, spent)
    for _ in range(_MAX_MIXTURES):
        attempt = _extended(attempt, key)
        certificate = _certificate(attempt, key)
        mixed = _mixed(attempt, certificate, run_solver, key, spent)
        if mixed is attempt:
            break
        attempt = mixed
    else:
        attempt = _extended(attempt, key)
        certificate = _certificate(attempt, key)
    return Climb(
        attempt.run,
        certificate,
        _why(attempt, certificate, spent),
        spent.evaluations,
        spent.trace(),
    )


def _attempt(name: str, run: Run, key: Any) -> Attempt:
    began, before = time.perf_counter(), batched(run.target).evaluations
    sample = fresh_sample(run, key, extend=False)
    found = judge(run.q, sample, key)
    used = batched(run.target).evaluations - before
    full = run.q.covariance_structure == "full" and run.result.usable
    attempt = Attempt(
        name, run, sample, found, time.perf_counter() - began, used, run.q if full else None
    )
    if attempt.settled:
        return attempt
    attempt = dataclasses.replace(attempt, told=_explained(attempt))
    # good weights, too few of them: more draws before a richer family, unless the next one has much
    # to gain
    promising = attempt.told is not None and attempt.told.both > _PROMISING
    return attempt if promising or sample.smoothed.khat >= _LOST else _extended(attempt, key)


def _explained(attempt: Attempt) -> Explained | None:
    """Which coordinates explain what a Gaussian attempt misses; None where its draws do not tell."""
    q, sample = attempt.gaussian, attempt.sample
    if q is None or attempt.run.q is not q or q.dim < 2 or not np.all(sample.finite):
        return None
    try:
        return explained(q, sample.z, sample.log_w, sample.scores, pairs=q.dim <= _PAIR_UP_TO)
    # q is so thin that its regression on one coordinate is lost in rounding
    except np.linalg.LinAlgError:
        return None


def _nested_rungs(gaussian: Gaussian, told: Explained | None) -> list[AbstractSolver]:
    """One coordinate, then two held together where they explain more of the log weights.

    None where neither explains much.

    Two come first in up to 30 dimensions where one explains little; in up to 8, each alone comes
    before both. In the plane both at once are a grid, which fits anything.
    """
    if gaussian.dim == 2:
        return [NestedPair(), Nested()]
    if told is None:
        return [Nested()]
    if told.both < _HOPELESS:
        return []
    one: list[AbstractSolver] = [Nested(told.first)]
    if told.second is None or told.both < told.one + _LITTLE_MORE:
        return one
    both = NestedPair((min(told.first, told.second), max(told.first, told.second)))
    at_once = (
        _SMALL < gaussian.dim <= _LARGE
        and told.one < _PROMISING
        and told.both > told.one + _MUCH_MORE
    )
    if gaussian.dim <= _SMALL:
        return [*one, Nested(told.second), both]
    return [both, *one] if at_once else [*one, both]


def _extended(attempt: Attempt, key: Any) -> Attempt:
    """The attempt judged on more draws, where few of the first ones are effective."""
    if not wants_more(attempt.sample):
        return attempt
    began, before = time.perf_counter(), batched(attempt.run.target).evaluations
    sample = fresh_sample(attempt.run, key)
    longer = len(sample.z) > len(attempt.sample.z)
    found = judge(attempt.run.q, sample, key) if longer else attempt.found
    used = attempt.used + batched(attempt.run.target).evaluations - before
    seconds = attempt.seconds + time.perf_counter() - began
    return dataclasses.replace(attempt, sample=sample, found=found, seconds=seconds, used=used)


def _restarted(
    attempt: Attempt,
    others: tuple[LocalGaussian, ...],
    run_solver: RunSolver,
    key: Any,
    spent: _Spent,
) -> Attempt:
    """The best of climbs from a few other starts, where the first looks lost.

    Its weights are beyond repair.
    """
    for other in others[:_MAX_RESTARTS]:
        left = spent.left()
        if attempt.sample.smoothed.khat <= _LOST or left is None:
            break
        run = run_solver(
            Gaussian.from_root(other.mean, other.root), NaturalGradient(), spent.shared(left)
        )
        spent.add(run)
        if run.result.usable:
            attempt = _better_of(
                attempt,
                _nested(_attempt("Gaussian", run, key), run_solver, key, spent, again=True),
                spent,
            )
    return attempt


def _heavy_tailed(attempt: Attempt, run_solver: RunSolver, key: Any, spent: _Spent) -> Attempt:
    """The Student-t rung, where the Gaussian's weights show heavy tails and nothing else."""
    left, gaussian, sample = spent.left(), attempt.gaussian, attempt.sample
    # a Gaussian with less can pass on a t by luck
    nearly_equal = sample.smoothed.ess > _NEARLY_EQUAL * len(sample.z)
    if (attempt.settled and nearly_equal) or left is None or gaussian is None:
        return attempt
    start = heavy_tailed_start(gaussian, sample.z, sample.log_w, sample.smoothed.weights)
    if start is None:
        return attempt
    return _tried(attempt, start, FixedNoise(), left, run_solver, key, spent)


def _nested(
    attempt: Attempt, run_solver: RunSolver, key: Any, spent: _Spent, *, again: bool = False
) -> Attempt:
    """The nested rung, where the one below does not pass and is a full-rank Gaussian.

    `again`: not the first Gaussian, so only where there is room.
    """
    gaussian = attempt.gaussian
    if gaussian is None:
        return attempt
    for i, solver in enumerate(_nested_rungs(gaussian, attempt.told)):
        left = spent.left()
        if (
            attempt.settled
            or left is None
            or ((i or again) and not spent.has_room(_NESTED_COST * gaussian.dim))
        ):
            break
        attempt = _tried(attempt, gaussian, solver, left, run_solver, key, spent)
    return attempt


def _bent(attempt: Attempt, run_solver: RunSolver, key: Any, spent: _Spent) -> Attempt:
    """The warped and the Student-t rung, each started from the Gaussian.

    Skewed coordinates, heavy tails.
    """
    for name, around in _BENT.items():
        left, gaussian = spent.left(), attempt.gaussian
        if attempt.settled or left is None or gaussian is None or not spent.has_room(_TO_JUDGE):
            break
        if name == attempt.name:  # a t that was found before
            continue
        attempt = _tried(
            attempt,
            around(gaussian),
            FixedNoise(),
            spent.shared(left, _TO_JUDGE),
            run_solver,
            key,
            spent,
        )
    return attempt


def _tried(
    attempt: Attempt,
    q: Any,
    solver: AbstractSolver,
    left: Budget,
    run_solver: RunSolver,
    key: Any,
    spent: _Spent,
) -> Attempt:
    """The better of the attempt and of what the solver makes of q, if that is another family than
    the Gaussian.
    """
    run = run_solver(q, solver, left)
    spent.add(run)
    if not run.result.usable or isinstance(run.q, Gaussian):
        return attempt
    new = dataclasses.replace(
        _attempt(type(run.q).__name__, run, key), gaussian=attempt.gaussian, told=attempt.told
    )
    return _better_of(attempt, new, spent)


def _better_of(old: Attempt, new: Attempt, spent: _Spent) -> Attempt:
    """The new attempt for a gain in the ELBO beyond two standard errors, unless the old one's draws
    show what it misses.
    """
    a, b = old.sample.elbo, new.sample.elbo
    gain = b.value - a.value
    error = (
        0.0
        if not np.isfinite(a.value)
        else 2.0 * float(np.hypot(np.nan_to_num(a.stderr), np.nan_to_num(b.stderr)))
    )
    better = np.isfinite(b.value) and gain > error and not misses(new.run.q, new.sample, old.sample)
    kept, dropped = (new, old) if better else (old, new)
    spent.evaluations += dropped.used
    return kept


def _certificate(attempt: Attempt, key: Any) -> Certificate:
    sample = attempt.sample
    how = {"key": key, "starts": _CHECK_STARTS, "seconds": attempt.seconds, "used": attempt.used}
    return certify(attempt.run.q, sample, attempt.found, **how)


def _mixed(
    attempt: Attempt, certificate: Certificate, run_solver: RunSolver, key: Any, spent: _Spent
) -> Attempt:
    """A mixture of q and of what is refitted at the rivals that the check found, weighted by their
    evidence.

    log evidence of a component is taken as its ELBO: exact where it matches its mode, and the
    importance weights of the certificate tell where it does not.
    """
    rivals = sorted(certificate["optima"].detail["rivals"], key=lambda rival: -rival[0])[
        :_MAX_RIVALS
    ]
    parts, logits = _components(attempt)
    spent.evaluations += certificate.evaluations if rivals else 0
    for _, mean, root in rivals:
        left = spent.left()
        if left is None:
            break
        run = run_solver(Gaussian.from_root(mean, root), NaturalGradient(), left)
        spent.add(run)
        if not run.result.usable:
            continue
        new = _attempt("Gaussian", run, key)
        # the other parts cover the rest
        if any(f.verdict is not Verdict.PASS for f in new.found if f.name != "coverage"):
            new = _nested(new, run_solver, key, spent, again=True)
        if all(_apart(new.run.q, q) for q in parts):
            spent.evaluations += new.used
            parts, logits = [*parts, new.run.q], [*logits, new.sample.elbo.value]
        else:
            attempt = _better_of(attempt, new, spent)  # it grew over both
            parts, logits = _components(attempt) if attempt is new else (parts, logits)
    if len(parts) == len(_components(attempt)[0]):
        return attempt
    mixture = dataclasses.replace(attempt.run, q=Mixture(parts, np.array(logits)))
    return _better_of(attempt, _attempt("Mixture", mixture, key), spent)


def _components(attempt: Attempt) -> tuple[list[Any], list[float]]:
    """The parts of q with their log evidence: of a mixture its components, of anything else itself."""
    q = attempt.run.q
    if isinstance(q, Mixture):
        return list(q.components), list(np.asarray(q.logits))
    return [q], [attempt.sample.elbo.value]


def _apart(new: Any, old: Any) -> bool:
    """Whether draws of `new` lie where `old` has next to no density, so that both belong in a
    mixture.
    """
    z, log_new = new.draw(200, 0)
    return float(np.median(log_new - old.log_prob_on_host(z))) > _APART


def _why(attempt: Attempt, certificate: Certificate, spent: _Spent) -> str:
    if certificate.verdict is Verdict.PASS:
        return f"{attempt.name}: the certificate passes."
    if attempt.settled and certificate["optima"].verdict is Verdict.PASS:
        return f"{attempt.name}: q fits; no richer family would settle what the certificate doubts."
    if spent.left() is None:
        return f"{attempt.name}: the budget is spent; a larger `budget` climbs further."
    return f"{attempt.name}: the last rung; no richer family gained ELBO beyond its error."
