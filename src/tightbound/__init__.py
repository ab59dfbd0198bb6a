"""tightbound: variational inference that says how far off it is.

Names in the order of the questions: what do we want to know (targets), which family, how is
closeness measured, how is it computed and found, how far off is the answer.
"""

import importlib
from types import ModuleType

from . import amortised as amortised
from . import certify as certify
from . import estimators as estimators
from . import families as families
from . import objectives as objectives
from . import solvers as solvers
from . import targets as targets
from ._types import Estimate as Estimate
from .account import Budget as Budget
from .account import Spent as Spent
from .batch.fit_batch import fit_batch as fit_batch
from .batch.result import BatchFit as BatchFit
from .certify.certificate import Certificate as Certificate
from .certify.certificate import check as check
from .certify.finding import Finding as Finding
from .certify.finding import Verdict as Verdict
from .certify.linear_response import linear_response as linear_response
from .compare import Comparison as Comparison
from .compare import compare as compare
from .compare_estimators import EstimatorComparison as EstimatorComparison
from .compare_estimators import compare_estimators as compare_estimators
from .fit import Fit as Fit
from .fit import fit as fit
from .fit import load as load
from .refine import refine as refine
from .results import FitError as FitError
from .results import PairingError as PairingError
from .results import Result as Result
from .results import TargetError as TargetError
from .targets import from_expected_log_joint as from_expected_log_joint
from .targets import from_log_density as from_log_density
from .targets import from_numpyro as from_numpyro
from .targets import from_rows as from_rows
from .targets import from_simulations as from_simulations
from .targets import from_simulator as from_simulator
from .update import update as update

__all__ = [
    "BatchFit",
    "Budget",
    "Certificate",
    "Comparison",
    "Estimate",
    "EstimatorComparison",
    "Finding",
    "Fit",
    "FitError",
    "PairingError",
    "Result",
    "Spent",
    "TargetError",
    "Verdict",
    "amortised",
    "certify",
    "check",
    "compare",
    "compare_estimators",
    "estimators",
    "families",
    "fit",
    "fit_batch",
    "from_expected_log_joint",
    "from_log_density",
    "from_numpyro",
    "from_rows",
    "from_simulations",
    "from_simulator",
    "linear_response",
    "load",
    "objectives",
    "refine",
    "solvers",
    "targets",
    "update",
]  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    """`tb.experiments`, imported when it is first asked for."""
    if name == "experiments":
        return importlib.import_module(f"{__name__}.experiments")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
