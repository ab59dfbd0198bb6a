"""Question 3b: how is the closest member found?"""

from .annealed import Annealed as Annealed
from .base import AbstractSolver as AbstractSolver
from .base import Info as Info
from .ep import EP as EP
from .fixed_draws import FixedDraws as FixedDraws
from .fixed_noise import FixedNoise as FixedNoise
from .indicators import IndicatorMeanField as IndicatorMeanField
from .laplace import Laplace as Laplace
from .natural import NaturalGradient as NaturalGradient
from .nested import Nested as Nested
from .samplers import HMC as HMC
from .samplers import NUTS as NUTS
from .samplers import Metropolis as Metropolis
from .sampling import AbstractSampler as AbstractSampler
from .sampling import Moves as Moves
from .schedules import RobbinsMonro as RobbinsMonro
from .stochastic import StochasticGradient as StochasticGradient

__all__ = [
    "EP",
    "HMC",
    "NUTS",
    "AbstractSampler",
    "AbstractSolver",
    "Annealed",
    "FixedDraws",
    "FixedNoise",
    "IndicatorMeanField",
    "Info",
    "Laplace",
    "Metropolis",
    "Moves",
    "NaturalGradient",
    "Nested",
    "RobbinsMonro",
    "StochasticGradient",
]
