"""The ladder above an amortised Gaussian: richer heads, where calibration finds q too small.

Rungs: the convex head that a fit begins with, a mixture, a flow. A rung replaces the one below only
for a significant gain in the expected log density of fresh simulations, which neither was trained
on.
"""

from collections.abc import Callable
from typing import TypeAlias, cast

import numpy as np

from .._numerics import x64
from ..account import CERTIFICATE, Account, Budget
from ..certify.certificate import Certificate, check
from ..certify.climbed import Climbed
from ..certify.finding import Verdict
from ..certify.simulations import Amortised, Simulated, simulations
from ..certify.standards import STANDARDS
from ..families.base import AbstractFamily
from ..families.conditional import log_probs_at
from ..loop import Run, Trace
from ..results import MissingExtraError
from ..solvers.base import AbstractSolver
from ..solvers.held_out import HeldOut
from ..targets.base import Simulator, require
from .start import HeadName, amortised

# In order of how much they can follow; the last one needs an extra.
_RICHER: tuple[HeadName, ...] = ("mixture", "flow")
_JUDGED = 2000  # fresh simulations that two rungs are compared on
_LEAST = 0.02  # nats; a smaller gain is not worth a family without the promise of convexity
_CALIBRATION = ("sbc", "expected coverage", "tarp")

Train: TypeAlias = Callable[[AbstractFamily, AbstractSolver, Budget], Run]
"""(q, solver, what is left of the budget) -> a run on the target at hand."""


def climb_heads(
    first: Run,
    beginning: object,  # unused: the protocol of a ladder for densities has it
    run_solver: Train,
    *,
    key: int,
    account: Account,
) -> Climbed:
    """Certify the first fit; while calibration does not pass, train the next richer head.

    A head is kept where it is better on fresh simulations.

    Arguments:
        first: the run of the convex head.
        beginning: what a ladder for densities gets of the start; it is not used.
        run_solver: trains a q.
        key: of checks and networks.
        account: of the fit.
    """
    target = require("the ladder of heads", first.target, Simulator)
    kept, name, certificate = first, "convex head", _certified(first, key, account)
    traces, why, made = [first.trace], "", None
    for head in _RICHER:
        if not (kept.result.ok and _too_small(certificate)):
            break
        left = account.left()
        if left is None:
            why = "the budget is spent; a larger `budget` climbs further."
            break
        try:
            q = amortised(target, head, key=key, seeds=len(_family(first).members))
        except MissingExtraError as missing:
            why = str(missing)
            break
        with account.stage(f"{head} head"):
            run = run_solver(q, HeldOut(), left)
        traces.append(run.trace)
        # Other simulations than those of the certificates, which say whether there is a next rung.
        made = simulations(target, (key + 1) % 2**32, _JUDGED) if made is None else made
        if run.result.usable and _better(_family(run), _family(kept), made):
            kept, name, certificate = run, f"{head} head", _certified(run, key, account)
    why = why or _why(kept, name, certificate)
    return Climbed(kept, certificate, f"{name}: {why}", Trace.joined(traces))


def _certified(run: Run, key: int, account: Account) -> Certificate:
    # A certificate is made whatever the budget is: without one a fit says nothing.
    with account.stage(CERTIFICATE, binds=False):
        return check(run, key=key)


def _family(run: Run) -> Amortised:
    """The q of a run on a simulator, which is amortised."""
    return cast(Amortised, run.q)


def _why(kept: Run, name: str, certificate: Certificate) -> str:
    """Why a climb that neither the budget nor a missing extra ended stopped."""
    if not _too_small(certificate):
        return "calibration asks for no richer one."
    if name == f"{_RICHER[-1]} head":
        return "the richest head there is."
    if not kept.result.ok:
        return "its training was cut short."
    return "no richer head gains on fresh simulations."


def _too_small(certificate: Certificate) -> bool:
    """Whether q is miscalibrated, though it has learnt: then its family misfits."""
    learnt = certificate["learns"].verdict is Verdict.PASS
    return learnt and any(certificate[name].verdict is not Verdict.PASS for name in _CALIBRATION)


def _better(new: Amortised, old: Amortised, made: Simulated) -> bool:
    """Whether the mean log density at the true parameters gains beyond two standard errors.

    Those of the paired difference: what both networks find hard cancels in it.
    """
    with x64():
        gain = log_probs_at(new, made.z, made.x) - log_probs_at(old, made.z, made.x)
    return bool(np.mean(gain) > max(_LEAST, STANDARDS.errors * np.std(gain) / np.sqrt(len(gain))))


__all__ = ["climb_heads"]
