"""Question 4: how far off is it? `tb.check` and what it is made of."""

from . import at_data as at_data
from . import calibration as calibration
from . import global_optimum as global_optimum
from .amortised import check_amortised as check_amortised
from .base import Certificate as Certificate
from .base import Finding as Finding
from .base import Verdict as Verdict
from .calibration import calibrate as calibrate
from .calibration import calibrate_refits as calibrate_refits
from .check import check as check
from .global_optimum import convex_bound as convex_bound
from .improvement import Improvement as Improvement
from .improvement import improvement as improvement
from .linear_response import LinearResponse as LinearResponse
from .linear_response import linear_response as linear_response
from .ntk import TangentKernel as TangentKernel
from .ntk import antipodal as antipodal
from .ntk import tangent_kernel as tangent_kernel
from .psis import SmoothedWeights as SmoothedWeights
from .psis import smooth as smooth

__all__ = [
    "Certificate",
    "Finding",
    "Improvement",
    "LinearResponse",
    "SmoothedWeights",
    "TangentKernel",
    "Verdict",
    "antipodal",
    "at_data",
    "calibrate",
    "calibrate_refits",
    "calibration",
    "check",
    "check_amortised",
    "convex_bound",
    "global_optimum",
    "improvement",
    "linear_response",
    "smooth",
    "tangent_kernel",
]
