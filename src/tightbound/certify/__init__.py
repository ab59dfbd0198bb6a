"""Question 4: how far off is it? `tb.check` and what it is made of."""

from .base import Certificate as Certificate
from .base import Finding as Finding
from .base import Verdict as Verdict
from .check import check as check
from .linear_response import LinearResponse as LinearResponse
from .linear_response import linear_response as linear_response
from .psis import SmoothedWeights as SmoothedWeights
from .psis import smooth as smooth

__all__ = ["Certificate", "Finding", "LinearResponse", "SmoothedWeights", "Verdict", "check", "linear_response", "smooth"]
