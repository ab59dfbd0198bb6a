"""Question 2: how is closeness measured? `tb.objectives.ELBO()` and its relatives."""

from .base import AbstractObjective as AbstractObjective
from .base import Draws as Draws
from .base import Source as Source
from .classic import ELBO as ELBO
from .classic import IWELBO as IWELBO
from .closed_forms import KnownGaussian as KnownGaussian
from .fisher import Fisher as Fisher
from .forward_kl import ForwardKL as ForwardKL
from .forward_kl import SoftmaxWeighted as SoftmaxWeighted
from .inclusive import WakePhase as WakePhase
from .renyi import VRIWAE as VRIWAE
from .renyi import ChiUpper as ChiUpper
from .renyi import Renyi as Renyi

__all__ = [
    "ELBO",
    "IWELBO",
    "VRIWAE",
    "AbstractObjective",
    "ChiUpper",
    "Draws",
    "Fisher",
    "ForwardKL",
    "KnownGaussian",
    "Renyi",
    "SoftmaxWeighted",
    "Source",
    "WakePhase",
]
