"""`tb.check`: fresh draws, the findings, and the verdict."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .._numerics import host_algebra, key_words, x64
from ..families.base import AbstractFamily
from ..results import Result
from ..targets.base import Density, require
from ..targets.batched import batched
from ..targets.sites import Contaminated
from .chains import check_chains
from .corrections import coordinate_table, value_table
from .draws import FreshDraws, fresh_draws
from .factors import check_factors, viewed
from .finding import Certificate, Finding, Verdict
from .findings import weights as findings
from .findings.contaminated import contaminated
from .findings.coverage import coverage
from .findings.optima import optima
from .findings.proper import improper, widest
from .findings.stein import stein
from .fitted import Fitted

_DRAWS = 4000
_MAX_DRAWS = 16_000
_MAX_NUMBERS = 8_000_000  # draws x dim: 64 MB an array; fewer draws above 2,000 dimensions
_LEAST_DRAWS = 200
# nats: a log density of 1e5 nats carries some 1e-10 of its own, quadratures of a known evidence
# more
_ROUNDING = 1e-4
_RIVAL_SLACK = 0.5  # nats that a rival's evidence may lie above the ELBO of its local Gaussian
OF_ABILITIES: list[tuple[type, Callable[[Any, FreshDraws], tuple[Finding, ...]]]] = [
    (Contaminated, contaminated)
]
"""Ability of a target -> findings of its own, from q and its draws."""
_CHEAP = 1_000  # effective draws below which more are drawn, up to _MAX_DRAWS


CERTIFIERS: list[tuple[Callable[[Fitted], bool], Callable[[Fitted, int], Certificate]]] = []
"""Fits that are certified in a way of their own, registered where it stands.

