"""Mass next to q that q does not cover: importance sampling from a wider law than q itself.

Weights at draws of q say nothing of where q never draws. A family refitted by the ELBO can settle on one arm of a bent
posterior with good weights on that arm; draws from inflated Gaussians around q reach the other one in few dimensions.
"""

from typing import Any

import numpy as np

from .._numerics import host_rng, logmeanexp
from ..families.base import AbstractFamily
from ..targets.batched import batched
from .base import Finding, Verdict
from .draws import FreshDraws
from .optima import Whitening
from .psis import smooth

_WIDTHS = (0.0, 3.0, 8.0)  # sds of |u|^2 by which the inflated Gaussians lie outside q
_DRAWS = 1800
_UNCOVERED = np.log(20.0)  # log p / (q Z) beyond which a draw counts as not covered
_MISSING = 0.02  # share of the posterior
_ENOUGH = 30  # effective draws of the wide law below which the finding says nothing


def coverage(draws: FreshDraws, q: AbstractFamily, key: Any) -> Finding:
    """The share of the posterior found by a wider law where q has less than 1/20 of the posterior's density.

    In d dimensions the wider laws are Gaussians with q's mean and covariance times 1 + w sqrt(2 / d), w in {0, 3, 8}: up
    to three times q's sds in the plane, 1.5 times in 50 dimensions. Where their own weights are too uneven to say
    anything, the finding passes and says so.
    """
    dim, nothing = draws.z.shape[1], "Too many dimensions, or too few finite draws, for a wider law to reach beyond q."
    if draws.finite.sum() < 100:
        return _finding(0.0, 0.0, nothing)
    white = Whitening.of(draws.z[draws.finite])
    if white.root.ndim == 1:
        return _finding(0.0, 0.0, nothing)
    scales = np.sqrt(1.0 + np.array(_WIDTHS) * np.sqrt(2.0 / dim))
    rng = host_rng(key, "coverage")
    u = rng.standard_normal((_DRAWS, dim)) * np.resize(scales, _DRAWS)[:, None]
    log_wide = _log_mixture(u, scales) - white.log_det
    z = white.mean + u @ white.root.T
    log_p, _ = batched(draws.target)(z)
    log_p = np.where(np.isfinite(log_p), log_p, -np.inf)
    weights = smooth(log_p - log_wide)
    if weights.ess < _ENOUGH:
        return _finding(0.0, 0.0, f"A wider law says nothing here: {weights.ess:.0f} of its {_DRAWS} draws are effective.")
    log_evidence = logmeanexp(draws.log_w)
    outside = log_p - q.log_prob_on_host(z) - log_evidence > _UNCOVERED
    share = float(weights.weights[outside].sum())
    error = float(np.sqrt(np.sum((weights.weights * (outside - share)) ** 2)))
    why = "A wider law found no mass beside q that q does not cover."
    if share - 2.0 * error > _MISSING:
        why = f"A wider law found {share:.0%} of the posterior beside q, where q has next to no density."
    raw = logmeanexp(log_p - log_wide)
    return _finding(share, error, why, {"log_evidence": raw, "log_evidence_stderr": float(weights.ess**-0.5)})


def _log_mixture(u: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Log density of the equal mixture of N(0, s^2 I) at `u [n, d]`."""
    squares, dim = np.sum(u**2, axis=1), u.shape[1]
    each = -0.5 * squares[:, None] / scales**2 - dim * np.log(scales) - 0.5 * dim * np.log(2 * np.pi)
    return np.logaddexp.reduce(each, axis=1) - np.log(len(scales))


def _finding(share: float, error: float, why: str, detail: dict[str, float] | None = None) -> Finding:
    verdict = Verdict.CAUTION if share - 2.0 * error > _MISSING else Verdict.PASS
    return Finding(
        "coverage", share, error, _MISSING, verdict, why, "Owen & Zhou 2000 (defensive mixtures)", detail=detail or {}
    )
