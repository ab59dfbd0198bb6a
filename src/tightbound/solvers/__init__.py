"""Question 3b: how is the closest member found?"""

from .base import AbstractSolver as AbstractSolver
from .base import Info as Info
from .fixed_draws import FixedDraws as FixedDraws
from .laplace import Laplace as Laplace
from .natural import NaturalGradient as NaturalGradient
from .nested import Nested as Nested
from .stochastic import StochasticGradient as StochasticGradient

__all__ = ["AbstractSolver", "FixedDraws", "Info", "Laplace", "NaturalGradient", "Nested", "StochasticGradient"]
