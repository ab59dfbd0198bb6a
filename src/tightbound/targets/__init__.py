"""What we want to know: targets, made from a log density, rows of data, or a NumPyro model; and the zoo of known ones."""

from . import zoo
from .base import AbstractTarget, Conjugate, Density, Joint, Observed, Predictive, Rows, Simulator, Sites, require
from .clutter import Clutter
from .layout import Layout
from .log_density import LogDensity, from_log_density
from .named import AbstractNamedTarget
from .numpyro_model import AbstractNumPyroTarget, NumPyroModel, NumPyroRows, from_numpyro
from .rows import IndependentRows, from_rows
from .simulator import SimulatedModel, SimulatorPosterior, StoredSimulations, from_simulations, from_simulator
from .sites import Contaminated, GaussianSites, LinearSites

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
    "LinearSites",
    "LogDensity",
    "NumPyroModel",
    "NumPyroRows",
    "Observed",
    "Predictive",
    "Rows",
    "SimulatedModel",
    "Simulator",
    "SimulatorPosterior",
    "Sites",
    "StoredSimulations",
    "from_log_density",
    "from_numpyro",
    "from_rows",
    "from_simulations",
    "from_simulator",
    "require",
    "zoo",
]
