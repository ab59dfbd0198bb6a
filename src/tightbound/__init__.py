"""tightbound: variational inference that says how far off it is.

Names in the order of the questions: what do we want to know (targets), which family, how is closeness measured, how is
it computed and found, how far off is the answer.
"""

from . import certify as certify, estimators as estimators, families as families, objectives as objectives
from . import solvers as solvers, targets as targets
from ._types import Budget as Budget, Estimate as Estimate
from .certify.base import Certificate as Certificate, Finding as Finding, Verdict as Verdict
from .certify.check import check as check
from .fit import Fit as Fit, fit as fit, load as load
from .results import FitError as FitError, PairingError as PairingError, Result as Result, TargetError as TargetError
from .targets import from_log_density as from_log_density, from_numpyro as from_numpyro, from_rows as from_rows

__all__ = [
    "Budget", "Certificate", "Estimate", "Finding", "Fit", "FitError", "PairingError", "Result", "TargetError", "Verdict",
    "certify", "check", "estimators", "families", "fit", "from_log_density", "from_numpyro", "from_rows", "load",
    "objectives", "solvers", "targets",
]  # fmt: skip
