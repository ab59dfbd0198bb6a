"""What chains say of themselves: R-hat, effective sample sizes, divergences, unvisited modes."""

import dataclasses
from typing import cast

import numpy as np
from jaxtyping import Float

from ...families.empirical import Empirical
from ...search.chain_statistics import ess_bulk, ess_mean, ess_tail, rhat
from ...targets.base import AbstractTarget
from ..draws import FreshDraws
from ..finding import (
    NAMED,
    About,
    Case,
    Finding,
    FindingDetail,
    Rival,
    Stage,
    Verdict,
    register,
)
from ..standards import Standards
from .optima import OptimaDetail, cost_of_searches, optima

_SOURCE = "Vehtari et al. 2021, section 4"
# A draw is inside a mode's Gaussian up to so many sds of the squared distance beyond its mean, dim.
_INSIDE = 4.0


@dataclasses.dataclass(frozen=True)
class RhatDetail(FindingDetail):
    """R-hat of every value."""

    names: tuple[str, ...]
    rhat: Float[np.ndarray, "p"]


@dataclasses.dataclass(frozen=True)
class EssDetail(FindingDetail):
    """Effective sample sizes of every value, for its location and for its tails."""

    names: tuple[str, ...]
    bulk: Float[np.ndarray, "p"]
    tail: Float[np.ndarray, "p"]


@register("rhat", place=10, of="chains", ability=AbstractTarget)
def mixing(case: Case) -> Finding:
    """The largest rank-normalised split R-hat over values."""
    (names, x), standards = _columns(case), case.standards
    values = np.nan_to_num(rhat(x), nan=np.inf)
    worst = int(np.argmax(values))
    value, chains = float(values[worst]), x.shape[0]
    verdict = (
        Verdict.PASS
        if value < standards.rhat
        else Verdict.CAUTION
        if value < standards.rhat_fail
        else Verdict.FAIL
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
    return Finding(
        "rhat",
        value,
        np.nan,
        standards.rhat,
        verdict,
        why,
        _SOURCE,
        tuple(names[j] for j in np.argsort(-values)[:NAMED] if values[j] >= standards.rhat),
        RhatDetail(names, values),
        About.SEARCH,
    )


@register("ess", place=20, of="chains", ability=AbstractTarget)
def effective(case: Case) -> Finding:
    """The smallest effective sample size, for location or for the tails."""
    (names, x), standards = _columns(case), case.standards
    bulk, tail = np.nan_to_num(ess_bulk(x)), np.nan_to_num(ess_tail(x))
    least = np.minimum(bulk, tail)
    worst = int(np.argmin(least))
    # Two halves of each chain
    value, enough = float(least[worst]), 2.0 * standards.ess_per_chain * x.shape[0]
    verdict = (
        Verdict.PASS
        if value >= enough
        else Verdict.CAUTION
        if value >= standards.ess_fail
        else Verdict.FAIL
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
    return Finding(
        "ess",
        value,
        np.nan,
        enough,
        verdict,
        why,
        _SOURCE,
        (names[worst],),
        EssDetail(names, bulk, tail),
        About.SEARCH,
    )


@register("divergences", place=30, of="chains", ability=AbstractTarget)
def divergences(case: Case) -> Finding:
    """Trajectories whose energy ran away.

    They met regions that the sampler could not enter, so that it may be biased.
    """
    # "chains" are what this finding is registered for, and those of Empirical are the only ones
    statistics = cast(Empirical, case.q).statistics
    count = int(np.sum(statistics.get("diverging", np.zeros(1, bool))))
    why = (
        "No transition diverged."
        if count == 0
        else (
            f"{count} transitions diverged: a region with a much smaller scale is not explored"
            " well. Raise `target_acceptance`, or write the model in its non-centred form."
        )
    )
    return Finding(
        "divergences",
        float(count),
        np.nan,
        0.0,
        Verdict.PASS if count == 0 else Verdict.CAUTION,
        why,
        "Betancourt 2017, section 6.2",
        about=About.SEARCH,
    )


def _columns(case: Case) -> tuple[tuple[str, ...], Float[np.ndarray, "chains n p"]]:
    """Coordinates and the user's values that vary."""
    z, (names, x) = case.sample.z, case.sample.values
    coordinates = case.sample.target.coordinate_names
    names, x = (*coordinates, *names), np.concatenate([z, x], axis=1)
    moves = np.ptp(x, axis=0) > 0
    # A coordinate that never moves is a finding, a constant value is not
    moves[: len(coordinates)] = True
    kept = tuple(name for name, moving in zip(names, moves, strict=True) if moving)
    chains, draws, _ = np.shape(cast(Empirical, case.q).draws)
    return kept, x[:, moves].reshape(chains, draws, -1)


@register("optima", place=200, of="chains", stage=Stage.SEARCH, cost=cost_of_searches)
def unvisited(case: Case) -> Finding:
    """The rivals of the searches that the chains have visited too seldom for their evidence.

    Chains that all started in one mode of two agree
    perfectly: only the searches can tell.
    """
    finding = optima(case)
    detail = finding.detail
    if not isinstance(detail, OptimaDetail):
        return finding
    missed = [r for r in detail.rivals if not _visited(r, case.sample, case.standards)]
    if len(missed) == len(detail.rivals) and finding.verdict is not Verdict.PASS:
        return finding
    slack = case.standards.rival_slack
    detail = dataclasses.replace(
        detail, rivals=tuple(missed), missed=tuple(r.elbo + slack for r in missed)
    )
    if missed:
        return dataclasses.replace(finding, value=float(len(missed)), detail=detail)
    why = (
        f"{detail.starts} dispersed searches found no mode outside the chains (one that none"
        " reached stays unseen)."
    )
    return dataclasses.replace(
        finding, value=0.0, verdict=Verdict.PASS, why=why, where=(), detail=detail
    )


def _visited(rival: Rival, sample: FreshDraws, standards: Standards) -> bool:
    dim = len(rival.mean)
    distance = np.sum(np.linalg.solve(rival.root, (sample.z - rival.mean).T) ** 2, axis=0)
    inside = float(np.mean(distance < dim + _INSIDE * np.sqrt(2.0 * dim)))
    share = min(1.0, float(np.exp(rival.elbo - sample.elbo.value)))
    return inside >= standards.visited * share


__all__ = ["EssDetail", "RhatDetail", "divergences", "effective", "mixing", "unvisited"]
