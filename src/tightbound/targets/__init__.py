"""What we want to know: targets, made from a log density, rows of data, or a NumPyro model; and the zoo of known ones."""

from . import zoo as zoo
from .base import (
    AbstractTarget as AbstractTarget,
    Conjugate as Conjugate,
    Density as Density,
    Joint as Joint,
    Observed as Observed,
    Predictive as Predictive,
    Rows as Rows,
    Simulator as Simulator,
    Sites as Sites,
    require as require,
)
from .layout import Layout as Layout
from .log_density import LogDensity as LogDensity, from_log_density as from_log_density
from .named import AbstractNamedTarget as AbstractNamedTarget
from .numpyro_model import (
    AbstractNumPyroTarget as AbstractNumPyroTarget,
    NumPyroModel as NumPyroModel,
    NumPyroRows as NumPyroRows,
    from_numpyro as from_numpyro,
)
from .rows import IndependentRows as IndependentRows, from_rows as from_rows

__all__ = [
    "AbstractNamedTarget",
    "AbstractNumPyroTarget",
    "AbstractTarget",
    "Conjugate",
    "Density",
    "IndependentRows",
    "Joint",
    "Layout",
    "LogDensity",
    "NumPyroModel",
    "NumPyroRows",
    "Observed",
    "Predictive",
    "Rows",
    "Simulator",
    "Sites",
    "from_log_density",
    "from_numpyro",
    "from_rows",
    "require",
    "zoo",
]
