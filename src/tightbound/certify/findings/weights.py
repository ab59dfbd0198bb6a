"""The findings that need nothing but fresh draws.

Finite, converged, k-hat, evidence, moments, precision.
"""

import numpy as np

from ..._numerics import logmeanexp
from ..corrections import MomentTable
from ..draws import FreshDraws
from ..finding import Finding, Verdict
from ..psis import khat_of, khat_threshold, tail_size

_GROUP = 100  # weights averaged in each bound on the evidence
_SHIFT = 0.05  # posterior sds that q's mean may still have to move
_STRETCH = 0.15  # nats per log sd: an sd of a Gaussian posterior that is 7 % too narrow or wide
# posterior sds in the mean, or relative in the sd, that a correction may amount to
_CORRECTION = 0.1
_ENOUGH = 400  # effective draws
_TOO_FEW = 60  # effective draws below which corrected summaries are noise
# share of effective draws from which on the shape of the weights' tail does not matter
_NEARLY_ALL = 0.95
# the same for k-hat above 1, where the sample does not show what the tail holds: a t with three
# degrees
_ALL_BUT_ALL = 0.99
# kurtosis from which the tail of a value is looked at; 3 is Gaussian, 9 the t with five degrees
_HEAVY = 10.0


def finite(draws: FreshDraws) -> Finding:
    """Whether the log density was finite at every draw of q.

    Where not, in which parameters those draws stand out.
    """
    bad = ~draws.finite
    count = int(bad.sum())
    share = count / len(bad)
    verdict = Verdict.PASS if count == 0 else Verdict.CAUTION if share < 0.01 else Verdict.FAIL
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
        "finite", float(count), np.nan, 0.0, verdict, why, "docs/certificate.md, finite", where
    )


def _where_bad(draws: FreshDraws, bad: np.ndarray) -> tuple[str, ...]:
    """At most three coordinates in which the bad draws differ in mean or spread from all, beyond
    chance and by most.
    """
    z, count = draws.z, bad.sum()
    u = (z - z.mean(axis=0)) / (z.std(axis=0) + 1e-300)
    kurtosis = np.maximum(np.mean(u**4, axis=0) - 1.0, 1e-3)
    lean = np.abs(u[bad].mean(axis=0)) * np.sqrt(count)
    spread = np.abs(np.mean(u[bad] ** 2, axis=0) - 1.0) * np.sqrt(count / kurtosis)
    size = np.maximum(lean, spread)
    stands_out = (size > 4.0) & (size > 0.5 * size.max())
    return tuple(
        f"`{draws.target.coordinate_names[j]}`" for j in np.argsort(-size)[:3] if stands_out[j]
    )


def converged(draws: FreshDraws) -> Finding:
    """Whether the ELBO is stationary at q on fresh draws: in each mean, and in the scale of each
    coordinate.

    shift = S E_q[grad log p] / sd, in q's sds, with S and sd those of q's draws (E_q[grad log q] =
    0), and stretch = 1 + E_q[(z_j - mean_j) grad_j log p], the derivative of the ELBO in log sd_j;
    both vanish at the optimum of every family that is closed under moving and stretching a
    coordinate. Reads no solver's state.
    """
    good = draws.finite
    if good.sum() < 10:
        why = "Too few finite draws to judge convergence."
        return Finding(
            "converged", np.inf, np.nan, _SHIFT, Verdict.FAIL, why, "docs/certificate.md, converged"
        )
    everything = bool(good.all())
    z, scores = (draws.z, draws.scores) if everything else (draws.z[good], draws.scores[good])
    candidates = [
        _pull(
            draws,
            *_natural_shift(z, scores),
            (_SHIFT, 1.0, 2.0),
            "still pulls `{}` by {:.3g} ± {:.2g} sd",
        ),
        _pull(
            draws,
            *_stretch(z, scores),
            (_STRETCH, 0.75, 4.0),
            "still changes the sd of `{}`: by {:.3g} ± {:.2g} nats per log sd",
        ),
    ]
    return max(
        candidates, key=lambda f: (list(Verdict).index(f.verdict), f.value / (f.threshold or 1.0))
    )


