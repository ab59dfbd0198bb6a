"""Mass next to q that q does not cover: importance sampling from a wider law than q itself.

Weights at draws of q say nothing of where q never draws. A family refitted by the ELBO can settle
on one arm of a bent posterior with good weights on that arm; draws from inflated Gaussians around q
reach the other one in few dimensions.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..._numerics import host_rng, logmeanexp
from ...families.base import AbstractFamily
from ..draws import FreshDraws, Whitening
from ..finding import About, Case, Finding, FindingDetail, MissedMass, Verdict, register
from ..psis import smooth
from ..standards import STANDARDS, Effort, Standards

# Standard deviations of |u|^2 by which the inflated Gaussians lie outside q. 0 is q's own scale,
# without which a draw near q would have a huge weight.
_WIDTHS = (0.0, 3.0, 8.0)
_FEWEST = 100  # finite draws of q that its scales are taken from


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoverageDetail(MissedMass):
    """The log evidence by the wider law, nats, and its standard error."""

    log_evidence: float
    log_evidence_stderr: float


class _Wide(NamedTuple):
    """Draws of the wider law in whitened coordinates, its log density and the target's."""

    u: Float[np.ndarray, "n dim"]
    log_wide: Float[np.ndarray, "n"]
    log_p: Float[np.ndarray, "n"]


def _cost(dim: int, effort: Effort) -> int:
    return effort.wide_draws


@register("coverage", place=90, cost=_cost)
def coverage(case: Case) -> Finding:
    """The share of the posterior found by a wider law where q has next to no density.

    That is less than 1/20 of the posterior's. In d dimensions the wider laws are Gaussians with q's
    mean and covariance times 1 + w sqrt(2 / d), w in {0, 3, 8}: up to three times q's sds in the
    plane, 1.5 times in 50 dimensions. Where their own weights are too uneven to say anything, the
    finding passes and says so.
    """
    draws, effort, standards = case.sample, case.effort, case.standards
    nothing = "Too many dimensions, or too few finite draws, for a wider law to reach beyond q."
    if draws.finite.sum() < _FEWEST:
        return _finding(0.0, 0.0, nothing, standards)
    white, dim = Whitening.of(draws.z[draws.finite]), draws.z.shape[1]
    if white.root.ndim == 1:
        return _finding(0.0, 0.0, nothing, standards)
    scales = np.sqrt(1.0 + np.array(_WIDTHS) * np.sqrt(2.0 / dim))
    rng = host_rng(case.key, "coverage")
    wide = _wide_draws(case, white, scales, rng, effort.wide_draws)
    found = _share(case, white, wide)
    if found.verdict is Verdict.PASS and found.value > standards.coverage:  # too few to tell
        more = _wide_draws(case, white, scales, rng, effort.more_wide_draws)
        both = (np.concatenate(pair) for pair in zip(wide, more, strict=True))
        looked = _share(case, white, _Wide(*both))
        # One heavy draw can leave the second look with nothing to say
        found = looked if _says_something(looked) else found
    return found


def _says_something(finding: Finding) -> bool:
    return isinstance(finding.detail, CoverageDetail)


def _wide_draws(
    case: Case,
    white: Whitening,
    scales: Float[np.ndarray, "laws"],
    rng: np.random.Generator,
    count: int,
) -> _Wide:
    u = rng.standard_normal((count, len(white.mean))) * np.resize(scales, count)[:, None]
    log_p, _ = case.sample.density(white.mean + u @ white.root.T)
    log_p = np.where(np.isfinite(log_p), log_p, -np.inf)
    return _Wide(u, _log_mixture(u, scales) - white.log_det, log_p)


def _share(case: Case, white: Whitening, wide: _Wide) -> Finding:
    """The finding from draws of the wider law."""
    standards = case.standards
    u, log_wide, log_p = wide
    weights = smooth(log_p - log_wide)
    if weights.ess < standards.coverage_least:
        why = (
            f"A wider law says nothing here: {weights.ess:.0f} of its {len(u)} draws are effective."
        )
        return _finding(0.0, 0.0, why, standards)
    log_q = case.q.log_prob_on_host(white.mean + u @ white.root.T)
    outside = log_p - log_q - logmeanexp(case.sample.log_w) > np.log(standards.uncovered)
    share, error = _weighted_share(weights.weights, outside)
    why = "A wider law found no mass beside q that q does not cover."
    if _is_missing(share, error, standards):
        why = (
            f"A wider law found {share:.0%} of the posterior beside q, where q has next to no"
            " density."
        )
    evidence = logmeanexp(log_p - log_wide), float(weights.ess**-0.5)
    return _finding(share, error, why, standards, evidence)


def misses(
    q: AbstractFamily, draws: FreshDraws, seen: FreshDraws, standards: Standards = STANDARDS
) -> bool:
    """Whether weighted draws of another approximation show mass where q has none.

    `seen` are these, `draws` are q's own.
    """
    if seen.smoothed.ess < standards.coverage_least:
        return False
    log_q = q.log_prob_on_host(seen.z)
    outside = seen.log_w + seen.log_q - log_q - logmeanexp(draws.log_w) > np.log(
        standards.uncovered
    )
    return _is_missing(*_weighted_share(seen.smoothed.weights, outside), standards)


def _is_missing(share: float, error: float, standards: Standards) -> bool:
    return share - standards.errors * error > standards.coverage


def _weighted_share(
    weights: Float[np.ndarray, "n"], outside: Bool[np.ndarray, "n"]
) -> tuple[float, float]:
    """The weight of the draws outside, and its standard error."""
    share = float(weights[outside].sum())
    return share, float(np.sqrt(np.sum((weights * (outside - share)) ** 2)))


def _log_mixture(
    u: Float[np.ndarray, "n dim"], scales: Float[np.ndarray, "laws"]
) -> Float[np.ndarray, "n"]:
    """Log density of the equal mixture of N(0, s^2 I)."""
    squares, dim = np.sum(u**2, axis=1), u.shape[1]
    each = (
        -0.5 * squares[:, None] / scales**2 - dim * np.log(scales) - 0.5 * dim * np.log(2 * np.pi)
    )
    return np.logaddexp.reduce(each, axis=1) - np.log(len(scales))


def _finding(
    share: float,
    error: float,
    why: str,
    standards: Standards,
    evidence: tuple[float, float] | None = None,
) -> Finding:
    """`evidence`: the log evidence by the wider law and its error, where it says something."""
    missing, detail = _is_missing(share, error, standards), FindingDetail()
    if evidence is not None:
        value, stderr = evidence
        # Where nothing is missing, q's own bounds are the better ones
        seen = value + standards.errors * stderr if missing else -np.inf
        detail = CoverageDetail(log_evidence=value, log_evidence_stderr=stderr, seen=seen)
    return Finding(
        "coverage",
        share,
        error,
        standards.coverage,
        Verdict.CAUTION if missing else Verdict.PASS,
        why,
        "Owen & Zhou 2000 (defensive mixtures)",
        detail=detail,
        about=About.ELSEWHERE,
    )


__all__ = ["CoverageDetail", "coverage", "misses"]
