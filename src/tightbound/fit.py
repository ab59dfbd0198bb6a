"""START HERE. `fit(target, q, objective, solver)`.

Approximate this target, within this family, in this sense of closeness, by this search.

`fit(target)` alone chooses all three (`plan/recipe.py`), runs the one loop (`loop.py`), climbs
(`plan/climb.py`) and attaches the certificate (`certify/`), which says how far off the answer is.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, cast

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from . import datatree, report, storage, summary
from ._numerics import host_algebra, key_words, x64
from ._types import Estimate, Key, Validated
from .account import Account, Budget, Spent
from .amortised import posterior
from .certify.certificate import Certificate, check
from .certify.finding import Verdict
from .families.base import AbstractFamily
from .loop import Trace, is_finite
from .objectives.base import AbstractObjective
from .plan.climb import Chosen, LoopOptions, carry_out
from .plan.recipe import choose
from .progress import display
from .results import FitError, PairingError, Result, TargetError
from .solvers.base import AbstractSolver
from .summary import Reported
from .targets.base import AbstractTarget, Density
from .targets.tracing import is_traced

if TYPE_CHECKING:
    import pandas
    import xarray

_REFUSED = {"fail": (Verdict.FAIL,), "caution": (Verdict.FAIL, Verdict.CAUTION)}


class FitLimits(TypedDict, total=False):
    """How far `tb.fit` goes, and what it shows; `fit` checks these and says what they mean."""

    objective: AbstractObjective | None
    tol: float
    budget: Budget | None
    max_steps: int | None
    starts: int | None
    dtype: DTypeLike | None
    progress: bool | None
    throw: bool | Literal["fail", "caution"]


class FitOptions(FitLimits, total=False):
    """All arguments of `tb.fit` but its target."""

    q: AbstractFamily | None
    solver: AbstractSolver | None
    key: Key


@dataclasses.dataclass(frozen=True)
class Fit:
    """An approximation of a posterior, how it was found, and how far off it is.

    Attributes:
        q: the member of the family that was found; it lives on the unconstrained scale.
        target: what it approximates.
        result: how the run ended; `result.ok`, and `str(result)` is a sentence.
        steps: solver steps taken.
        trace: per step: loss (nats), change of q, evaluations so far.
        spent: evaluations and seconds, by start, rung and certificate.
        key: the key it was run with; summaries and reports derive theirs from it.
        rung: where on the default's ladder it stands, and why it stopped there.
    """

    q: AbstractFamily
    target: AbstractTarget
    result: Result
    steps: int
    trace: Trace
    spent: Spent
    key: tuple[int, ...]
    rung: str = "chosen by the caller"
    checked: Certificate | None = None

    @property
    def evaluations(self) -> int:
        """Values of the log density with their gradients that the fit used.

        Those of the certificate are in `certificate.evaluations`.
        """
        return round(self.spent.without_certificate.evaluations)

    @property
    def seconds(self) -> float:
        """Wall-clock time of the fit, without the certificate."""
        return self.spent.without_certificate.seconds

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

    def at(self, x: PyTree) -> posterior.Posterior | posterior.PosteriorBatch:
        """The posterior of the data `x`, of an amortised fit.

        It has `sample`, `log_prob`, `check`, `summary` and `report` of its own. A batch of data
        sets, with one leading axis more than `simulate` returns, gives all of them at once.

        Raises:
            ValueError: x has another structure or shape than the simulations, or is not finite.
            PairingError: the fit is not amortised.
        """
        return posterior.at(self, x)

    def sample(
        self, key: Key, n: int = 1000, *, corrected: bool = False, replace: bool = True
    ) -> PyTree:
        """`n` draws of the user's named, constrained values: a pytree with leading axis n.

        Derived values are included. `corrected=True` resamples with the smoothed importance weights
        where the certificate finds that they correct more than their own Monte Carlo error, and
        returns plain draws of q otherwise. `replace=False` resamples without replacement: no draw
        comes twice.
        """
        return summary.sample(self, key, n, corrected=corrected, replace=replace)

    def expect(
        self, function: Callable[[PyTree], PyTree], *, key: Key | None = None
    ) -> "pandas.DataFrame":
        """Posterior mean and sd of any function of the named values, with their Monte Carlo errors.

        `function` takes the values of one draw and returns a pytree of numbers, such as `lambda p:
        {"odds": p["theta"] / (1 - p["theta"])}`; JAX traces it. From importance-weighted draws
        where the weights can be used, else from q's own (column `draws`); errors by the delta
        method. For q too far off for weights, see `tb.linear_response`.
        """
        return summary.expect(self, function, self.seed if key is None else key)

    def summary(self) -> "pandas.DataFrame":
        """The posterior as a table (pandas.DataFrame).

        Mean, sd, 5 %, 50 % and 95 % of each value, and which rows are corrected.
        """
        return summary.summary(self)

    def report(self, path: str | Path, *, title: str | None = None) -> Path:
        """Write one self-contained HTML page: verdict, findings, plots. Needs the `plots` extra.

        Returns the path.
        """
        return report.write(self, path, title=title)

    def report_of(
        self, other: Reported, path: storage.AnyPath, *, title: str | None = None
    ) -> Path:
        """The page of another fitted object, such as an amortised posterior at given data."""
        return report.write(other, path, title=title)

    def to_datatree(self, n: int = 1000) -> "xarray.DataTree":
        """The fit as an ArviZ DataTree.

        Posterior draws (chain, draw), trace, findings, observed data where known.
        """
        return datatree.to_datatree(self, n)

    def save(self, path: str | Path) -> Path:
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
    target: Validated[AbstractTarget, "_check_arguments"],
    q: Validated[AbstractFamily | None, "_check_parts"] = None,
    objective: Validated[AbstractObjective | None, "_check_parts"] = None,
    solver: Validated[AbstractSolver | None, "_check_parts"] = None,
    *,
    key: Key = 0,
    tol: Validated[float, "_check_arguments"] = 0.02,
    budget: Validated[Budget | None, "_check_arguments"] = None,
    max_steps: Validated[int | None, "_check_arguments"] = None,
    starts: Validated[int | None, "_check_arguments"] = None,
    dtype: Validated[DTypeLike | None, "_check_arguments"] = None,
    progress: bool | None = None,
    throw: Validated[bool | Literal["fail", "caution"], "fit"] = True,
) -> Fit:
    """Approximate `target` and say how far off the approximation is.

    With `target` alone everything is chosen: a full-rank Gaussian (low rank above 300 dimensions),
    started along L-BFGS paths, fitted by natural gradient, certified. Give `q`, `objective` or
    `solver` to choose yourself; what you leave out is still chosen for you.

    Arguments:
        target: from tb.from_log_density, tb.from_rows, tb.from_numpyro, ...
        q: the member to start from; the fit stays in its family. An earlier `fit.q` continues that
            fit; a q whose family no solver moves (nested, mixture) is fitted and climbed to anew.
        objective: the measure of closeness, such as tb.objectives.ELBO(); None is the solver's own.
        solver: the search, such as tb.solvers.NaturalGradient().
        key: an int, a typed JAX key or a legacy one; the same key gives the same bits on the same
            machine.
        tol: accuracy asked of the means, in posterior standard deviations.
        budget: tb.Budget(seconds=, evaluations=), for start, solvers and certificate together.
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
        PairingError: target, q, objective and solver do not fit together; before the solver runs,
            and where `q` is given before anything is evaluated.
        FitError: what `throw` refuses; `.fit` holds what there is.
        TypeError: `key` is of the wrong kind.
    """
    if not isinstance(throw, bool) and throw not in _REFUSED:
        raise ValueError(f'fit: `throw` must be True, False, "caution" or "fail", got {throw!r}.')
    _check_arguments(target, tol, max_steps, starts, dtype, budget)
    _check_parts(target, q, objective, solver)
    factors_will_do = solver is None and (objective is None or objective.is_elbo)
    recipe = choose(target, q, with_factors=factors_will_do)
    chosen = Chosen(recipe, q, objective, solver, dtype)
    account = Account(budget)
    with x64(), host_algebra(), display(progress, "tightbound", max_steps) as show:
        loop: LoopOptions = {"key": key, "tol": tol, "max_steps": max_steps, "progress": show}
        end = carry_out(chosen, target, account, starts=starts, loop=loop)
    ran = end.run
    fitted = Fit(
        ran.q,
        ran.target,
        ran.result,
        len(ran.trace.loss),
        ran.trace,
        account.spent,
        key_words(key),
        end.rung,
        end.certificate,
    )
    _refuse(fitted, throw)
    return fitted


def _refuse(fitted: Fit, throw: bool | str) -> None:
    """Raise the FitError that `throw` asks for."""
    if throw is False:
        return
    if not fitted.result.usable:
        raise FitError(str(fitted.result), fitted)
    if isinstance(throw, str) and fitted.certificate.verdict in _REFUSED[throw]:
        raise FitError(
            f"fit(throw={throw!r}) refuses this fit. {fitted.certificate.explain()}", fitted
        )


def load(path: str | Path, target: AbstractTarget) -> Fit:
    """Read a fit that `Fit.save` wrote.

    `target` must be the one that was fitted (its coordinate names are compared).

    Raises:
        ValueError: the file is truncated, not a tightbound fit, or belongs to another target.
    """
    return Fit(**storage.load_parts(path, target))


def _check_arguments(
    target: object,
    tol: object,
    max_steps: object,
    starts: object,
    dtype: object,
    budget: object,
) -> None:
    if not isinstance(target, AbstractTarget):
        raise TargetError(
            f"fit: `target` must be a tightbound target, got {type(target).__name__}. Make one with"
            " tb.from_log_density(log_density, example), tb.from_rows(...), tb.from_numpyro(model,"
            " *args) or tb.from_simulator(...)."
        )
    if is_traced(target):
        raise TargetError(
            "fit: `target` was made from arrays that JAX is tracing (inside jit, vmap or grad): it"
            " has no numbers to fit to yet. Call fit outside; for many data sets at once see"
            " tb.fit_batch(make_target, data)."
        )
    if not (
        isinstance(tol, (int, float, np.number)) and not isinstance(tol, bool) and 0 < tol < np.inf
    ):
        raise ValueError(
            f"fit: `tol` must be a positive number of posterior standard deviations, got {tol!r}."
        )
    for name, value in (("max_steps", max_steps), ("starts", starts)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        # `whole` has made sure that it can be compared.
        if value is not None and not (whole and cast(int, value) >= 1):
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


def _dtype_name(dtype: object) -> str | None:
    try:
        return np.dtype(dtype).name  # pyright: ignore[reportArgumentType, reportCallIssue]
    except TypeError:
        return None


def _check_parts(target: AbstractTarget, q: object, objective: object, solver: object) -> None:
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
    if not isinstance(q, AbstractFamily):
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