def _pull(
    draws: FreshDraws,
    pull: np.ndarray,
    stderr: np.ndarray,
    limits: tuple[float, float, float],
    words: str,
) -> Finding:
    """The coordinate that the ELBO pulls hardest beyond its error.

    `limits` for caution and fail, and how many errors.

    The error of a stretch grows with the correlation of its coordinate with others (to units at
    condition 1e6), and the worst of many coordinates is looked at: hence four of them there.
    """
    excess = np.abs(pull) - limits[2] * stderr
    worst = int(np.argmax(excess))
    value, name = float(np.abs(pull[worst])), draws.target.coordinate_names[worst]
    verdict = (
        Verdict.PASS
        if excess[worst] < limits[0]
        else Verdict.CAUTION
        if excess[worst] < limits[1]
        else Verdict.FAIL
    )
    why = (
        f"On fresh draws the ELBO is stationary: no mean wants to move by more than {_SHIFT} sd"
        " beyond its error, and no sd to change."
        if verdict is Verdict.PASS
        else (
            f"On fresh draws the ELBO {words.format(name, value, stderr[worst])}; continue with"
            " tb.fit(target, fit.q)."
        )
    )
    source = "Khan & Rue 2023, section 3.1"
    return Finding(
        "converged", value, float(stderr[worst]), limits[0], verdict, why, source, (name,)
    )


