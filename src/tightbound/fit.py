"""START HERE. `fit(target, q, objective, solver)`.

Approximate this target, within this family, in this sense of closeness, by this search.

`fit(target)` alone chooses all three (`default.py`), runs the one loop (`loop.py`) and attaches the
certificate (`certify/`), which says how far off the answer is.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import datatree, report, storage, summary
from ._numerics import host_algebra, key_words, to_device, to_host, x64
from ._types import Budget, Estimate
from .amortised import posterior
from .certify.certificate import check, with_propriety
from .certify.finding import Certificate, Verdict
from .families.base import AbstractFamily
from .loop import Run, Trace, is_finite, run
from .objectives.base import AbstractObjective
from .objectives.classic import ELBO
from .plan.recipe import Plan, plan
from .progress import display
from .results import FitError, PairingError, Result, TargetError
from .solvers.base import AbstractSolver
from .solvers.stochastic import StochasticGradient
from .targets.base import AbstractTarget, Density
from .targets.batched import evaluations_of

_REFUSED = {"fail": (Verdict.FAIL,), "caution": (Verdict.FAIL, Verdict.CAUTION)}


@dataclasses.dataclass(frozen=True)
class Fit:
    """An approximation of a posterior, how it was found, and how far off it is.

    Attributes:
        q: the member of the family that was found; it lives on the unconstrained scale.
        target: what it approximates.
        result: how the run ended; `result.ok`, and `str(result)` is a sentence.
        steps: solver steps taken.
        trace: per step: loss (nats), change of q, evaluations so far.
        evaluations: gradients of the log density that the fit used; the certificate's are in
            `certificate.evaluations`.
        seconds: wall-clock time of the fit, without the certificate.
        key: the key it was run with; summaries and reports derive theirs from it.
        rung: where on the default's ladder it stands, and why it stopped there.
    """

    q: Any
    target: Any
    result: Result
    steps: int
    trace: Trace
    evaluations: int
    seconds: float
    key: tuple[int, ...]
    rung: str = "chosen by the caller"
    checked: Certificate | None = None

    @functools.cached_property
    def certificate(self) -> Certificate:
        """What is known of how far off `q` is.

        Attached by the default path, else computed now (`tb.check`).
        """
        return check(self, key=self.seed) if self.checked is None else self.checked

    @property
    def elbo(self) -> Estimate:
        """The evidence lower bound on fresh draws, in nats, with its standard error."""
        return self.certificate.elbo

    @property
    def seed(self) -> int:
        """The integer that summaries derive their keys from."""
        return int(np.random.SeedSequence(list(self.key)).generate_state(1)[0])

    def at(self, x: Any) -> Any:
        """The posterior of the data `x`, of an amortised fit: with `sample`, `log_prob`, `check`,
        `summary` and `report`.

        A batch of data sets, with one leading axis more than `simulate` returns, gives all of them
        at once.

        Raises:
            ValueError: x has another structure or shape than the simulations, or is not finite.
            PairingError: the fit is not amortised.
        """
        return posterior.at(self, x)

    def sample(
        self, key: Any, n: int = 1000, *, corrected: bool = False, replace: bool = True
    ) -> Any:
        """`n` draws of the user's named, constrained values (derived ones included): a pytree with
        leading axis n.

        `corrected=True` resamples with the smoothed importance weights where the certificate finds
        that they correct more than their own Monte Carlo error, and returns plain draws of q
        otherwise. `replace=False` resamples without replacement: no draw comes twice.
        """
        return summary.sample(self, key, n, corrected=corrected, replace=replace)

    def expect(self, function: Callable[[Any], Any], *, key: Any = None) -> Any:
        """Posterior mean and sd of any function of the named values, each with its Monte Carlo
        error (pandas.DataFrame).

        `function` takes the values of one draw and returns a pytree of numbers, such as `lambda p:
        {"odds": p["theta"] / (1 - p["theta"])}`; JAX traces it. From importance-weighted draws
        where the weights can be used, else from q's own (column `draws`); errors by the delta
        method. For q too far off for weights, see `tb.linear_response`.
        """
        return summary.expect(self, function, self.seed if key is None else key)

    def summary(self) -> Any:
        """A table (pandas.DataFrame).

        Mean, sd, 5 %, 50 % and 95 % of each value, and whether the row is corrected.
        """
        return summary.summary(self)

    def report(self, path: Any, *, title: str | None = None) -> Any:
        """Write one self-contained HTML page: verdict, findings, plots. Needs the `plots` extra.

        Returns the path.
        """
        return report.write(self, path, title=title)

    def to_datatree(self, n: int = 1000) -> Any:
        """An ArviZ DataTree.

        Posterior draws (chain, draw), the fit's trace and findings, observed data where known.
        """
        return datatree.to_datatree(self, n)

    def save(self, path: Any) -> Any:
        """Write q, the result and the certificate to one file (no pickle).

        Read it with `tb.load(path, target)`.
        """
        return storage.save(self, path)

    def __str__(self) -> str:
        lines = [
            f"{type(self.q).__name__} approximation of {type(self.target).__name__} ({self.q.dim}"
            " coordinates)"
        ]
        lines.append(
            f"{self.result} {self.steps} steps, {self.evaluations:,} gradients,"
            f" {self.seconds:.2f} s."
        )
        if self.checked is not None:
            lines.append(self.checked.explain())
        return "\n".join(lines)

    __repr__ = __str__


def fit(
    target: AbstractTarget,
    q: Any = None,
    objective: Any = None,
    solver: Any = None,
    *,
    key: Any = 0,
    tol: float = 0.02,
    budget: Budget | None = None,
    max_steps: int | None = None,
    starts: int | None = None,
    dtype: Any = None,
    progress: bool | None = None,
    throw: bool | str = True,
) -> Fit:
    """Approximate `target` and say how far off the approximation is.

    With `target` alone everything is chosen: a full-rank Gaussian (low rank above 300 dimensions),
    started along L-BFGS paths, fitted by natural gradient, certified. Give `q`, `objective` or
    `solver` to choose yourself; what you leave out is still chosen for you.

    Arguments:
        target: from tb.from_log_density, tb.from_rows, tb.from_numpyro, ...
        q: the member to start from, or an earlier `fit.q` to continue from it.
        objective: the measure of closeness, such as tb.objectives.ELBO(); None is the solver's own.
        solver: the search, such as tb.solvers.NaturalGradient().
        key: an int, a typed JAX key or a legacy one; the same key gives the same bits on the same
            machine.
        tol: accuracy asked of the means, in posterior standard deviations.
        budget: tb.Budget(seconds=, evaluations=).
        max_steps: most solver steps; reaching it is a result that says so.
        starts: number of L-BFGS paths the default starts from.
        dtype: "float64" (default), or "float32" for solvers that survive it (StochasticGradient).
        progress: True or False; None shows a display on long runs in a terminal.
        throw: True raises FitError when no usable approximation exists; False returns the Fit,
            whose `result` says so. For pipelines: "fail" raises FitError also when the
            certificate's verdict is "fail", "caution" when it is not "pass"; where you chose the
            solver the certificate is computed for it.

    Raises:
        TargetError: the log density is finite at no start (it names the parameter), or the target
            is not one.
        PairingError: target, q, objective and solver do not fit together; before anything is
            compiled.
        FitError: what `throw` refuses; `.fit` holds what there is.
        TypeError: `key` is of the wrong kind.
    """
    if not isinstance(throw, bool) and throw not in _REFUSED:
        raise ValueError(f'fit: `throw` must be True, False, "caution" or "fail", got {throw!r}.')
    _check_arguments(target, tol, max_steps, starts, dtype, budget)
    _check_parts(target, q, objective, solver)
    how = {"tol": tol, "max_steps": max_steps}
    with x64(), host_algebra(), display(progress, "tightbound", max_steps) as show:
        fitted = _search(
            target,
            q,
            objective,
            solver,
            key,
            starts,
            dtype,
            budget or Budget(),
            {**how, "progress": show},
        )
    _refuse(fitted, throw)
    return fitted


def _refuse(fitted: Fit, throw: bool | str) -> None:
    """Raise the FitError that `throw` asks for."""
    if throw is False:
        return
    if not fitted.result.usable:
        raise FitError(str(fitted.result), fitted)
    if throw in _REFUSED and fitted.certificate.verdict in _REFUSED[throw]:
        raise FitError(
            f"fit(throw={throw!r}) refuses this fit. {fitted.certificate.explain()}", fitted
        )


def _search(
    target: Any,
    q: Any,
    objective: Any,
    solver: Any,
    key: Any,
    starts: Any,
    dtype: Any,
    budget: Budget,
    how: dict[str, Any],
) -> Fit:
    """Complete the choices, run them, and climb where nothing was chosen; `how` goes to the loop."""
    words, started, before = key_words(key), time.perf_counter(), evaluations_of(target)
    chosen = _complete(target, q, objective, solver, key, starts, dtype)
    spent = evaluations_of(target) - before
    chosen.solver.check(target, chosen.q, chosen.objective)

    def run_solver(q: Any, solver: Any, left: Budget) -> Run:
        goal = chosen.objective if solver is chosen.solver else solver.default_objective()
        return run(target, q, goal, solver, key=key, budget=left, **how)

    first = run_solver(chosen.q, chosen.solver, _left(budget, started, spent))
    # compiled with the solver
    inside = int(first.trace.evaluations[-1]) if chosen.solver.compiled and first.steps else 0
    seconds, used = time.perf_counter() - started, evaluations_of(target) - before + inside
    fitted = Fit(
        first.q, first.target, first.result, first.steps, first.trace, used, seconds, words
    )
    if (
        solver is None
        and objective is None
        and first.result.usable
        and first.result is not Result.interrupted
    ):
        if chosen.settled:
            return dataclasses.replace(
                fitted, rung=chosen.settled, checked=check(fitted, key=fitted.seed)
            )
        fitted = _climbed(fitted, first, chosen, run_solver, _left(budget, started, spent), started)
        # every rung of a simulator is compiled with its solver
        if inside and not isinstance(target, Density):
            inside = int(fitted.trace.evaluations[-1])
        used = (
            evaluations_of(target)
            - before
            + inside
            - (fitted.checked.evaluations if fitted.checked else 0)
        )
    return dataclasses.replace(fitted, evaluations=used)


def load(path: Any, target: AbstractTarget) -> Fit:
    """Read a fit that `Fit.save` wrote.

    `target` must be the one that was fitted (its coordinate names are compared).

    Raises:
        ValueError: the file is truncated, not a tightbound fit, or belongs to another target.
    """
    return Fit(**storage.load_parts(path, target))


def _climbed(
    fitted: Fit, first: Run, chosen: Plan, run_solver: Any, budget: Budget, started: float
) -> Fit:
    """The fit at the rung of the ladder that it came to stand on, with its certificate."""

    def run_or_stop(q: Any, solver: Any, left: Budget) -> Run:
        ran = run_solver(q, solver, left)
        # one Ctrl-C ends the climb, not only the rung it fell into
        if ran.result is Result.interrupted:
            raise KeyboardInterrupt
        return ran

    try:
        clock = {"budget": budget, "started": time.perf_counter()}
        end = chosen.ladder(
            first, chosen.others, run_or_stop, key=fitted.seed, rival=chosen.rival, **clock
        )
        ran = end.run
        seconds = time.perf_counter() - started - end.certificate.seconds
        climbed = dataclasses.replace(
            fitted, q=ran.q, result=ran.result, steps=len(end.trace.loss), trace=end.trace,
            seconds=seconds, rung=end.why,
        )  # fmt: skip
        certificate = with_propriety(climbed, end.certificate, fitted.seed)
    except KeyboardInterrupt:
        seconds = time.perf_counter() - started
        return dataclasses.replace(
            fitted, result=Result.interrupted, seconds=seconds, rung="interrupted during the climb"
        )
    result = Result.unbounded if "proper" in certificate else ran.result
    return dataclasses.replace(climbed, result=result, checked=certificate)


def _left(budget: Budget, started: float, evaluations: int) -> Budget:
    """The budget after the start.

    Never less than the smallest that lets a solver take its first step.
    """
    seconds = (
        None
        if budget.seconds is None
        else max(budget.seconds - (time.perf_counter() - started), 1e-9)
    )
    return Budget(
        seconds, None if budget.evaluations is None else max(budget.evaluations - evaluations, 1)
    )


def _check_arguments(
    target: Any,
    tol: float,
    max_steps: int | None,
    starts: int | None,
    dtype: Any,
    budget: Budget | None,
) -> None:
    if not isinstance(target, AbstractTarget):
        raise TargetError(
            f"fit: `target` must be a tightbound target, got {type(target).__name__}. Make one with"
            " tb.from_log_density(log_density, example), tb.from_rows(...), tb.from_numpyro(model,"
            " *args) or tb.from_simulator(...)."
        )
    if not (
        isinstance(tol, (int, float, np.number)) and not isinstance(tol, bool) and 0 < tol < np.inf
    ):
        raise ValueError(
            f"fit: `tol` must be a positive number of posterior standard deviations, got {tol!r}."
        )
    for name, value in (("max_steps", max_steps), ("starts", starts)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if value is not None and (not whole or value < 1):
            raise ValueError(f"fit: `{name}` must be a positive integer or None, got {value!r}.")
    if dtype is not None and _dtype_name(dtype) not in ("float32", "float64"):
        raise ValueError(
            f"fit: `dtype` must be 'float64' (the default) or 'float32', got {dtype!r}."
        )
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(
            "fit: `budget` must be tb.Budget(seconds=..., evaluations=...) or None, got"
            f" {budget!r}."
        )


def _dtype_name(dtype: Any) -> str | None:
    try:
        return np.dtype(dtype).name
    except TypeError:
        return None


def _check_parts(target: Any, q: Any, objective: Any, solver: Any) -> None:
    """Each part is of its kind, and q has the target's dimension and finite numbers."""
    kinds = (
        (
            "q",
            q,
            AbstractFamily,
            "a member of a family, such as tb.families.Gaussian.full(dim) or an earlier `fit.q`",
        ),
        ("objective", objective, AbstractObjective, "an objective, such as tb.objectives.ELBO()"),
        ("solver", solver, AbstractSolver, "a solver, such as tb.solvers.NaturalGradient()"),
    )
    for name, part, kind, wanted in kinds:
        if part is not None and not isinstance(part, kind):
            got = (
                f"the class {part.__name__}: call it"
                if isinstance(part, type)
                else type(part).__name__
            )
            raise PairingError(
                f"fit: `{name}` must be {wanted}, or None for the default; got {got}."
            )
    if q is None:
        return
    if isinstance(target, Density) and q.space == "unconstrained" and q.dim != target.dim:
        raise PairingError(
            f"fit: `q` has {q.dim} dimensions, but the target has {target.dim} unconstrained"
            " coordinates:"
            f" {', '.join(target.coordinate_names[:8])}{', ...' if target.dim > 8 else ''}."
        )
    if not is_finite(q):
        raise ValueError(
            "fit: `q` holds NaN or infinite numbers; start from a finite member, or leave `q` out."
        )


def _complete(
    target: Any, q: Any, objective: Any, solver: Any, key: Any, starts: int | None, dtype: Any
) -> Plan:
    """The caller's choices, with the default's in the places left empty."""
    own = None if solver is None or q is not None else solver.own_start(target, key, starts)
    if own is None or solver is None:
        factors = solver is None and (objective is None or isinstance(objective, ELBO))
        default = plan(target, q, key=key, starts=starts, factors=factors)
    else:
        default = Plan(own, None, solver)
    chosen = default.solver if solver is None else solver
    if (
        solver is None
        and objective is not None
        and not _solves(chosen, target, default.q, objective)
    ):
        chosen = StochasticGradient()
    goal = objective if objective is not None else chosen.default_objective()
    start = default.q if q is None or solver is None else q
    start = start if dtype is None else _cast(start, dtype)
    return dataclasses.replace(default, q=start, objective=goal, solver=chosen)


def _solves(solver: Any, target: Any, q: Any, objective: Any) -> bool:
    try:
        solver.check(target, q, objective)
    except PairingError:
        return False
    return True


def _cast(q: Any, dtype: Any) -> Any:
    return to_host(to_device(q, np.dtype(dtype)))
