"""What the weights make of each mean and each sd, and whether q still wants to move."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from ..draws import FreshDraws, MomentTable
from ..finding import NAMED, SEVERITY, About, Case, Finding, FindingDetail, Verdict, register
from ..psis import khat_error, khat_of, khat_threshold
from ..standards import Standards

_TOGETHER = 64  # columns whose tails are fitted at a time: their copies are sorted in the cache
# Dimensions above which the correlation of q's draws is not to be had from some thousand of them.
_MANY = 500


@dataclasses.dataclass(frozen=True)
class MomentsDetail(FindingDetail):
    """The corrections of every value, and the order of their sizes.

    Attributes:
        shift: of the mean, in posterior sds.
        log_sd_ratio: log of the corrected sd over q's.
        order: of the values, the largest correction first.
    """

    names: tuple[str, ...]
    shift: Float[np.ndarray, "p"]
    log_sd_ratio: Float[np.ndarray, "p"]
    order: Int[np.ndarray, "p"]


@dataclasses.dataclass(frozen=True)
class ParameterKhatDetail(FindingDetail):
    """k-hat of every value; -inf where it was not looked at."""

    names: tuple[str, ...]
    khat: Float[np.ndarray, "p"]


@register("converged", place=20)
def converged(case: Case) -> Finding:
    """Whether the ELBO is stationary at q on fresh draws, in each mean and each sd.

    shift = S E_q[grad log p] / sd, in q's sds, with S and sd those of q's draws (E_q[grad log q] =
    0), and stretch = 1 + E_q[(z_j - mean_j) grad_j log p], the derivative of the ELBO in log sd_j;
    both vanish at the optimum of every family that is closed under moving and stretching a
    coordinate. Reads no solver's state.
    """
    draws, standards = case.sample, case.standards
    good = draws.finite
    if good.sum() < standards.finite_least:
        return Finding(
            "converged",
            np.inf,
            np.nan,
            standards.shift,
            Verdict.FAIL,
            "Too few finite draws to judge convergence.",
            "docs/certificate.md, converged",
            about=About.SEARCH,
        )
    everything = bool(good.all())
    z, scores = (draws.z, draws.scores) if everything else (draws.z[good], draws.scores[good])
    candidates = [
        _pull(
            draws,
            *_natural_shift(z, scores),
            (standards.shift, standards.shift_fail, standards.errors),
            "still pulls `{}` by {:.3g} ± {:.2g} sd",
            standards,
        ),
        _pull(
            draws,
            *_stretch(z, scores),
            (standards.stretch, standards.stretch_fail, standards.stretch_errors),
            "still changes the sd of `{}`: by {:.3g} ± {:.2g} nats per log sd",
            standards,
        ),
    ]
    return max(candidates, key=lambda f: (SEVERITY[f.verdict], f.value / (f.threshold or 1.0)))


def _pull(
    draws: FreshDraws,
    pull: Float[np.ndarray, "dim"],
    stderr: Float[np.ndarray, "dim"],
    limits: tuple[float, float, float],
    words: str,
    standards: Standards,
) -> Finding:
    """The coordinate that the ELBO pulls hardest beyond its error.

    `limits`: for caution and for fail, and how many standard errors are taken off first.
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
        "On fresh draws the ELBO is stationary: no mean wants to move by more than"
        f" {standards.shift:g} sd beyond its error, and no sd to change."
        if verdict is Verdict.PASS
        else (
            f"On fresh draws the ELBO {words.format(name, value, stderr[worst])}; continue with"
            " tb.fit(target, fit.q)."
        )
    )
    return Finding(
        "converged",
        value,
        float(stderr[worst]),
        limits[0],
        verdict,
        why,
        "Khan & Rue 2023, section 3.1",
        (name,),
        about=About.SEARCH,
    )