def _stretch(z: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 + E[(z - mean) score] per coordinate and its standard error over pairs of draws."""
    products, half = (z - z.mean(axis=0)) * scores, len(z) // 2
    paired = 0.5 * (products[:half] + products[half : 2 * half])
    return 1.0 + products.mean(axis=0), paired.std(axis=0) / np.sqrt(half)


def _natural_shift(z: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """corr E[score sd] per coordinate and its standard error, corr the correlation of q's draws.

    Above a few hundred dimensions that correlation is not to be had from some thousand draws: there
    each coordinate's own push is judged.
    """
    count, dim = z.shape
    sd = z.std(axis=0) + 1e-300
    if dim > 500:
        return scores.mean(axis=0) * sd, scores.std(axis=0) * sd / np.sqrt(count)
    u, pushes = (z - z.mean(axis=0)) / sd, scores * sd
    correlation = u.T @ u / count
    half = count // 2
    paired = 0.5 * (pushes[:half] + pushes[half : 2 * half])
    spread = (paired - paired.mean(axis=0)) @ correlation
    return correlation @ pushes.mean(axis=0), np.sqrt(np.mean(spread**2, axis=0) / half)


def khat(draws: FreshDraws) -> Finding:
    """Pareto shape of the importance weights, read together with the effective sample size.

    k-hat alone misleads both ways: it can be 0.6 where 99 % of the draws are effective, or above 1
    on a benign posterior of a thousand dimensions; and a good k-hat with few effective draws leaves
    summaries noisy.
    """
    s = draws.smoothed
    count, threshold = len(draws.log_w), khat_threshold(len(draws.log_w))
    verdict = judge_weights(s.khat, s.ess, count)
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
    source = "Vehtari et al. 2024, sections 2-3"
    return Finding(
        "khat",
        float(s.khat),
        float(s.khat_stderr),
        threshold,
        verdict,
        why,
        source,
        detail={"ess": s.ess},
    )


def judge_weights(khat: float, ess: float, count: int) -> Verdict:
    """What k-hat and the effective sample size of `count` weights say together."""
    if khat < khat_threshold(count) and ess >= _ENOUGH:
        return Verdict.PASS
    if (khat <= 1.0 and ess >= _TOO_FEW) or ess >= 0.5 * count:
        enough = _NEARLY_ALL if khat <= 1.0 else _ALL_BUT_ALL
        return Verdict.PASS if ess >= enough * count else Verdict.CAUTION
    return Verdict.FAIL


def parameter_khat(draws: FreshDraws, table: MomentTable, x: np.ndarray) -> Finding:
    """The largest k-hat of weight times centred value, over values `x [S, P]`.

    One bad marginal hides in the joint one.
    """
    # where q is nearly exact the products are rounding-sized: their tail shape says nothing that
    # matters
    matters = np.flatnonzero(table.mean_stderr > 0.02 * table.corrected_sd)
    k, threshold = np.full(x.shape[1], -np.inf), khat_threshold(len(x))
    excess = (draws.smoothed.weights - 1.0 / len(x))[:, None]
    for part in np.array_split(matters, max(1, len(matters) // 64)):
        if len(part):
            k[part] = khat_of(excess * (x[:, part] - table.mean[part]))
    worst = int(np.argmax(k))
    value, stderr = float(k[worst]), (1.0 + max(float(k[worst]), 0.0)) / np.sqrt(tail_size(len(x)))
    # the worst of many noisy shapes: it has to exceed the threshold by its own error
    verdict = Verdict.PASS if value - stderr < threshold else Verdict.CAUTION
    name = table.names[worst]
    why = (
        "No parameter's corrected mean rests on a few large weights."
        if verdict is Verdict.PASS
        else f"The corrected mean of `{name}` rests on a few large weights (k-hat {value:.2f})."
    )
    detail = {"names": table.names, "khat": k}
    return Finding(
        "khat per parameter",
        value,
        stderr,
        threshold,
        verdict,
        why,
        "Vehtari et al. 2024, section 3.3",
        (name,),
        detail,
    )


def evidence(draws: FreshDraws) -> Finding:
    """The sandwich on log Z: averages of K = 100 weights bound it from below, and by their second
    moment from above.

    Lower: E log mean_K w (IWELBO). Upper: half the log of E (mean_K w)^2 (chi bound of order 2),
    plus what the fitted tail of the weights holds beyond the largest one that was drawn. No sample
    of q can bound a mode where q never goes: such rivals, where the dispersed searches find them,
    are added to the upper end by the certificate.
    """
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
    width = upper + 2 * upper_se - (lower - 2 * lower_se)
    verdict = Verdict.PASS if width < 1.0 else Verdict.CAUTION
    why = (
        f"The log evidence lies between {lower:.3f} ± {lower_se:.3f} and {upper:.3f} ±"
        f" {upper_se:.3f} nats; the ELBO is {elbo.value:.3f} ± {elbo.stderr:.3f}, so q is about"
        f" {max(lower - elbo.value, 0.0):.2g} nats from the posterior."
    )
    detail = {
        "lower": lower,
        "lower_stderr": lower_se,
        "upper": upper,
        "upper_stderr": upper_se,
        "elbo": elbo,
    }
    source = "Burda et al. 2016, eq. 8; Dieng et al. 2017, eq. 2"
    return Finding(
        "evidence",
        float(width),
        float(np.hypot(lower_se, upper_se)),
        1.0,
        verdict,
        why,
        source,
        detail=detail,
    )


def tails(draws: FreshDraws, table: MomentTable, x: np.ndarray) -> Finding:
    """Whether each sd rests on many draws: k-hat of weight times squared deviation, for values with
    long tails.

    A law without a variance (or with one that a sample does not show) has quantiles that can be
    trusted, and no sd.
    """
    squares = draws.smoothed.weights[:, None] * (x - table.corrected_mean) ** 2
    total = np.maximum(squares.sum(axis=0), 1e-150)
    kurtosis = draws.smoothed.ess * (squares**2).sum(axis=0) / total**2  # 3 for a Gaussian
    heavy = np.flatnonzero(kurtosis > _HEAVY)
    k, threshold = np.full(x.shape[1], -np.inf), khat_threshold(len(x))
    for part in np.array_split(heavy, max(1, len(heavy) // 64)):
        if len(part):
            k[part] = khat_of(squares[:, part])
    worst = int(np.argmax(k))
    value, stderr = float(k[worst]), (1.0 + max(float(k[worst]), 0.0)) / np.sqrt(tail_size(len(x)))
    verdict = Verdict.PASS if value - stderr < threshold else Verdict.CAUTION
    name = table.names[worst]
    why = (
        "Every sd rests on many draws."
        if verdict is Verdict.PASS
        else (
            f"The sd of `{name}` rests on a few draws far out (k-hat {value:.2f}): read its"
            " quantiles instead."
        )
    )
    where = tuple(table.names[j] for j in np.argsort(-k)[:5] if k[j] >= threshold)
    return Finding(
        "tails", value, stderr, threshold, verdict, why, "Vehtari et al. 2024, section 3.3", where
    )


def moments(table: MomentTable) -> Finding:
    """How much the importance weights would correct q's own means (in sds) and sds (relative),
    beyond Monte Carlo error.
    """
    shift = np.maximum(np.abs(table.shift) - 2.0 * table.shift_stderr, 0.0)
    ratio = np.maximum(np.abs(table.log_sd_ratio) - 2.0 * table.log_sd_stderr, 0.0)
    size = np.maximum(shift, ratio)
    worst = int(np.argmax(size))
    verdict = Verdict.PASS if size[worst] <= _CORRECTION else Verdict.CAUTION
    name = table.names[worst]
    moved, wider = table.shift[worst], np.exp(table.log_sd_ratio[worst])
    why = (
        "The importance weights leave all means within 0.1 sd and all sds within 10 % of q's own."
        if verdict is Verdict.PASS
        else (
            f"The weights move the mean of `{name}` by {moved:+.3g} sd and multiply its sd by"
            f" {wider:.3g}: q itself is off there."
        )
    )
    order = np.argsort(-size)
    where = tuple(table.names[j] for j in order[:5] if size[j] > _CORRECTION)
    detail = {
        "names": table.names,
        "shift": table.shift,
        "log_sd_ratio": table.log_sd_ratio,
        "order": order,
    }
    return Finding(
        "moments",
        float(size[worst]),
        float(table.shift_stderr[worst]),
        _CORRECTION,
        verdict,
        why,
        "docs/certificate.md, moments",
        where,
        detail,
    )


def noise(table: MomentTable) -> Finding:
    """The largest Monte Carlo error of a corrected mean, in posterior sds, among values whose
    correction is used.
    """
    used = np.where(table.believed, table.shift_stderr, 0.0)
    worst = int(np.argmax(used))
    verdict = Verdict.PASS if used[worst] <= 0.04 else Verdict.CAUTION
    name = table.names[worst]
    why = (
        "Corrected means carry less than 0.04 sd of Monte Carlo error."
        if verdict is Verdict.PASS
        else f"The corrected mean of `{name}` carries {used[worst]:.2f} sd of Monte Carlo error."
    )
    return Finding(
        "noise",
        float(used[worst]),
        np.nan,
        0.04,
        verdict,
        why,
        "docs/certificate.md, noise",
        (name,),
    )


def precision(draws: FreshDraws) -> Finding:
    """Whether the log density computes in float64; float32 rounding hides the way to the optimum."""
    narrow = bool(getattr(draws.target, "returns_float32", False))
    why = (
        "The log density returns float32 values: about seven digits, which limits every number"
        " here. Remove casts to float32."
        if narrow
        else "The log density computes in float64."
    )
    verdict = Verdict.CAUTION if narrow else Verdict.PASS
    return Finding(
        "precision", float(narrow), np.nan, 0.0, verdict, why, "docs/certificate.md, precision"
    )
