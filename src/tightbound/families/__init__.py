"""Question 1: which family? `tb.families.Gaussian.full(dim)` and its relatives."""

from .base import AbstractFamily as AbstractFamily
from .conditional import Conditional as Conditional
from .conditional import Conditioned as Conditioned
from .conditional import Ensemble as Ensemble
from .conditional import Scaling as Scaling
from .empirical import Empirical as Empirical
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
from .flow import Flow as Flow
from .gaussian import Gaussian as Gaussian
from .gaussian import kl as kl
from .implicit import implicit as implicit
from .log_linear import LogLinear as LogLinear
from .low_rank import LowRank as LowRank
from .mixture import Mixture as Mixture
from .nested import NestedGaussian as NestedGaussian
from .nested_pair import NestedGaussianPair as NestedGaussianPair
from .scales import AbstractScale as AbstractScale
from .scales import Diagonal as Diagonal
from .scales import Full as Full
from .student import StudentT as StudentT
from .transported import Transported as Transported
from .warped import Warped as Warped

__all__ = [
    "AbstractExponentialFamily",
    "AbstractFamily",
    "AbstractScale",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Conditional",
    "Conditioned",
    "Diagonal",
    "Dirichlet",
    "DiscreteMarkovChain",
    "Empirical",
    "Ensemble",
    "Exponential",
    "Flow",
    "Full",
    "Gamma",
    "Gaussian",
    "InverseGamma",
    "LogLinear",
    "LowRank",
    "Mixture",
    "MultivariateNormal",
    "NestedGaussian",
    "NestedGaussianPair",
    "Normal",
    "NormalWishart",
    "Poisson",
    "Product",
    "Scaling",
    "StudentT",
    "Transported",
    "VonMises",
    "Warped",
    "Wishart",
    "implicit",
    "kl",
]
