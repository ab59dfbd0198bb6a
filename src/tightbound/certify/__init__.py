"""Question 4: how far off is it? `tb.check` and what it is made of."""

from . import calibration as calibration
from .calibration import calibrate as calibrate
from .calibration import calibrate_refits as calibrate_refits
from .certificate import check as check
from .finding import Certificate as Certificate
from .finding import Finding as Finding
from .finding import Verdict as Verdict
from .linear_response import LinearResponse as LinearResponse
from .linear_response import linear_response as linear_response
from .psis import SmoothedWeights as SmoothedWeights
from .psis import smooth as smooth

__all__ = [
    "Certificate",
    "Finding",
    "LinearResponse",
    "SmoothedWeights",
    "Verdict",
    "calibrate",
    "calibrate_refits",
    "calibration",
    "check",
    "linear_response",
    "smooth",
]
