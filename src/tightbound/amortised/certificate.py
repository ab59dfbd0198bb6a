"""The certificate of an amortised fit: on average over data, and at one data set."""

import dataclasses
import time
from typing import Any

import numpy as np

from .._types import Budget, Estimate
from ..certify.calibration import calibrate, learns
from ..certify.certificate import CERTIFIERS
from ..certify.finding import Certificate, Finding, Verdict
from ..certify.fitted import Fitted
from ..certify.simulations import simulations
from ..targets.base import Simulator
from ..targets.simulator import has_density
from .at_data import local_c2st, simulable
from .global_optimum import global_optimum, seeds_agree

_NONE = Estimate(float("nan"), float("nan"))


def check_amortised(
    fitted: Any, *, key: Any = 0, n: int = 500, budget: Budget | None = None
) -> Certificate:
    """How far off is an amortised fit, on average over data? From fresh simulations.

    Nothing is read of how q was found.

    Findings: simulations (how many are not finite), learns (q is not the prior), global optimum,
    seeds (where there are several), sbc, expected coverage, tarp.

    Arguments:
        fitted: with `.q`, an amortised family, and `.target`, a simulator.
        key: use another than the fit's.
        n: simulations for the calibration; four times as many for the global optimum.
        budget: of the calibration, see `tb.certify.calibrate`.
    """
    started, (q, target) = time.perf_counter(), (fitted.q, fitted.target)
    found = [
        _simulations(target, key),
        learns(q, target, key),
        global_optimum(q, target, key, n=4 * n),
        seeds_agree(q, target, key),
        *calibrate(q, target, key, n=n, budget=budget),
    ]
    return Certificate(
        tuple(f for f in found if f is not None),
        (-np.inf, np.inf),
        _NONE,
        0,
        time.perf_counter() - started,
    )


def check_at(
    posterior: Any, check: Any, *, key: Any = 0, budget: Budget | None = None
) -> Certificate:
    """How far off is an amortised posterior at its data? With a density: all of `tb.check`.

    Without: by simulation.

    Findings by simulation: simulable (could the model have produced x?) and local c2st.

    Arguments:
        posterior: what `fit.at(x)` returns.
        check: `tb.check`.
        key: of the draws and simulations.
        budget: evaluations are simulations, 1000 unless told.
    """
    started = time.perf_counter()
    n = 1000 if budget is None or budget.evaluations is None else min(1000, budget.evaluations)
    q, target = posterior.q.family, posterior.simulator
    by_simulation = (
        simulable(q, target, posterior.x, key, n=n),
        local_c2st(q, target, posterior.x, key, n=2 * n),
    )
    seconds = time.perf_counter() - started
    if not has_density(target) or any(target.circular):
        return Certificate(by_simulation, (-np.inf, np.inf), _NONE, 0, seconds)
    known = check(posterior, key=key)
    return dataclasses.replace(
        known, findings=(*known.findings, *by_simulation), seconds=known.seconds + seconds
    )


def _simulations(target: Any, key: Any) -> Finding:
    invalid = simulations(target, key, 1000).invalid
    verdict = Verdict.PASS if invalid == 0 else Verdict.CAUTION if invalid < 0.3 else Verdict.FAIL
    why = (
        "All simulations are finite."
        if invalid == 0
        else (
            f"`simulate` returns NaN or infinity in {invalid:.1%} of the draws. They are left out,"
            " which is right for data that are finite, but hides that part of the prior from q."
        )
    )
    stored = target.num_simulations
    if stored is not None and stored < 1000 * target.dim:
        verdict = max(verdict, Verdict.CAUTION, key=list(Verdict).index)
        why += (
            f" {stored} stored simulations are few for {target.dim} coordinates; several thousand"
            " for each are usual."
        )
    return Finding("simulations", invalid, np.nan, 0.0, verdict, why, "docs/forward-kl.md")


def _is_amortised(fitted: Fitted) -> bool:
    return isinstance(fitted.target, Simulator) and fitted.q.conditional


def _checked(fitted: Fitted, key: int) -> Certificate:
    return check_amortised(fitted, key=key)


CERTIFIERS.append((_is_amortised, _checked))

__all__ = ["check_amortised", "check_at"]
