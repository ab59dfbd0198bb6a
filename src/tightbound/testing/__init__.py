"""Batteries: what every new part must pass before it is let in.

Plain functions, one per kind of part; each raises AssertionError with a sentence that says what is
wrong. They compare with known truth (quadrature, closed forms, identities), and
`tests/test_batteries.py` shows that broken parts fail them.
"""

from .estimators import check_estimator as check_estimator
from .exponential import check_exponential_family as check_exponential_family
from .families import check_family as check_family
from .gaussian import GaussianTarget as GaussianTarget
from .objectives import check_objective as check_objective
from .objectives import check_order as check_order
from .solvers import check_solver as check_solver
from .targets import check_target as check_target
