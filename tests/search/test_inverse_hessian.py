"""The inverse Hessian of L-BFGS: the compact form against the BFGS formula, and along a path."""

import numpy as np
import pytest

from tightbound.search.inverse_hessian import InverseHessian, inverse_hessians


def dense_bfgs(alpha, s, y):
    """H <- (I - r s y') H (I - r y s') + r s s' for each pair, r = 1 / s'y.

    Source: Nocedal & Wright 2006, eq. 6.17.
    """
    h = np.diag(alpha)
    for a, b in zip(s.T, y.T, strict=True):
        left = np.eye(len(a)) - np.outer(a, b) / (a @ b)
        h = left @ h @ left.T + np.outer(a, a) / (a @ b)
    return h


def test_the_compact_form_is_the_bfgs_matrix():
    rng = np.random.default_rng(0)
    precision = np.diag(np.geomspace(0.1, 10, 7))
    s = rng.standard_normal((7, 4))
    y, alpha = precision @ s + 0.05 * rng.standard_normal((7, 4)), rng.uniform(0.5, 2.0, 7)
    assert np.all(np.sum(s * y, axis=0) > 0)
    h, expected = InverseHessian.of(alpha, s, y), dense_bfgs(alpha, s, y)
    assert h is not None
    root = h.displace(np.eye(7)).T
    np.testing.assert_allclose(root @ root.T, expected, rtol=1e-9, atol=1e-10)
    v = rng.standard_normal(7)
    np.testing.assert_allclose(h.times(v), expected @ v, rtol=1e-9)
    assert h.half_log_det == pytest.approx(0.5 * np.linalg.slogdet(expected)[1], rel=1e-9)


def test_estimates_along_a_path_use_the_pairs_up_to_there():
    points = np.cumsum(np.random.default_rng(1).standard_normal((5, 3)), axis=0)
    estimates = inverse_hessians(points, points * np.array([1.0, 4.0, 9.0]), memory=2)
    assert len(estimates) == 5
    # 2 m columns, but not more than dimensions
    assert [h.basis.shape[1] for h in estimates] == [0, 2, 3, 3, 3]
    # the secant condition holds for the newest pair: H y = s
    for t in range(1, 5):
        y = (points[t] - points[t - 1]) * np.array([1.0, 4.0, 9.0])
        np.testing.assert_allclose(estimates[t].times(y), points[t] - points[t - 1], rtol=1e-8)
