"""Amortised inference: one fit for all data.

Heads, encoders, the answer at given data, and its certificate.
"""

from . import at_data as at_data
from . import encoders as encoders
from . import global_optimum as global_optimum
from . import heads as heads
from .certificate import check_amortised as check_amortised
from .global_optimum import convex_bound as convex_bound
from .improvement import Improvement as Improvement
from .improvement import improvement as improvement
from .posterior import Posterior as Posterior
from .posterior import PosteriorBatch as PosteriorBatch
from .start import amortised as amortised
from .tangent_kernel import TangentKernel as TangentKernel
from .tangent_kernel import antipodal as antipodal
from .tangent_kernel import tangent_kernel as tangent_kernel

__all__ = [
    "Improvement",
    "Posterior",
    "PosteriorBatch",
    "TangentKernel",
    "amortised",
    "antipodal",
    "at_data",
    "check_amortised",
    "convex_bound",
    "encoders",
    "global_optimum",
    "heads",
    "improvement",
    "tangent_kernel",
]
