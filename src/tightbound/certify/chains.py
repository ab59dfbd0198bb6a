"""The certificate of a sampler's draws: they have no density to weigh, so the chains are asked."""

import dataclasses
import time
from typing import cast

import numpy as np

from .._numerics import host_algebra
from .._types import Estimate
from ..families.empirical import Empirical
from ..families.gaussian import Gaussian
from ..targets.base import Density
from ..targets.batched import batched
from .certificate import CERTIFIERS, Certificate, Request, examined
from .draws import FreshDraws, Meter, check_key
from .finding import Case, Stage
from .fitted import Fitted
from .standards import EFFORT, STANDARDS, Standards

_NOTHING = Estimate(np.nan, np.nan)


def check_chains(
    fitted: Fitted,
    *,
    key: int,
    starts: int,
    standards: Standards = STANDARDS,
    allowance: int | None = None,
) -> Certificate:
    """R-hat and effective sample sizes of every value and coordinate, divergences, and searches.

    Chains that all started in one mode of two agree perfectly: only the searches can tell.
    """
    started, target, meter = time.perf_counter(), fitted.target, Meter(fitted.target, allowance)
    q = cast(Empirical, fitted.q.on_host())  # no other family is without a density
    z, effort = np.asarray(q.flat), dataclasses.replace(EFFORT, starts=starts)
    sample = FreshDraws(target, z, np.zeros(len(z)), np.zeros(len(z)), np.zeros_like(z))
    found = examined(Stage.JUDGE, Case(q, sample, key, standards, effort), meter)
    if isinstance(target, Density):
        sample = _against_gaussian(target, q, allowance)
        found = examined(Stage.SEARCH, Case(q, sample, key, standards, effort), meter, found)
    seconds = time.perf_counter() - started
    return Certificate(found, (-np.inf, np.inf), _NOTHING, meter.used, seconds)


def _against_gaussian(target: Density, q: Empirical, allowance: int | None) -> FreshDraws:
    """The chains' draws with the log density of the Gaussian of their moments for log q.

    The mean of log p - log q is then the log evidence plus KL(p || q): what a rival mode is
    compared with. All draws are evaluated, or evenly chosen ones for half of an allowance.
    """
    z = np.asarray(q.flat)
    centred = z - z.mean(axis=0)
    # A little is added in every coordinate, so that draws on a plane have a density
    spread = np.concatenate(
        [centred.T / np.sqrt(len(z)), 1e-9 * np.diag(np.maximum(q.sd, 1e-300))], axis=1
    )
    gaussian = Gaussian.from_root(z.mean(axis=0), spread)
    if allowance is not None and allowance // 2 < len(z):
        count = min(len(z), max(allowance // 2, EFFORT.least_draws))
        z = z[np.linspace(0, len(z) - 1, count).astype(int)]
    log_p = batched(target)(z)[0]
    return FreshDraws(target, z, gaussian.log_prob_on_host(z), log_p, np.zeros_like(z), len(z))


def _certify(fitted: Fitted, request: Request) -> Certificate:
    with host_algebra():
        return check_chains(
            fitted,
            key=check_key(request.key),
            starts=request.starts,
            standards=request.standards,
            allowance=request.allowance,
        )


CERTIFIERS["chains"] = _certify

__all__ = ["check_chains"]
