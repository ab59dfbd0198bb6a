"""Targets with known moments and evidence: the truth for tests, benchmarks and demonstrations."""

from .conjugate import beta_bernoulli, gamma_poisson, linear_regression, normal_normal
from .gaussians import gaussian, student_t, two_modes
from .known import Known
from .logistic import logistic_regression
from .schools import eight_schools
from .shapes import banana, funnel, ring

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
