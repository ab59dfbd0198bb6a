"""`tb.check`: fresh draws, the findings of the registry, and the verdict."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from .._numerics import host_algebra, x64
from .._types import Estimate, Key
from ..account import BudgetSpent
from ..families.base import AbstractFamily
from ..results import Result
from ..targets.base import Density, Simulator, require
from . import findings as findings  # registers them
from .draws import (
    FreshDraws,
    Meter,
    check_key,
    fresh_sample,
    unweighed_draws,
)
from .finding import (
    REGISTRY,
    SEVERITY,
    Case,
    EvidenceDetail,
    Finding,
    FindingDetail,
    MissedMass,
    NotExamined,
    Registered,
    Rival,
    Stage,
    Verdict,
    not_examined,
)
from .fitted import Ended, Fitted
from .standards import EFFORT, STANDARDS, Standards

# Nats: a log density of 1e5 nats carries some 1e-10 of its own, quadratures of a known evidence
# more.
_ROUNDING = 1e-4

Detail = TypeVar("Detail", bound=FindingDetail)

_MEANING = {
    Verdict.PASS: "Use it.",
    Verdict.CAUTION: "Use the corrected summaries, and mind what is uncertain:",
    Verdict.FAIL: "Do not use it.",
}
_WITHOUT_WEIGHTS = "Usable, but mind what is uncertain:"  # there is nothing to correct by


@dataclasses.dataclass(frozen=True)
class Certificate(Mapping[str, Finding]):
    """What is known of how far a fit is off: findings by name, and one verdict, their worst.

    Attributes:
        findings: in the order in which they were checked.
        log_evidence: (lower, upper) bounds on the log evidence in nats, each with its Monte Carlo
            error added.
        elbo: on fresh draws.
        evaluations: gradients of the log density that the checks used (the fit's own are counted
            apart).
        seconds: wall-clock time of the checks.
    """

    findings: tuple[Finding, ...]
    log_evidence: tuple[float, float]
    elbo: Estimate
    evaluations: int
    seconds: float

    def __getitem__(self, name: str) -> Finding:
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"No finding is called {name!r}; there are: {', '.join(self)}.")

    def __iter__(self) -> Iterator[str]:
        return iter(finding.name for finding in self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the findings: "pass", "caution" or "fail"."""
        return max(
            (f.verdict for f in self.findings), key=SEVERITY.__getitem__, default=Verdict.PASS
        )

    @property
    def khat(self) -> float:
        """Pareto shape of the importance weights: below 0.7 they can be trusted.

        NaN for draws without a density.
        """
        return self["khat"].value if "khat" in self else float("nan")

    @property
    def rivals(self) -> tuple[Rival, ...]:
        """Other optima that q misses, as the searches found them."""
        return tuple(rival for d in details(self.findings, MissedMass) for rival in d.rivals)

    def detail(self, kind: type[Detail]) -> Detail | None:
        """The numbers of that kind, whichever finding has them; None where none does."""
        return next(details(self.findings, kind), None)

    def explain(self) -> str:
        """The verdict in plain words, with the reasons that decided it."""
        meaning = _MEANING[self.verdict]
        if self.verdict is Verdict.CAUTION and "khat" not in self:
            meaning = _WITHOUT_WEIGHTS
        lines = [f"{self.verdict.upper()}: {meaning}"]
        for level in (Verdict.FAIL, Verdict.CAUTION):
            lines += [f"  - {f.why}" for f in self.findings if f.verdict is level]
        if self.verdict is Verdict.PASS:
            lines += [
                f"  {self[name].why}" for name in ("khat", "ess", "global optimum") if name in self
            ][:1]
        lower, upper = self.log_evidence
        if math.isfinite(upper) or "khat" in self:  # chains, and amortised fits, have none
            lines.append(f"  The log evidence lies between {lower:.3f} and {upper:.3f} nats.")
        return "\n".join(lines)

    def __str__(self) -> str:
        width = max((len(name) for name in self), default=4)
        rows = [f"{'finding':<{width}}  {'value':>10}  {'s.e.':>8}  {'threshold':>9}  verdict  why"]
        for f in self.findings:
            threshold = "" if f.threshold is None else f"{f.threshold:.3g}"
            rows.append(
                f"{f.name:<{width}}  {f.value:>10.4g}  {f.stderr:>8.2g}  {threshold:>9} "
                f" {f.verdict:<7}  {f.why}"
            )
        return "\n".join([self.explain(), "", *rows])


