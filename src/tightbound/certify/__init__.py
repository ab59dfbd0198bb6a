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
from .linear_response import LinearResponse as LinearResponse
from .linear_response import linear_response as linear_response
from .psis import SmoothedWeights as SmoothedWeights
from .psis import smooth as smooth

__all__ = ["Certificate", "Finding", "LinearResponse", "SmoothedWeights", "Verdict", "check", "linear_response", "smooth"]
from .global_optimum import convex_bound as convex_bound
from .ntk import TangentKernel as TangentKernel
from .ntk import antipodal as antipodal
from .ntk import tangent_kernel as tangent_kernel

__all__ = [
    "Certificate",
    "Finding",
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
    "smooth",
    "tangent_kernel",
]
