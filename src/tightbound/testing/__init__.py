"""Batteries: what every new part must pass before it is let in.

Plain functions, one per kind of part; each raises AssertionError with a sentence that says what is
wrong. They compare with known truth (quadrature, closed forms, identities). The tables of
`tests/batteries` hold every concrete part of the library, and show that broken parts fail.
"""

from .conditional import check_conditional as check_conditional
from .draws import check_empirical as check_empirical
from .estimators import Problem as Problem
from .estimators import check_estimator as check_estimator
from .exponential import check_exponential_family as check_exponential_family
from .exponential import check_product as check_product
from .families import check_family as check_family
from .gaussian import GaussianTarget as GaussianTarget
from .known_losses import enumeration_problem as enumeration_problem
from .known_losses import quadrature_problem as quadrature_problem
from .moments import check_moments as check_moments
from .objectives import NEIGHBOURS as NEIGHBOURS
from .objectives import check_objective as check_objective
from .objectives import check_order as check_order
from .simulators import check_simulator as check_simulator
from .solvers import check_solver as check_solver
from .targets import check_target as check_target
