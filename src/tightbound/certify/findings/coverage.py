"""Mass next to q that q does not cover: importance sampling from a wider law than q itself.

Weights at draws of q say nothing of where q never draws. A family refitted by the ELBO can settle
on one arm of a bent posterior with good weights on that arm; draws from inflated Gaussians around q
reach the other one in few dimensions.
"""

from typing import Any

import numpy as np

from ..._numerics import host_rng, logmeanexp
from ...families.base import AbstractFamily
from ...targets.batched import batched
from ..draws import FreshDraws
from ..finding import Finding, Verdict
from ..psis import smooth
from .optima import Whitening

_WIDTHS = (0.0, 3.0, 8.0)  # sds of |u|^2 by which the inflated Gaussians lie outside q
_DRAWS = 1800
_MORE = 7200  # where the first ones hint at something
_UNCOVERED = np.log(20.0)  # log p / (q Z) beyond which a draw counts as not covered
_MISSING = 0.02  # share of the posterior
_ENOUGH = 30  # effective draws of the wide law below which the finding says nothing


def coverage(draws: FreshDraws, q: AbstractFamily, key: Any) -> Finding:
    """The share of the posterior found by a wider law where q has less than 1/20 of the posterior's
    density.

    In d dimensions the wider laws are Gaussians with q's mean and covariance times 1 + w sqrt(2 /
    d), w in {0, 3, 8}: up to three times q's sds in the plane, 1.5 times in 50 dimensions. Where
    their own weights are too uneven to say anything, the finding passes and says so.
    """
    dim, nothing = (
        draws.z.shape[1],
        "Too many dimensions, or too few finite draws, for a wider law to reach beyond q.",
    )
    if draws.finite.sum() < 100:
        return _finding(0.0, 0.0, nothing)
    white = Whitening.of(draws.z[draws.finite])
    if white.root.ndim == 1:
        return _finding(0.0, 0.0, nothing)
    scales, rng = np.sqrt(1.0 + np.array(_WIDTHS) * np.sqrt(2.0 / dim)), host_rng(key, "coverage")
    u, log_wide, log_p = _wide_draws(draws, white, scales, rng, _DRAWS)
    found = _share(draws, q, white, u, log_wide, log_p)
    if found.verdict is Verdict.PASS and found.value > _MISSING:  # too few draws to tell
        more = _wide_draws(draws, white, scales, rng, _MORE)
        u, log_wide, log_p = (
            np.concatenate(both) for both in zip((u, log_wide, log_p), more, strict=True)
        )
        looked = _share(draws, q, white, u, log_wide, log_p)
        # one heavy draw can leave the second look with nothing to say
        found = looked if looked.detail else found
    return found


def _wide_draws(
    draws: FreshDraws, white: Whitening, scales: np.ndarray, rng: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws `[count, d]` of the wider law in whitened coordinates, its log density and the
    target's.
    """
    u = rng.standard_normal((count, len(white.mean))) * np.resize(scales, count)[:, None]
    log_p, _ = batched(draws.target)(white.mean + u @ white.root.T)
    return u, _log_mixture(u, scales) - white.log_det, np.where(np.isfinite(log_p), log_p, -np.inf)


def _share(
    draws: FreshDraws,
    q: AbstractFamily,
    white: Whitening,
    u: np.ndarray,
    log_wide: np.ndarray,
    log_p: np.ndarray,
) -> Finding:
    """The finding from draws of the wider law."""
    weights = smooth(log_p - log_wide)
    if weights.ess < _ENOUGH:
        return _finding(
            0.0,
            0.0,
            f"A wider law says nothing here: {weights.ess:.0f} of its {len(u)} draws are"
            " effective.",
        )
    outside = (
        log_p - q.log_prob_on_host(white.mean + u @ white.root.T) - logmeanexp(draws.log_w)
        > _UNCOVERED
    )
    share, error = _weighted_share(weights.weights, outside)
    why = "A wider law found no mass beside q that q does not cover."
    if share - 2.0 * error > _MISSING:
        why = (
            f"A wider law found {share:.0%} of the posterior beside q, where q has next to no"
            " density."
        )
    raw = logmeanexp(log_p - log_wide)
    return _finding(
        share, error, why, {"log_evidence": raw, "log_evidence_stderr": float(weights.ess**-0.5)}
    )


def misses(q: AbstractFamily, draws: FreshDraws, seen: FreshDraws) -> bool:
    """Whether `seen`, weighted draws of another approximation, show mass where q (whose own draws
    are `draws`) has none.
    """
    if seen.smoothed.ess < _ENOUGH:
        return False
    outside = (
        seen.log_w + seen.log_q - q.log_prob_on_host(seen.z) - logmeanexp(draws.log_w) > _UNCOVERED
    )
    share, error = _weighted_share(seen.smoothed.weights, outside)
    return share - 2.0 * error > _MISSING


def _weighted_share(weights: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """The weight of the draws outside, and its standard error."""
    share = float(weights[outside].sum())
    return share, float(np.sqrt(np.sum((weights * (outside - share)) ** 2)))


def _log_mixture(u: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Log density of the equal mixture of N(0, s^2 I) at `u [n, d]`."""
    squares, dim = np.sum(u**2, axis=1), u.shape[1]
    each = (
        -0.5 * squares[:, None] / scales**2 - dim * np.log(scales) - 0.5 * dim * np.log(2 * np.pi)
    )
    return np.logaddexp.reduce(each, axis=1) - np.log(len(scales))


def _finding(
    share: float, error: float, why: str, detail: dict[str, float] | None = None
) -> Finding:
    verdict = Verdict.CAUTION if share - 2.0 * error > _MISSING else Verdict.PASS
    return Finding(
        "coverage",
        share,
        error,
        _MISSING,
        verdict,
        why,
        "Owen & Zhou 2000 (defensive mixtures)",
        detail=detail or {},
    )
