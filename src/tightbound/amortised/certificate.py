"""The certificate of an amortised fit: on average over data, and at one data set."""

import dataclasses
import time
from typing import Protocol, cast, runtime_checkable

import numpy as np

from .._types import Estimate, Key, PyTree
from ..account import Budget
from ..certify.calibration import calibrate, learns
from ..certify.certificate import CERTIFIERS, Certificate, Request, check
from ..certify.draws import check_key
from ..certify.finding import SEVERITY, About, Finding, Verdict
from ..certify.fitted import Fitted
from ..certify.simulations import Amortised, simulations
from ..certify.standards import STANDARDS, Standards
from ..families.conditional import Conditioned
from ..targets.base import Simulator, require
from ..targets.simulator import has_density
from .at_data import local_c2st, simulable
from .global_optimum import global_optimum, seeds_agree

_NONE = Estimate(float("nan"), float("nan"))  # an ELBO is of one data set
_SIMULATIONS = 1000  # for what is judged by simulation, where no budget says less


@runtime_checkable
class AtData(Fitted, Protocol):
    """What is checked at one data set: a Posterior."""

    @property
    def q(self) -> Conditioned:
        """The member of the amortised family that belongs to the data."""
        ...

    @property
    def simulator(self) -> Simulator:
        """The target that the family was trained on."""
        ...

    @property
    def x(self) -> PyTree:
        """The data."""
        ...


def check_amortised(
    fitted: Fitted,
    *,
    key: Key = 0,
    n: int = 500,
    budget: Budget | None = None,
    standards: Standards = STANDARDS,
) -> Certificate:
    """How far off is an amortised fit, on average over data? From fresh simulations.

    Nothing is read of how q was found. Findings: simulations (how many are not finite), learns (q
    is not the prior), global optimum, seeds (where there are several), sbc, expected coverage,
    tarp.

    Arguments:
        fitted: with `.q`, an amortised family, and `.target`, a simulator.
        key: use another than the fit's.
        n: simulations for the calibration; four times as many for the global optimum.
        budget: of the calibration, see `tb.certify.calibrate`.
        standards: the thresholds of the verdicts.
    """
    started = time.perf_counter()
    # No other family is `conditional`, which this certificate is registered for.
    q, target = cast(Amortised, fitted.q), require("check", fitted.target, Simulator)
    found = [
        _simulations(target, key, standards),
        learns(q, target, key, standards=standards),
        global_optimum(q, target, key, n=4 * n, standards=standards),
        seeds_agree(q, target, key, standards=standards),
        *calibrate(q, target, key, n=n, budget=budget, standards=standards),
    ]
    return Certificate(
        tuple(f for f in found if f is not None),
        (-np.inf, np.inf),
        _NONE,
        0,
        time.perf_counter() - started,
    )


def check_at(
    posterior: AtData,
    *,
    key: Key = 0,
    budget: Budget | None = None,
    standards: Standards = STANDARDS,
) -> Certificate:
    """How far off is an amortised posterior at its data?

    By simulation, and where the density is known by all of `tb.check` besides. Findings by
    simulation: simulable (could the model have produced x?) and local c2st.

    Arguments:
        posterior: what `fit.at(x)` returns.
        key: of the draws and simulations.
        budget: evaluations are simulations, 1000 unless told.
        standards: the thresholds of the verdicts.
    """
    started = time.perf_counter()
    n = _SIMULATIONS
    if budget is not None and budget.evaluations is not None:
        n = min(n, budget.evaluations)
    # One network or several: there are no other amortised families.
    q, target = cast(Amortised, posterior.q.family), posterior.simulator
    by_simulation = (
        simulable(q, target, posterior.x, key, n=n, standards=standards),
        local_c2st(q, target, posterior.x, key, n=2 * n, standards=standards),
    )
    seconds = time.perf_counter() - started
    # The density of an angle's posterior lives on a circle, where `tb.check` does not search.
    if not has_density(target) or any(target.circular):
        return Certificate(by_simulation, (-np.inf, np.inf), _NONE, 0, seconds)
    known = check(posterior, key=key, standards=standards)
    return dataclasses.replace(
        known, findings=(*known.findings, *by_simulation), seconds=known.seconds + seconds
    )


def _simulations(target: Simulator, key: Key, standards: Standards) -> Finding:
    invalid = simulations(target, key, _SIMULATIONS).invalid
    verdict = Verdict.CAUTION if invalid < standards.invalid_fail else Verdict.FAIL
    verdict = Verdict.PASS if invalid == 0 else verdict
    why = (
        "All simulations are finite."
        if invalid == 0
        else (
            f"`simulate` returns NaN or infinity in {invalid:.1%} of the draws. They are left out,"
            " which is right for data that are finite, but hides that part of the prior from q."
        )
    )
    stored = target.num_simulations
    if stored is not None and stored < standards.stored_per_coordinate * target.dim:
        verdict = max(verdict, Verdict.CAUTION, key=SEVERITY.__getitem__)
        why += (
            f" {stored} stored simulations are few for {target.dim} coordinates; several thousand"
            " for each are usual."
        )
    source = "docs/forward-kl.md"
    return Finding("simulations", invalid, np.nan, 0.0, verdict, why, source, about=About.DENSITY)


def _checked(fitted: Fitted, request: Request) -> Certificate:
    return check_amortised(fitted, key=check_key(request.key), standards=request.standards)


CERTIFIERS["amortised"] = _checked

__all__ = ["check_amortised", "check_at"]
