"""Conjugate models.

Targets for coordinate ascent, each a short file, and one made from a function of the user's own.
"""

from .base import AbstractCollapsedTarget as AbstractCollapsedTarget
from .base import AbstractConjugateTarget as AbstractConjugateTarget
from .discovery import FoundModel as FoundModel
from .factor_analysis import FactorAnalysis as FactorAnalysis
from .from_function import CollapsedModel as CollapsedModel
from .from_function import ConjugateModel as ConjugateModel
from .from_function import from_expected_log_joint as from_expected_log_joint
from .gaussian_mixture import GaussianMixture as GaussianMixture
from .hidden_markov import HiddenMarkovModel as HiddenMarkovModel
from .hierarchical_normal import HierarchicalNormal as HierarchicalNormal
from .linear_regression import LinearRegressionARD as LinearRegressionARD
from .normal_model import NormalSample as NormalSample
from .topics import LatentDirichletAllocation as LatentDirichletAllocation
