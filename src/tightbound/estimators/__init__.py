"""Question 3a: how are expectations and their gradients computed?

`tb.estimators.Pathwise(8)` and its relatives.
"""

from .base import AbstractEstimator as AbstractEstimator
from .base import Moments as Moments
from .clutter.local_quadratic import LocalQuadratic as LocalQuadratic
from .clutter.projected_logit import ProjectedLogit as ProjectedLogit
from .clutter.sum_of_exponentials import SumOfExponentials as SumOfExponentials
from .doubly import DoublyReparam as DoublyReparam
from .enumerate import Enumerate as Enumerate
from .fixed_design import FixedDesign as FixedDesign
from .from_model import FromModel as FromModel
from .gauss_hermite import GaussHermite as GaussHermite
from .measure_valued import MeasureValued as MeasureValued
from .minibatch import Minibatch as Minibatch
from .pathwise import Pathwise as Pathwise
from .pathwise import StickTheLanding as StickTheLanding
from .quadrature import Quadrature as Quadrature
from .relaxed import Relaxed as Relaxed
from .score import Score as Score

__all__ = [
    "AbstractEstimator",
    "DoublyReparam",
    "Enumerate",
    "FixedDesign",
    "FromModel",
    "GaussHermite",
    "LocalQuadratic",
    "MeasureValued",
    "Minibatch",
    "Moments",
    "Pathwise",
    "ProjectedLogit",
    "Quadrature",
    "Relaxed",
    "Score",
    "StickTheLanding",
    "SumOfExponentials",
]
