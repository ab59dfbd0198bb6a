"""Question 3b: how is the closest member found?"""

from ..search.chain_statistics import MixingLimits as MixingLimits
from ..search.schedules import RobbinsMonro as RobbinsMonro
from ..starts.annealed_batch import annealed_start as annealed_start
from .annealed import Annealed as Annealed
from .base import AbstractSolver as AbstractSolver
from .base import Info as Info
from .batch_and_match import BatchAndMatch as BatchAndMatch
from .coordinate_ascent import CoordinateAscent as CoordinateAscent
from .ep import EP as EP
from .fixed_draws import FixedDraws as FixedDraws
from .fixed_noise import FixedNoise as FixedNoise
from .gibbs import Gibbs as Gibbs
from .held_out import HeldOut as HeldOut
from .hmc import HMC as HMC
from .indicators import IndicatorMeanField as IndicatorMeanField
from .laplace import Laplace as Laplace
from .learn_clutter import LearnClutter as LearnClutter
from .metropolis import Metropolis as Metropolis
from .natural import NaturalGradient as NaturalGradient
from .nested import Nested as Nested
from .nested_pair import NestedPair as NestedPair
from .nuts import NUTS as NUTS
from .pathfinder import Pathfinder as Pathfinder
from .sampling import AbstractSampler as AbstractSampler
from .sampling import Moves as Moves
from .stochastic import StochasticGradient as StochasticGradient
from .subsampled import Subsampled as Subsampled
from .svi import SVI as SVI

__all__ = [
    "EP",
    "HMC",
    "NUTS",
    "SVI",
    "AbstractSampler",
    "AbstractSolver",
    "Annealed",
    "BatchAndMatch",
    "CoordinateAscent",
    "FixedDraws",
    "FixedNoise",
    "Gibbs",
    "HeldOut",
    "IndicatorMeanField",
    "Info",
    "Laplace",
    "LearnClutter",
    "Metropolis",
    "MixingLimits",
    "Moves",
    "NaturalGradient",
    "Nested",
    "NestedPair",
    "Pathfinder",
    "RobbinsMonro",
    "StochasticGradient",
    "Subsampled",
    "annealed_start",
]
