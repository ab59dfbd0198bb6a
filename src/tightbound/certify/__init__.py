"""Question 4: how far off is it? `tb.check` and what it is made of."""

from . import calibration as calibration
from . import chains as chains
from . import factors as factors
from .calibration import calibrate as calibrate
from .calibration import calibrate_refits as calibrate_refits
from .certificate import Certificate as Certificate
from .certificate import check as check
from .finding import About as About
from .finding import Finding as Finding
from .finding import FindingDetail as FindingDetail
from .finding import Rival as Rival
from .finding import Verdict as Verdict
from .linear_response import LinearResponse as LinearResponse
from .linear_response import linear_response as linear_response
from .psis import SmoothedWeights as SmoothedWeights
from .psis import smooth as smooth
from .standards import Effort as Effort
from .standards import Standards as Standards

__all__ = [
    "About",
    "Certificate",
    "Effort",
    "Finding",
    "FindingDetail",
    "LinearResponse",
    "Rival",
    "SmoothedWeights",
    "Standards",
    "Verdict",
    "calibrate",
    "calibrate_refits",
    "calibration",
    "check",
    "linear_response",
    "smooth",
]
