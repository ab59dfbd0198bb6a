"""What we want to know: from a log density, rows of data, a NumPyro model or simulations.

And the zoo of targets of which the truth is known.
"""

from . import conjugate, zoo
from .base import (
    AbstractTarget,
    Conjugate,
    Density,
    Joint,
    Observed,
    Predictive,
    Rows,
    Sequential,
    Simulator,
    Sites,
    require,
)
from .clutter import Clutter
from .conjugate import (
    AbstractCollapsedTarget,
    AbstractConjugateTarget,
    CollapsedModel,
    ConjugateModel,
    FactorAnalysis,
    FoundModel,
    GaussianMixture,
    HiddenMarkovModel,
    HierarchicalNormal,
    LatentDirichletAllocation,
    LinearRegressionARD,
    NormalSample,
    from_expected_log_joint,
)
from .layout import Layout
from .linear_clutter import LinearClutter
from .linear_sites import LinearSites
from .log_density import AbstractNamedTarget, LogDensity, from_log_density
from .numpyro_model import AbstractNumPyroTarget, NumPyroModel, NumPyroRows, from_numpyro
from .rows import IndependentRows, UpdatedRows, from_rows
from .simulator import (
    SimulatedModel,
    SimulatorPosterior,
    StoredSimulations,
    from_simulations,
    from_simulator,
)
from .sites import Contaminated, GaussianSites, LearnableNoise, Reweighted

__all__ = [
    "AbstractCollapsedTarget",
    "AbstractConjugateTarget",
    "AbstractNamedTarget",
    "AbstractNumPyroTarget",
    "AbstractTarget",
    "Clutter",
    "CollapsedModel",
    "Conjugate",
    "ConjugateModel",
    "Contaminated",
    "Density",
    "FactorAnalysis",
    "FoundModel",
    "GaussianMixture",
    "GaussianSites",
    "HiddenMarkovModel",
    "HierarchicalNormal",
    "IndependentRows",
    "Joint",
    "LatentDirichletAllocation",
    "Layout",
    "LearnableNoise",
    "LinearClutter",
    "LinearRegressionARD",
    "LinearSites",
    "LogDensity",
    "NormalSample",
    "NumPyroModel",
    "NumPyroRows",
    "Observed",
    "Predictive",
    "Reweighted",
    "Rows",
    "Sequential",
    "SimulatedModel",
    "Simulator",
    "SimulatorPosterior",
    "Sites",
    "StoredSimulations",
    "UpdatedRows",
    "conjugate",
    "from_expected_log_joint",
    "from_log_density",
    "from_numpyro",
    "from_rows",
    "from_simulations",
    "from_simulator",
    "require",
    "zoo",
]