def details(found: Iterable[Finding], kind: type[Detail]) -> Iterator[Detail]:
    """The details of that kind, in the order of their findings."""
    return (f.detail for f in found if isinstance(f.detail, kind))


@dataclasses.dataclass(frozen=True)
class Request:
    """How a fit is to be checked: the arguments of `check`."""

    key: Key
    draws: int
    starts: int
    standards: Standards
    allowance: int | None


Certifier: TypeAlias = Callable[[Fitted, Request], Certificate]

Kind: TypeAlias = Literal["amortised", "chains", "factors"]
"""Fits that are not judged by fresh draws alone."""

CERTIFIERS: dict[Kind, Certifier] = {}
"""How each kind is certified; entered where its check stands."""


def kind_of(fitted: Fitted) -> Kind | None:
    """What kind a fit is, as its family declares; None for one with a density on R^d."""
    if fitted.q.conditional and isinstance(fitted.target, Simulator):
        return "amortised"
    if not fitted.q.has_density:
        return "chains"
    return "factors" if fitted.q.space == "native" else None


def check(
    fitted: Fitted,
    *,
    key: Key = 0,
    draws: int = EFFORT.draws,
    starts: int = EFFORT.starts,
    standards: Standards = STANDARDS,
    allowance: int | None = None,
) -> Certificate:
    """How far off a fit is: a Certificate from fresh draws and dispersed searches.

    Uses nothing of how q was found: any object with `.q` (a family member) and `.target` (with the
    ability `density`) can be checked; a sampler's draws, which have no density, are judged as
    chains. Cost: `draws` gradients (at least 2,000 for a k-hat worth having; four times as many
    where the effective sample is small), 1,800 for a wider law, and some 50 per start.

    Arguments:
        fitted: anything with `.q` and `.target`.
        key: an int or a JAX key; use another than the fit's for an independent check.
        draws: number of fresh draws, an even number.
        starts: dispersed short searches for other optima, at least 16.
        standards: the thresholds of the verdicts.
        allowance: most gradients that the check may use (200 draws are always made). What cannot be
            paid is left out, and a finding, "not examined", says so: a caution, never a pass.

    Raises:
        ValueError: when `draws` < 100 or `starts` < 16.
        PairingError: when the target has no log density on R^d.
    """
    _check_effort(draws, starts)
    request = Request(key, draws, starts, standards, allowance)
    kind = kind_of(fitted)
    if kind is not None:
        return CERTIFIERS[kind](fitted, request)
    require("check", fitted.target, Density)
    started, meter = time.perf_counter(), Meter(fitted.target, allowance)
    with host_algebra():
        reserve = 0 if allowance is None else cost_of_findings(fitted)
        sample = fresh_sample(
            fitted,
            key,
            draws + draws % 2,
            allowance=allowance,
            reserve=reserve,
            standards=standards,
        )
        found = judge(fitted.q, sample, key, standards=standards, allowance=meter.left)
        certificate = certify(
            fitted.q,
            sample,
            found,
            key=key,
            starts=starts,
            seconds=time.perf_counter() - started,
            used=meter.used,
            standards=standards,
            allowance=meter.left,
        )
    return look_closer(
        fitted, certificate, check_key(key), standards=standards, allowance=meter.left
    )


def _check_effort(draws: int, starts: int) -> None:
    if draws < EFFORT.least_asked:
        raise ValueError(
            f"check: `draws` must be at least {EFFORT.least_asked} to say anything, got {draws};"
            f" {EFFORT.draws} is the default."
        )
    if starts < EFFORT.least_starts:
        raise ValueError(
            f"check: `starts` must be at least {EFFORT.least_starts} (fewer miss one of two equal"
            f" basins too often), got {starts}."
        )


def judge(
    q: AbstractFamily,
    sample: FreshDraws,
    key: Key,
    *,
    standards: Standards = STANDARDS,
    allowance: int | None = None,
) -> tuple[Finding, ...]:
    """Every finding but those that take searches, which `certify` adds."""
    case = Case(q, sample, check_key(key), standards)
    return examined(Stage.JUDGE, case, Meter(sample.target, allowance))


