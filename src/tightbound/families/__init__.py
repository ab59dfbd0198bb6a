"""Question 1: which family? `tb.families.Gaussian.full(dim)` and its relatives."""

from . import encoders as encoders
from . import heads as heads
from .amortised import amortised as amortised
from .base import AbstractFamily as AbstractFamily
from .conditional import Conditional as Conditional
from .conditional import Conditioned as Conditioned
from .conditional import Ensemble as Ensemble
from .conditional import Scaling as Scaling
from .gaussian import Gaussian as Gaussian
from .gaussian import kl as kl
from .log_linear import LogLinear as LogLinear
from .low_rank import LowRank as LowRank
from .mixture import Mixture as Mixture
from .nested import NestedGaussian as NestedGaussian
from .scales import AbstractScale as AbstractScale
from .scales import Diagonal as Diagonal
from .scales import Full as Full
