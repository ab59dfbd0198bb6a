"""A start for regression with outliers: least squares, reweighted.

With kernels that are wide first and narrow last.
"""

import numpy as np
import scipy.linalg

from ..families.gaussian import Gaussian
from ..targets.sites import Reweighted

_PER_WIDTH = 3  # rounds at each width: the next one moves the answer anyway
_AT_LAST = 30  # rounds at the narrowest, where they converge linearly


def anneal_reweighted(target: Reweighted) -> Gaussian:
    """N(z, P^-1) where reweighted least squares ends.

    The kernels' variance is halved from its widest down to vg. The clutter paper's schedule with EM
    in place of its moments: wide kernels see every point, narrow ones only inliers.

    Source: Popov 2024, Algorithm 1 (the schedule); Holland & Welsch 1977 (reweighting).
    """
    widening = target.widest()
    z, precision = target.reweighted(None, widening)
    while widening > 1.0:
        widening = max(1.0, 0.5 * widening)
        for _ in range(_AT_LAST if widening == 1.0 else _PER_WIDTH):
            z, precision = target.reweighted(z, widening)
    lower = np.linalg.cholesky(precision)
    return Gaussian.from_root(z, scipy.linalg.solve_triangular(lower, np.eye(len(z)), lower=True).T)


__all__ = ["anneal_reweighted"]