def certify(
    q: AbstractFamily,
    sample: FreshDraws,
    found: tuple[Finding, ...],
    *,
    key: Key,
    starts: int = EFFORT.starts,
    seconds: float,
    used: int,
    standards: Standards = STANDARDS,
    allowance: int | None = None,
) -> Certificate:
    """The certificate of a sample that was judged already: adds the findings that search.

    `found` is what `judge` returned, in `seconds` and with `used` gradients, which the certificate
    adds to its own; `allowance` is what the searches may use.
    """
    started, meter = time.perf_counter(), Meter(sample.target, allowance)
    effort = dataclasses.replace(EFFORT, starts=starts)
    case = Case(q, sample, check_key(key), standards, effort)
    found = examined(Stage.SEARCH, case, meter, found)
    bounds = _evidence_bounds(found, standards.errors)
    seconds += time.perf_counter() - started
    return Certificate(found, bounds, sample.elbo, used + meter.used, seconds)


def look_closer(
    fitted: Fitted,
    certificate: Certificate,
    key: int,
    *,
    standards: Standards = STANDARDS,
    allowance: int | None = None,
) -> Certificate:
    """The certificate with the findings for doubt, where it does not pass or the search ran away.

    They stand first: an improper posterior makes all others void.
    """
    ran_away = isinstance(fitted, Ended) and fitted.result is Result.unbounded
    passes = certificate.verdict is Verdict.PASS and not ran_away
    if passes or not isinstance(fitted.target, Density):
        return certificate
    started, meter = time.perf_counter(), Meter(fitted.target, allowance)
    with x64(), host_algebra():
        sample = unweighed_draws(fitted, key, EFFORT.draws)
        case = Case(fitted.q, sample, key, standards, ran_away=ran_away)
        found = examined(Stage.DOUBT, case, meter, certificate.findings, first=True)
    return dataclasses.replace(
        certificate,
        findings=found,
        evaluations=certificate.evaluations + meter.used,
        seconds=certificate.seconds + time.perf_counter() - started,
    )


def examined(
    stage: Stage,
    case: Case,
    meter: Meter,
    before: tuple[Finding, ...] = (),
    *,
    first: bool = False,
) -> tuple[Finding, ...]:
    """The findings `before` and those of a stage; a last one names what the meter could not pay.

    `first`: those of the stage stand before the others.
    """
    found, left_out = [], []
    for entry in _registered(stage, case):
        left = meter.left
        if left is not None and entry.cost(case.q.dim, case.effort) > left:
            left_out.append(entry.name)
            continue
        try:
            with meter.rationed():
                found.append(entry.find(case))
        except BudgetSpent:  # it turned out to cost more than it said
            left_out.append(entry.name)
    new = tuple(finding for finding in found if finding is not None)
    for old in details(before, NotExamined):
        left_out = [*old.names, *left_out]
    kept = tuple(finding for finding in before if not isinstance(finding.detail, NotExamined))
    in_order = (*new, *kept) if first else (*kept, *new)
    return (*in_order, not_examined(tuple(left_out))) if left_out else in_order


def _registered(stage: Stage, case: Case) -> list[Registered]:
    of = "weights" if case.q.has_density else "chains"
    return [
        entry
        for entry in REGISTRY
        if entry.stage is stage and entry.of == of and isinstance(case.sample.target, entry.ability)
    ]


def _evidence_bounds(found: tuple[Finding, ...], errors: float) -> tuple[float, float]:
    """The sandwich, some standard errors wider; masses that q misses are added to its upper end."""
    sandwich, beside = next(details(found, EvidenceDetail), None), list(details(found, MissedMass))
    if sandwich is None:
        return -np.inf, np.inf
    upper = sandwich.upper + errors * sandwich.upper_stderr
    for log_evidence in (value for mass in beside for value in mass.missed):
        upper = float(np.logaddexp(upper, log_evidence))
    upper = max([upper, *(mass.seen for mass in beside)])
    return sandwich.lower - errors * sandwich.lower_stderr - _ROUNDING, upper + _ROUNDING


def cost_of_findings(fitted: Fitted) -> int:
    """About how many gradients the findings take that judge a q with a density.

    A budget keeps so much in reserve when it makes the fresh draws.
    """
    return sum(
        entry.cost(fitted.q.dim, EFFORT)
        for entry in REGISTRY
        if entry.of == "weights"
        and entry.stage is not Stage.DOUBT
        and isinstance(fitted.target, entry.ability)
    )


__all__ = [
    "CERTIFIERS",
    "Certificate",
    "Request",
    "certify",
    "check",
    "cost_of_findings",
    "details",
    "examined",
    "judge",
    "kind_of",
    "look_closer",
]
