"""The certificate of a sampler's draws.

They have no density to weigh, so the chains are asked instead.
"""

import dataclasses
import time
from typing import Any

import numpy as np

from .._types import Estimate
from ..families.gaussian import Gaussian
from ..search.chain_statistics import ess_bulk, ess_mean, ess_tail, rhat
from ..solvers.sampling import ESS_PER_CHAIN, RHAT
from ..targets.base import Density
from ..targets.batched import batched
from ..targets.values import constrain_batch, flatten_values
from .draws import FreshDraws
from .finding import Certificate, Finding, Verdict
from .findings import weights as findings
from .findings.optima import optima
from .fitted import Fitted

_POOR_RHAT = 1.1
_POOR_ESS = 100.0
_VISITED = 0.1  # of the draws that a mode's evidence promises: chains that have them in it know it
_SOURCE = "Vehtari et al. 2021, section 4"


def check_chains(fitted: Fitted, *, key: Any, starts: int) -> Certificate:
    """R-hat and effective sample sizes of every value and coordinate, divergences, and dispersed
    searches for other modes.

    Chains that all started in one mode of two agree perfectly: only the searches can tell.
    """
    started, used = time.perf_counter(), 0
    q = fitted.q.on_host()
    names, x = _columns(fitted.target, q)
    found = [mixing(names, x), effective(names, x), divergences(q)]
    if isinstance(fitted.target, Density):
        before = batched(fitted.target).evaluations
        sample = _against_gaussian(fitted.target, q)
        found += [
            _unvisited(optima(sample, key, starts=starts), sample),
            findings.precision(sample),
        ]
        used = batched(fitted.target).evaluations - before
    nothing = Estimate(np.nan, np.nan)
    return Certificate(
        tuple(found), (-np.inf, np.inf), nothing, used, time.perf_counter() - started
    )


def mixing(names: tuple[str, ...], x: np.ndarray) -> Finding:
    """The largest rank-normalised split R-hat over values `x [C, n, P]`."""
    values = np.nan_to_num(rhat(x), nan=np.inf)
    worst = int(np.argmax(values))
    value, chains = float(values[worst]), x.shape[0]
    verdict = (
        Verdict.PASS if value < RHAT else Verdict.CAUTION if value < _POOR_RHAT else Verdict.FAIL
    )
    why = (
        f"The halves of the {chains} chains look like one distribution in every value (R-hat at"
        f" most {value:.3f})."
        if verdict is Verdict.PASS
        else (
            f"The chains disagree about `{names[worst]}` (R-hat {value:.3f}): they have not mixed;"
            " draw more, or start from a better q."
        )
    )
    where = tuple(names[j] for j in np.argsort(-values)[:5] if values[j] >= RHAT)
    return Finding(
        "rhat", value, np.nan, RHAT, verdict, why, _SOURCE, where, {"names": names, "rhat": values}
    )


def effective(names: tuple[str, ...], x: np.ndarray) -> Finding:
    """The smallest effective sample size, for location or for the tails."""
    bulk, tail = np.nan_to_num(ess_bulk(x)), np.nan_to_num(ess_tail(x))
    least = np.minimum(bulk, tail)
    worst = int(np.argmin(least))
    value, enough = float(least[worst]), 2.0 * ESS_PER_CHAIN * x.shape[0]
    verdict = (
        Verdict.PASS if value >= enough else Verdict.CAUTION if value >= _POOR_ESS else Verdict.FAIL
    )
    error = float(1.0 / np.sqrt(max(np.nan_to_num(ess_mean(x)).min(), 1e-9)))
    why = (
        f"At least {value:,.0f} of {x.shape[0] * x.shape[1]:,} draws are effective; means carry at"
        f" most {error:.2g} sd of Monte Carlo error."
        if verdict is Verdict.PASS
        else (
            f"Only {value:,.0f} of {x.shape[0] * x.shape[1]:,} draws are effective for"
            f" `{names[worst]}`: draw more."
        )
    )
    detail = {"names": names, "bulk": bulk, "tail": tail}
    return Finding("ess", value, np.nan, enough, verdict, why, _SOURCE, (names[worst],), detail)


def divergences(q: Any) -> Finding:
    """Trajectories whose energy ran away.

    Regions that the sampler could not enter, so that it may be biased.
    """
    count = int(np.sum(q.statistics.get("diverging", np.zeros(1, bool))))
    verdict = Verdict.PASS if count == 0 else Verdict.CAUTION
    why = (
        "No transition diverged."
        if count == 0
        else (
            f"{count} transitions diverged: a region with a much smaller scale is not explored"
            " well. Raise `target_acceptance`, or write the model in its non-centred form."
        )
    )
    return Finding(
        "divergences", float(count), np.nan, 0.0, verdict, why, "Betancourt 2017, section 6.2"
    )


def _columns(target: Any, q: Any) -> tuple[tuple[str, ...], np.ndarray]:
    """Coordinates and the user's values that vary, `[C, n, P]`."""
    z = np.asarray(q.flat)
    names, x = flatten_values(constrain_batch(target, z))
    names, x = (*target.coordinate_names, *names), np.concatenate([z, x], axis=1)
    moves = np.ptp(x, axis=0) > 0
    # a coordinate that never moves is a finding, a constant value is not
    moves[: len(target.coordinate_names)] = True
    kept = tuple(name for name, moving in zip(names, moves, strict=True) if moving)
    return kept, x[:, moves].reshape(*np.shape(q.draws)[:2], -1)


def _against_gaussian(target: Any, q: Any) -> FreshDraws:
    """The chains' draws with the log density of the Gaussian of their moments in the place of log
    q.

    The mean of log p - log q is then the log evidence plus KL(p || q): what a rival mode is
    compared with.
    """
    z = np.asarray(q.flat)
    centred = z - z.mean(axis=0)
    spread = np.concatenate(
        [centred.T / np.sqrt(len(z)), 1e-9 * np.diag(np.maximum(q.sd, 1e-300))], axis=1
    )
    log_q = Gaussian.from_root(z.mean(axis=0), spread).log_prob_on_host(z)
    log_p = batched(target)(z)[0]
    return FreshDraws(target, z, log_q, log_p, np.zeros_like(z))


def _unvisited(finding: Finding, sample: FreshDraws) -> Finding:
    """The finding without the rivals that the chains have visited about as often as their evidence
    asks.
    """
    rivals = finding.detail["rivals"]
    missed = [rival for rival in rivals if not _visited(rival, sample)]
    if len(missed) == len(rivals) and finding.verdict is not Verdict.PASS:
        return finding
    if missed:
        detail = {**finding.detail, "rivals": missed}
        return dataclasses.replace(finding, value=float(len(missed)), detail=detail)
    searches = finding.detail["starts"]
    why = (
        f"{searches} dispersed searches found no mode outside the chains (one that none reached"
        " stays unseen)."
    )
    return dataclasses.replace(
        finding,
        value=0.0,
        verdict=Verdict.PASS,
        why=why,
        where=(),
        detail={**finding.detail, "rivals": []},
    )


def _visited(rival: tuple[float, np.ndarray, np.ndarray], sample: FreshDraws) -> bool:
    elbo, mean, root = rival
    dim = len(mean)
    distance = np.sum(np.linalg.solve(root, (sample.z - mean).T) ** 2, axis=0)
    inside = float(np.mean(distance < dim + 4.0 * np.sqrt(2.0 * dim)))
    return inside >= _VISITED * min(1.0, float(np.exp(elbo - sample.elbo.value)))


__all__ = ["check_chains"]
