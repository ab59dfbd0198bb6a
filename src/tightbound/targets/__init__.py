"""What we want to know: targets, made from a log density, rows of data, or a NumPyro model; and the zoo of known ones."""

from . import zoo
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
from .layout import Layout
from .linear_clutter import LinearClutter
from .log_density import LogDensity, from_log_density
from .named import AbstractNamedTarget
from .numpyro_model import AbstractNumPyroTarget, NumPyroModel, NumPyroRows, from_numpyro
from .rows import IndependentRows, from_rows
from .sites import Contaminated, GaussianSites, LearnableNoise, LinearSites, Reweighted
from .updated import UpdatedRows

__all__ = [
    "AbstractNamedTarget",
    "AbstractNumPyroTarget",
    "AbstractTarget",
    "Clutter",
    "Conjugate",
    "Contaminated",
    "Density",
    "GaussianSites",
    "IndependentRows",
    "Joint",
    "Layout",
    "LearnableNoise",
    "LinearClutter",
    "LinearSites",
    "LogDensity",
    "NumPyroModel",
    "NumPyroRows",
    "Observed",
    "Predictive",
    "Reweighted",
    "Rows",
    "Sequential",
    "Simulator",
    "Sites",
    "UpdatedRows",
    "from_log_density",
    "from_numpyro",
    "from_rows",
    "require",
    "zoo",
]
