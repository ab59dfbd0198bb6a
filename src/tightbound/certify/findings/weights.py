"""What the log density and the importance weights say at fresh draws of q."""

import dataclasses

import numpy as np
from jaxtyping import Bool

from ..._numerics import logmeanexp
from ...targets.base import KnowsPrecision
from ..draws import FreshDraws
from ..finding import About, Case, EvidenceDetail, Finding, FindingDetail, Stage, Verdict, register
from ..psis import khat_threshold
from ..standards import STANDARDS, Standards

# Weights averaged in each bound on the evidence: with 100 the lower bound is within a few
# hundredths of a nat where q fits, and 4,000 draws still make 40 groups for its error.
_GROUP = 100
# Standard errors by which draws without a density must stand out in a coordinate to name it (three
# of many coordinates), and the share of the worst that another must reach to be named beside it.
_STANDS_OUT, _BESIDE_IT = 4.0, 0.5


@dataclasses.dataclass(frozen=True)
class KhatDetail(FindingDetail):
    """`ess`: the effective sample size."""

    ess: float


@register("finite", place=10)
def finite(case: Case) -> Finding:
    """Whether the log density was finite at every draw of q.

    If not, in which parameters those draws stand out.
    """
    draws = case.sample
    bad = ~draws.finite
    count = int(bad.sum())
    share = count / len(bad)
    verdict = Verdict.CAUTION if share < case.standards.finite_fail else Verdict.FAIL
    where = _where_bad(draws, bad) if count else ()
    at = f"; they stand out in {', '.join(where)}" if where else ""
    why = (
        "The log density was finite at all draws of q."
        if count == 0
        else (
            f"The log density or its gradient was not finite at {count} of {len(bad)} draws of"
            f" q{at}."
        )
    )
    return Finding(
        "finite",
        float(count),
        np.nan,
        0.0,
        Verdict.PASS if count == 0 else verdict,
        why,
        "docs/certificate.md, finite",
        where,
        about=About.DENSITY,
    )


def _where_bad(draws: FreshDraws, bad: Bool[np.ndarray, "n"]) -> tuple[str, ...]:
    """At most three coordinates in whose mean or spread the bad draws stand out beyond chance."""
    z, count = draws.z, bad.sum()
    u = (z - z.mean(axis=0)) / (z.std(axis=0) + 1e-300)
    kurtosis = np.maximum(np.mean(u**4, axis=0) - 1.0, 1e-3)
    lean = np.abs(u[bad].mean(axis=0)) * np.sqrt(count)
    spread = np.abs(np.mean(u[bad] ** 2, axis=0) - 1.0) * np.sqrt(count / kurtosis)
    size = np.maximum(lean, spread)
    stands_out = (size > _STANDS_OUT) & (size > _BESIDE_IT * size.max())
    return tuple(
        f"`{draws.target.coordinate_names[j]}`" for j in np.argsort(-size)[:3] if stands_out[j]
    )


@register("khat", place=30)
def khat(case: Case) -> Finding:
    """Pareto shape of the importance weights, read together with the effective sample size.

    k-hat alone misleads both ways: it can be 0.6 where 99 % of the draws are effective, or above 1
    on a benign posterior of a thousand dimensions; and a good k-hat with few effective draws leaves
    summaries noisy.
    """
    s, count = case.sample.smoothed, len(case.sample.log_w)
    threshold = khat_threshold(count, case.standards)
    verdict = judge_weights(s.khat, s.ess, count, case.standards)
    tail = {
        Verdict.PASS: (
            "q covers the posterior and the weights can be trusted"
            if s.khat < threshold
            else "the weights are nearly equal, so the shape of their tail does not matter"
        ),
        Verdict.CAUTION: "q misses part of a tail; corrected summaries are usable but noisy",
        Verdict.FAIL: "q is too far from the posterior for the weights to repair",
    }[verdict]
    why = (
        f"Importance weights: k-hat {s.khat:.2f} (limit {threshold:.2f}), {s.ess:.0f} of {count}"
        f" draws effective: {tail}."
    )
    return Finding(
        "khat",
        float(s.khat),
        float(s.khat_stderr),
        threshold,
        verdict,
        why,
        "Vehtari et al. 2024, sections 2-3",
        detail=KhatDetail(s.ess),
    )


def judge_weights(khat: float, ess: float, count: int, standards: Standards = STANDARDS) -> Verdict:
    """What k-hat and the effective sample size of `count` weights say together."""
    if khat < khat_threshold(count, standards) and ess >= standards.effective:
        return Verdict.PASS
    bounded = khat <= standards.khat_fail
    if (bounded and ess >= standards.effective_fail) or ess >= standards.mostly_effective * count:
        enough = standards.nearly_equal if bounded else standards.nearly_equal_unseen
        return Verdict.PASS if ess >= enough * count else Verdict.CAUTION
    return Verdict.FAIL


@register("evidence", place=40)
def evidence(case: Case) -> Finding:
    """The sandwich on log Z: averages of 100 weights bound it from below and from above.

    Lower: E log mean_K w (IWELBO), K = 100. Upper: half the log of E (mean_K w)^2 (chi bound of
    order 2), plus what the fitted tail of the weights holds beyond the largest one that was drawn.
    No sample of q can bound a mode where q never goes: such rivals, where the dispersed searches
    find them, are added to the upper end by the certificate.
    """
    draws, errors = case.sample, case.standards.errors
    log_w, elbo = draws.log_w, draws.elbo
    groups = log_w[: len(log_w) // _GROUP * _GROUP].reshape(_GROUP, -1).T
    averages = np.array([logmeanexp(group) for group in groups])
    lower = float(averages.mean()) if np.all(np.isfinite(averages)) else -np.inf
    lower_se = (
        float(averages.std(ddof=1) / np.sqrt(len(averages))) if np.isfinite(lower) else np.nan
    )
    upper = 0.5 * logmeanexp(2.0 * averages)
    scaled = np.exp(2.0 * (averages - upper))
    upper_se = float(0.5 * scaled.std(ddof=1) / np.sqrt(len(scaled)))
    upper += float(np.log1p(draws.smoothed.unseen))
    width = upper + errors * upper_se - (lower - errors * lower_se)
    why = (
        f"The log evidence lies between {lower:.3f} ± {lower_se:.3f} and {upper:.3f} ±"
        f" {upper_se:.3f} nats; the ELBO is {elbo.value:.3f} ± {elbo.stderr:.3f}, so q is about"
        f" {max(lower - elbo.value, 0.0):.2g} nats from the posterior."
    )
    return Finding(
        "evidence",
        float(width),
        float(np.hypot(lower_se, upper_se)),
        case.standards.width,
        Verdict.PASS if width < case.standards.width else Verdict.CAUTION,
        why,
        "Burda et al. 2016, eq. 8; Dieng et al. 2017, eq. 2",
        detail=EvidenceDetail(lower, lower_se, upper, upper_se, elbo),
    )


@register("precision", place=110)
@register("precision", place=210, of="chains", stage=Stage.SEARCH)
def precision(case: Case) -> Finding:
    """Whether the log density computes in float64: rounding hides the way to the optimum."""
    target = case.sample.target
    narrow = isinstance(target, KnowsPrecision) and target.returns_float32
    why = (
        "The log density returns float32 values: about seven digits, which limits every number"
        " here. Remove casts to float32."
        if narrow
        else "The log density computes in float64."
    )
    return Finding(
        "precision",
        float(narrow),
        np.nan,
        0.0,
        Verdict.CAUTION if narrow else Verdict.PASS,
        why,
        "docs/certificate.md, precision",
        about=About.DENSITY,
    )
