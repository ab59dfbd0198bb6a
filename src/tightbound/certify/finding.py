"""Question 4: how far off is it? Each check returns a Finding.

A Certificate is an ordered collection of them.
"""

import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping
from typing import Any

from .._types import Estimate


class Verdict(enum.StrEnum):
    """What a user may do with the answer; ordered from best to worst."""

    PASS = "pass"
    CAUTION = "caution"
    FAIL = "fail"


_MEANING = {
    Verdict.PASS: "Use it.",
    Verdict.CAUTION: "Use the corrected summaries, and mind what is uncertain:",
    Verdict.FAIL: "Do not use it.",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check of a fit: a number with its standard error against a threshold, a verdict, and one
    sentence why.

    Attributes:
        value: the number; its unit is in `why`.
        stderr: Monte Carlo standard error of `value` (NaN where it has none).
        threshold: the largest (or smallest, see `why`) value that passes; None for what is only
            reported.
        source: where the check comes from.
        where: the parameters that the finding points at, worst first.
        detail: per-parameter numbers and the like, for tables and plots; not part of the verdict.
    """

    name: str
    value: float
    stderr: float
    threshold: float | None
    verdict: Verdict
    why: str
    source: str
    where: tuple[str, ...] = ()
    detail: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Certificate(Mapping[str, Finding]):
    """What is known of how far a fit is off: findings by name, and one verdict, the worst of
    theirs.

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
        order = list(Verdict)
        return max((f.verdict for f in self.findings), key=order.index, default=Verdict.PASS)

    @property
    def khat(self) -> float:
        """Pareto shape of the importance weights: below 0.7 they can be trusted.

        NaN for draws without a density.
        """
        return self["khat"].value if "khat" in self else float("nan")

    def explain(self) -> str:
        """The verdict in plain words, with the reasons that decided it."""
        meaning = _MEANING[self.verdict]
        # draws without weights have nothing to be corrected by
        if self.verdict is Verdict.CAUTION and "khat" not in self:
            meaning = "Usable, but mind what is uncertain:"
        lines = [f"{self.verdict.upper()}: {meaning}"]
        order = list(Verdict)[::-1]
        for level in order[:-1]:
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