(is it such a fit, its certificate).
"""


def check(fitted: Fitted, *, key: Any = 0, draws: int = _DRAWS, starts: int = 32) -> Certificate:
    """How far off a fit is: a Certificate from fresh draws of `fitted.q` and dispersed searches of
    its target.

    Uses nothing of how q was found: any object with `.q` (a family member) and `.target` (with the
    ability `density`) can be checked; a sampler's draws, which have no density, are judged as
    chains. Cost: `draws` gradients (at least 2,000 for a k-hat worth having; four times as many
    where the effective sample is small), and some 50 per start.

    Arguments:
        fitted: anything with `.q` and `.target`.
        key: an int or a JAX key; use another than the fit's for an independent check.
        draws: number of fresh draws, an even number.
        starts: dispersed short searches for other optima, at least 16.

    Raises:
        ValueError: when `draws` < 100 or `starts` < 16.
        PairingError: when the target has no log density on R^d.
    """
    target: Any = fitted.target  # noqa: F841
    for is_theirs, certify_theirs in CERTIFIERS:
        if is_theirs(fitted):
            return certify_theirs(fitted, _check_key(key))
    if draws < 100:
        raise ValueError(
            f"check: `draws` must be at least 100 to say anything, got {draws}; 4000 is the"
            " default."
        )
    if starts < 16:
        raise ValueError(
            "check: `starts` must be at least 16 (fewer miss one of two equal basins too often),"
            f" got {starts}."
        )
    if not fitted.q.has_density:
        with host_algebra():
            return check_chains(fitted, key=_check_key(key), starts=starts)
    if fitted.q.space == "native":
        with host_algebra():
            return check_factors(
                fitted, lambda view: check(view, key=key, draws=draws, starts=starts)
            )
    require("check", fitted.target, Density)
    started, before = time.perf_counter(), batched(fitted.target).evaluations
    with host_algebra():
        sample = fresh_sample(fitted, key, draws + draws % 2)
        found = judge(fitted.q, sample, key)
        seconds = time.perf_counter() - started
        certificate = certify(
            fitted.q,
            sample,
            found,
            key=key,
            starts=starts,
            seconds=seconds,
            used=batched(fitted.target).evaluations - before,
        )
    return with_propriety(fitted, certificate, _check_key(key))


def judge(q: AbstractFamily, sample: FreshDraws, key: Any) -> tuple[Finding, ...]:
    """Every finding but the search for other optima, which `certify` adds."""
    tables = [(coordinate_table(sample), sample.z)]
    if _has_own_values(sample):
        tables.append((value_table(sample), sample.values[1]))
    per_table = [
        [findings.moments(t), findings.noise(t), findings.parameter_khat(sample, t, x)]
        for t, x in tables
    ]
    worst = [
        max(same, key=lambda f: (list(Verdict).index(f.verdict), f.value))
        for same in zip(*per_table, strict=True)
    ]
    # of what the summary prints: a log scale has long tails of its own
    worst.append(findings.tails(sample, *tables[-1]))
    own = [
        finding
        for ability, find in OF_ABILITIES
        if isinstance(sample.target, ability)
        for finding in find(q, sample)
    ]
    of_sample = [
        f(sample) for f in (findings.finite, findings.converged, findings.khat, findings.evidence)
    ]
    beyond_weights = (coverage(sample, q, _check_key(key)), stein(sample, _check_key(key)))
    return (*of_sample, *worst, *beyond_weights, findings.precision(sample), *own)


def certify(
    q: AbstractFamily,
    sample: FreshDraws,
    found: tuple[Finding, ...],
    *,
    key: Any,
    starts: int,
    seconds: float,
    used: int,
) -> Certificate:
    """The certificate of a sample that was judged already: adds the search for other optima."""
    started, before = time.perf_counter(), batched(sample.target).evaluations
    found = (*found, optima(sample, _check_key(key), q=q, starts=starts))
    bounds = _evidence_bounds({finding.name: finding for finding in found})
    used += batched(sample.target).evaluations - before
    return Certificate(found, bounds, sample.elbo, used, seconds + time.perf_counter() - started)


def with_propriety(fitted: Fitted, certificate: Certificate, key: int) -> Certificate:
    """The certificate with one more finding where the posterior turns out to be improper.

    Looked for unless it passes.
    """
    ran_away = getattr(fitted, "result", None) is Result.unbounded
    if (certificate.verdict is Verdict.PASS and not ran_away) or not isinstance(
        fitted.target, Density
    ):
        return certificate
    started, before = time.perf_counter(), batched(fitted.target).evaluations
    with x64(), host_algebra():
        found = improper(fitted, key) or (widest(fitted, key) if ran_away else None)
    return dataclasses.replace(
        certificate,
        findings=certificate.findings if found is None else (found, *certificate.findings),
        evaluations=certificate.evaluations + batched(fitted.target).evaluations - before,
        seconds=certificate.seconds + time.perf_counter() - started,
    )


def _evidence_bounds(found: dict[str, Finding]) -> tuple[float, float]:
    """Two standard errors outside the sandwich; modes that q misses are added to its upper end."""
    detail = found["evidence"].detail
    upper = detail["upper"] + 2 * detail["upper_stderr"]
    for elbo, *_ in found["optima"].detail["rivals"]:
        upper = float(np.logaddexp(upper, elbo + _RIVAL_SLACK))
    wide = found["coverage"]
    if wide.verdict is not Verdict.PASS:
        upper = max(upper, wide.detail["log_evidence"] + 2 * wide.detail["log_evidence_stderr"])
    return detail["lower"] - 2 * detail["lower_stderr"] - _ROUNDING, upper + _ROUNDING


def _has_own_values(sample: FreshDraws) -> bool:
    """Whether the user's values are few enough, and there, to be judged beside the unconstrained
    coordinates.
    """
    if sample.z.size >= _MAX_NUMBERS // 2:
        return False
    _, x = sample.values
    return 0 < x.size <= 2 * _MAX_NUMBERS and bool(np.all(np.isfinite(x)))


def fresh_sample(
    fitted: Fitted, key: Any, draws: int = _DRAWS, *, extend: bool = True
) -> FreshDraws:
    """The draws that the findings and the summaries share.

    Four times as many where few of them are effective.
    """
    fitted = viewed(fitted)
    key, dim = _check_key(key), fitted.q.dim
    # nothing is weighed: a few hundred draws show what q is
    if not isinstance(fitted.target, Density):
        draws = min(draws, 2 * _LEAST_DRAWS)
    sample = fresh_draws(fitted, key, max(_LEAST_DRAWS, min(draws, _MAX_NUMBERS // dim // 2 * 2)))
    more = min(_MAX_DRAWS, _MAX_NUMBERS // dim // 2 * 2)
    if extend and 2000 <= draws < more and wants_more(sample):
        return dataclasses.replace(fresh_draws(fitted, key, more), evaluations=draws + more)
    return sample


def wants_more(sample: FreshDraws) -> bool:
    """Whether more draws would help.

    Few of these are effective, and their weights are not beyond repair.
    """
    return 50 < sample.smoothed.ess < _CHEAP and sample.smoothed.khat < 1.0


def _check_key(key: Any) -> int:
    """A key of the check's own, so that passing the fit's key does not reuse the fit's draws."""
    words = key_words(key)
    return int(np.random.SeedSequence([*words, 77]).generate_state(1)[0])
