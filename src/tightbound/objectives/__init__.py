"""Question 2: how is closeness measured? `tb.objectives.ELBO()` and its relatives."""

from .base import AbstractObjective as AbstractObjective
from .base import Draws as Draws
from .base import KnownGaussian as KnownGaussian
from .base import Source as Source
from .classic import ELBO as ELBO
from .classic import IWELBO as IWELBO
from .fisher import Fisher as Fisher
from .forward_kl import ForwardKL as ForwardKL
from .forward_kl import SoftmaxWeighted as SoftmaxWeighted
from .inclusive import WakePhase as WakePhase
from .renyi import VRIWAE as VRIWAE
from .renyi import ChiUpper as ChiUpper
from .renyi import Renyi as Renyi
