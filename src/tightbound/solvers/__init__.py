"""Question 3b: how is the closest member found?"""

from .annealed import Annealed as Annealed
from .base import AbstractSolver as AbstractSolver
from .base import Info as Info
from .ep import EP as EP
from .fixed_draws import FixedDraws as FixedDraws
from .held_out import HeldOut as HeldOut
from .laplace import Laplace as Laplace
from .natural import NaturalGradient as NaturalGradient
from .nested import Nested as Nested
from .stochastic import StochasticGradient as StochasticGradient

__all__ = [
    "EP",
    "AbstractSolver",
    "Annealed",
    "FixedDraws",
    "HeldOut",
    "Info",
    "Laplace",
    "NaturalGradient",
    "Nested",
    "StochasticGradient",
]
