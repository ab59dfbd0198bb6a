"""Question 1: which family? `tb.families.Gaussian.full(dim)` and its relatives."""

from .base import AbstractFamily as AbstractFamily
from .exponential.base import AbstractExponentialFamily as AbstractExponentialFamily
from .exponential.chain import DiscreteMarkovChain as DiscreteMarkovChain
from .exponential.discrete import Bernoulli as Bernoulli
from .exponential.discrete import Categorical as Categorical
from .exponential.discrete import Poisson as Poisson
from .exponential.gamma import Exponential as Exponential
from .exponential.gamma import Gamma as Gamma
from .exponential.gamma import InverseGamma as InverseGamma
from .exponential.normal import MultivariateNormal as MultivariateNormal
from .exponential.normal import Normal as Normal
from .exponential.product import Product as Product
from .exponential.simplex import Beta as Beta
from .exponential.simplex import Dirichlet as Dirichlet
from .exponential.von_mises import VonMises as VonMises
from .exponential.wishart import NormalWishart as NormalWishart
from .exponential.wishart import Wishart as Wishart
from .gaussian import Gaussian as Gaussian
from .gaussian import kl as kl
from .log_linear import LogLinear as LogLinear
from .low_rank import LowRank as LowRank
from .mixture import Mixture as Mixture
from .nested import NestedGaussian as NestedGaussian
from .scales import AbstractScale as AbstractScale
from .scales import Diagonal as Diagonal
from .scales import Full as Full
