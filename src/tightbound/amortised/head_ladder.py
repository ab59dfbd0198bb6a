"""The ladder above an amortised Gaussian: richer heads, where its calibration says that the family
is too small.

Rungs: the convex head of `default.py`, a mixture, a flow. A rung replaces the one below only for a
significant gain in the expected log density of fresh simulations, which neither was trained on.
"""

import dataclasses
import time
from typing import Any

import numpy as np

from .._numerics import x64
from .._types import Budget
from ..certify.finding import Certificate, Verdict
from ..certify.simulations import Simulated, simulations
from ..families.conditional import log_probs_at
from ..loop import Run, Trace
from ..plan.climb import Climb, RunSolver
from ..results import MissingExtraError
from ..solvers.held_out import HeldOut
from .certificate import check_amortised
from .start import amortised

_RICHER = ("mixture", "flow")
_JUDGED = 2000  # fresh simulations that two rungs are compared on
_LEAST = 0.02  # nats; a smaller gain is not worth a family without the promise of convexity
_CALIBRATION = ("sbc", "expected coverage", "tarp")


def climb_heads(
    first: Run,
    others: Any,
    run_solver: RunSolver,
    *,
    key: int,
    budget: Budget,
    started: float,
    rival: Any = None,
) -> Climb:
    """Certify the first fit.

    While calibration does not pass, train the next richer head, and keep it where it is better.

    Arguments:
        first: the run of the convex head.
        others: what a ladder for densities gets; there are none.
        run_solver: trains a q.
        key: of checks and networks.
        budget: of the climb; its seconds count from `started`.
        started: by `time.perf_counter`.
        rival: as `others`.
    """
    kept, name, certificate = first, "convex head", check_amortised(first, key=key)
    traces, why, made = [first.trace], "", None
    for head in _RICHER:
        if not (kept.result.ok and _too_small(certificate)):
            break
        left = _left(budget, started, _total(traces[-1]))
        if left is None:
            why = "the budget is spent; a larger `budget` climbs further."
            break
        try:
            q = amortised(first.target, head, key=key, seeds=len(first.q.members))
        except MissingExtraError as missing:
            why = str(missing)
            break
        run = run_solver(q, HeldOut(), left)
        traces.append(
            dataclasses.replace(run.trace, evaluations=run.trace.evaluations + _total(traces[-1]))
        )
        made = simulations(first.target, (key + 1) % 2**32, _JUDGED) if made is None else made
        if run.result.usable and _better(run.q, kept.q, made):
            kept, name, certificate = run, f"{head} head", check_amortised(run, key=key)
    if not why:
        ended = (
            "no richer head gains on fresh simulations."
            if kept.result.ok
            else "its training was cut short."
        )
        if name == f"{_RICHER[-1]} head":
            ended = "the richest head there is."
        why = ended if _too_small(certificate) else "calibration asks for no richer one."
    columns = (f.name for f in dataclasses.fields(Trace))
    trace = Trace(*(np.concatenate([getattr(t, column) for t in traces]) for column in columns))
    return Climb(kept, certificate, f"{name}: {why}", _total(trace), trace)


def _too_small(certificate: Certificate) -> bool:
    """Whether q is miscalibrated, though it has learnt: then its family misfits."""
    learnt = certificate["learns"].verdict is Verdict.PASS
    return learnt and any(certificate[name].verdict is not Verdict.PASS for name in _CALIBRATION)


def _better(new: Any, old: Any, made: Simulated) -> bool:
    """A gain in the mean log density at the true parameters, beyond two standard errors of the
    paired difference.
    """
    with x64():
        gain = log_probs_at(new, made.z, made.x) - log_probs_at(old, made.z, made.x)
    return bool(np.mean(gain) > max(_LEAST, 2 * np.std(gain) / np.sqrt(len(gain))))


def _total(trace: Trace) -> int:
    return int(trace.evaluations[-1]) if len(trace.evaluations) else 0


def _left(budget: Budget, started: float, used: int) -> Budget | None:
    """What the runs so far have left of the budget; None where that is nothing."""
    seconds = None if budget.seconds is None else budget.seconds - (time.perf_counter() - started)
    evaluations = None if budget.evaluations is None else budget.evaluations - used
    over = (seconds is not None and seconds <= 0) or (evaluations is not None and evaluations <= 0)
    return None if over else Budget(seconds, evaluations)


__all__ = ["climb_heads"]