def _stretch(
    z: Float[np.ndarray, "n dim"], scores: Float[np.ndarray, "n dim"]
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"]]:
    """1 + E[(z - mean) score] per coordinate and its standard error over pairs of draws."""
    products, half = (z - z.mean(axis=0)) * scores, len(z) // 2
    paired = 0.5 * (products[:half] + products[half : 2 * half])
    return 1.0 + products.mean(axis=0), paired.std(axis=0) / np.sqrt(half)


def _natural_shift(
    z: Float[np.ndarray, "n dim"], scores: Float[np.ndarray, "n dim"]
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"]]:
    """corr E[score sd] per coordinate and its standard error, corr the correlation of q's draws.

    Above a few hundred dimensions that correlation is not to be had from some thousand draws: there
    each coordinate's own push is judged.
    """
    count, dim = z.shape
    sd = z.std(axis=0) + 1e-300
    if dim > _MANY:
        return scores.mean(axis=0) * sd, scores.std(axis=0) * sd / np.sqrt(count)
    u, pushes = (z - z.mean(axis=0)) / sd, scores * sd
    correlation = u.T @ u / count
    half = count // 2
    paired = 0.5 * (pushes[:half] + pushes[half : 2 * half])
    spread = (paired - paired.mean(axis=0)) @ correlation
    return correlation @ pushes.mean(axis=0), np.sqrt(np.mean(spread**2, axis=0) / half)


def _worst_table(
    case: Case, judge: Callable[[Case, MomentTable, Float[np.ndarray, "n p"]], Finding]
) -> Finding:
    """The worse of what the coordinates and the user's values say."""
    found = [judge(case, table, x) for table, x in case.sample.tables]
    return max(found, key=lambda f: (SEVERITY[f.verdict], f.value))


@register("moments", place=50)
def moments(case: Case) -> Finding:
    """How far the weights would correct q's own means and sds, beyond their error.

    Means are in posterior sds, sds relative.
    """
    return _worst_table(case, _moments)


def _moments(case: Case, table: MomentTable, x: Float[np.ndarray, "n p"]) -> Finding:
    standards = case.standards
    shift = np.maximum(np.abs(table.shift) - standards.errors * table.shift_stderr, 0.0)
    ratio = np.maximum(np.abs(table.log_sd_ratio) - standards.errors * table.log_sd_stderr, 0.0)
    # One size for both: a correction of an sd counts as that of a mean at its own limit
    size = np.maximum(shift, ratio * (standards.mean / standards.sd))
    worst = int(np.argmax(size))
    verdict = Verdict.PASS if size[worst] <= standards.mean else Verdict.CAUTION
    name = table.names[worst]
    moved, wider = table.shift[worst], np.exp(table.log_sd_ratio[worst])
    why = (
        f"The importance weights leave all means within {standards.mean:g} sd and all sds within"
        f" {100 * standards.sd:.3g} % of q's own."
        if verdict is Verdict.PASS
        else (
            f"The weights move the mean of `{name}` by {moved:+.3g} sd and multiply its sd by"
            f" {wider:.3g}: q itself is off there."
        )
    )
    order = np.argsort(-size)
    return Finding(
        "moments",
        float(size[worst]),
        float(table.shift_stderr[worst]),
        standards.mean,
        verdict,
        why,
        "docs/certificate.md, moments",
        tuple(table.names[j] for j in order[:NAMED] if size[j] > standards.mean),
        MomentsDetail(table.names, table.shift, table.log_sd_ratio, order),
    )


@register("noise", place=60)
def noise(case: Case) -> Finding:
    """The largest Monte Carlo error, in posterior sds, of a corrected mean that is used."""
    return _worst_table(case, _noise)


def _noise(case: Case, table: MomentTable, x: Float[np.ndarray, "n p"]) -> Finding:
    limit = case.standards.noise
    used = np.where(table.believed(case.standards), table.shift_stderr, 0.0)
    worst = int(np.argmax(used))
    verdict = Verdict.PASS if used[worst] <= limit else Verdict.CAUTION
    name = table.names[worst]
    why = (
        f"Corrected means carry less than {limit:g} sd of Monte Carlo error."
        if verdict is Verdict.PASS
        else f"The corrected mean of `{name}` carries {used[worst]:.2f} sd of Monte Carlo error."
    )
    return Finding(
        "noise",
        float(used[worst]),
        np.nan,
        limit,
        verdict,
        why,
        "docs/certificate.md, noise",
        (name,),
    )


@register("khat per parameter", place=70)
def parameter_khat(case: Case) -> Finding:
    """The largest k-hat of weight times centred value: one bad marginal hides in the joint one."""
    return _worst_table(case, _parameter_khat)


def _parameter_khat(case: Case, table: MomentTable, x: Float[np.ndarray, "n p"]) -> Finding:
    # Where q is nearly exact the products are rounding-sized: their tail shape says nothing that
    # matters
    looked_at = np.flatnonzero(table.mean_stderr > case.standards.matters * table.corrected_sd)
    excess = (case.sample.smoothed.weights - 1.0 / len(x))[:, None]
    k = _khat_of_columns(looked_at, x.shape, lambda part: excess * (x[:, part] - table.mean[part]))
    worst, stderr, verdict = _judged(k, len(x), case.standards)
    name, value = table.names[worst], float(k[worst])
    why = (
        "No parameter's corrected mean rests on a few large weights."
        if verdict is Verdict.PASS
        else f"The corrected mean of `{name}` rests on a few large weights (k-hat {value:.2f})."
    )
    return Finding(
        "khat per parameter",
        value,
        stderr,
        khat_threshold(len(x), case.standards),
        verdict,
        why,
        "Vehtari et al. 2024, section 3.3",
        (name,),
        ParameterKhatDetail(table.names, k),
    )


@register("tails", place=80)
def tails(case: Case) -> Finding:
    """Whether each sd rests on many draws: k-hat of weight times squared deviation.

    Looks at values with long tails, among those that the summary prints. A law without a variance
    (or with one that a sample does not show) has quantiles that can be trusted, and no sd.
    """
    table, x = case.sample.tables[-1]
    threshold = khat_threshold(len(x), case.standards)
    squares = case.sample.smoothed.weights[:, None] * (x - table.corrected_mean) ** 2
    total = np.maximum(squares.sum(axis=0), 1e-150)  # its square must not underflow
    kurtosis = case.sample.smoothed.ess * (squares**2).sum(axis=0) / total**2  # 3 for a Gaussian
    heavy = np.flatnonzero(kurtosis > case.standards.kurtosis)
    k = _khat_of_columns(heavy, x.shape, lambda part: squares[:, part])
    worst, stderr, verdict = _judged(k, len(x), case.standards)
    name, value = table.names[worst], float(k[worst])
    why = (
        "Every sd rests on many draws."
        if verdict is Verdict.PASS
        else (
            f"The sd of `{name}` rests on a few draws far out (k-hat {value:.2f}): read its"
            " quantiles instead."
        )
    )
    return Finding(
        "tails",
        value,
        stderr,
        threshold,
        verdict,
        why,
        "Vehtari et al. 2024, section 3.3",
        tuple(table.names[j] for j in np.argsort(-k)[:NAMED] if k[j] >= threshold),
        about=About.TAILS,
    )


def _khat_of_columns(
    looked_at: Int[np.ndarray, "some"],
    shape: tuple[int, ...],
    products: Callable[[Int[np.ndarray, "part"]], Float[np.ndarray, "n part"]],
) -> Float[np.ndarray, "p"]:
    """k-hat of some columns of an array `[n, p]`, -inf of the others."""
    k = np.full(shape[1], -np.inf)
    for part in np.array_split(looked_at, max(1, len(looked_at) // _TOGETHER)):
        if len(part):
            k[part] = khat_of(products(part))
    return k


def _judged(
    k: Float[np.ndarray, "p"], count: int, standards: Standards
) -> tuple[int, float, Verdict]:
    """The worst of many noisy shapes, its error, and whether it exceeds the threshold by that."""
    worst = int(np.argmax(k))
    stderr = float(khat_error(k[worst : worst + 1], count)[0])
    passes = k[worst] - stderr < khat_threshold(count, standards)
    return worst, stderr, Verdict.PASS if passes else Verdict.CAUTION
