"""Targets with known moments and evidence: what tests, benchmarks and demonstrations are judged by."""

from .conjugate import (
    beta_bernoulli as beta_bernoulli,
)
from .conjugate import (
    gamma_poisson as gamma_poisson,
)
from .conjugate import (
    linear_regression as linear_regression,
)
from .conjugate import (
    normal_normal as normal_normal,
)
from .gaussians import gaussian as gaussian
from .gaussians import student_t as student_t
from .gaussians import two_modes as two_modes
from .known import Known as Known
from .logistic import logistic_regression as logistic_regression
from .schools import eight_schools as eight_schools
from .shapes import banana as banana
from .shapes import funnel as funnel
from .shapes import ring as ring

__all__ = [
    "Known",
    "banana",
    "beta_bernoulli",
    "eight_schools",
    "funnel",
    "gamma_poisson",
    "gaussian",
    "linear_regression",
    "logistic_regression",
    "normal_normal",
    "ring",
    "student_t",
    "two_modes",
]
