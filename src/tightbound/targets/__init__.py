"""What we want to know: targets, made from a log density, rows of data, or a NumPyro model; and the zoo of known ones."""

from . import zoo as zoo
from .base import (
    AbstractTarget as AbstractTarget,
)
from .base import (
    Conjugate as Conjugate,
)
from .base import (
    Density as Density,
)
from .base import (
    Joint as Joint,
)
from .base import (
    Observed as Observed,
)
from .base import (
    Predictive as Predictive,
)
from .base import (
    Rows as Rows,
)
from .base import (
    Simulator as Simulator,
)
from .base import (
    Sites as Sites,
)
from .base import (
    require as require,
)
from .layout import Layout as Layout
from .log_density import LogDensity as LogDensity
from .log_density import from_log_density as from_log_density
from .named import AbstractNamedTarget as AbstractNamedTarget
from .numpyro_model import (
    AbstractNumPyroTarget as AbstractNumPyroTarget,
)
from .numpyro_model import (
    NumPyroModel as NumPyroModel,
)
from .numpyro_model import (
    NumPyroRows as NumPyroRows,
)
from .numpyro_model import (
    from_numpyro as from_numpyro,
)
from .rows import IndependentRows as IndependentRows
from .rows import from_rows as from_rows

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
