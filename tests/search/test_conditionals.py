"""Which coordinates explain a Gaussian's log weights.

Known shares of laws whose log weights are written down.
"""

import numpy as np
import pytest

from tightbound.families import Gaussian
from tightbound.search.conditionals import explained


def weighted(q, log_ratio, score_of_ratio, draws=4000):
    """Draws of q, log p - log q and the scores of p = q exp(ratio)."""
    z, _ = q.draw(draws, 0)
    inner = np.linalg.solve(
        np.asarray(q.root).T, np.linalg.solve(np.asarray(q.root), (z - np.asarray(q.mean)).T)
    ).T
    return z, log_ratio(z), score_of_ratio(z) - inner


def test_one_scale_explains_all_and_is_found():
    """log w = 0.2 z_2 sum_k (z_k^2 - 1).

    A scale that changes with z_2, which the regression contains.
    """
    q = Gaussian.full(5)
    rest = [0, 1, 3, 4]

    def score(z):
        g = 0.4 * z[:, [2]] * z
        g[:, 2] = 0.2 * np.sum(z[:, rest] ** 2 - 1, axis=1)
        return g

    told = explained(
        q,
        *weighted(q, lambda z: 0.2 * z[:, 2] * np.sum(z[:, rest] ** 2 - 1, axis=1), score),
        pairs=True,
    )
    assert told.first == 2
    assert told.one == pytest.approx(1.0, abs=1e-6)
    assert told.both == pytest.approx(told.one, abs=0.01)


def test_of_two_scales_each_explains_its_own_share():
    """log w = 0.2 z_0 (z_2^2 + z_4^2 - 2) + 0.1 z_1 (z_3^2 + z_5^2 - 2).

    Variances 0.16 and 0.04, 80 % and 100 %.
    """
    q = Gaussian.full(6)
    e, f = [2, 4], [3, 5]

    def ratio(z):
        return 0.2 * z[:, 0] * np.sum(z[:, e] ** 2 - 1, axis=1) + 0.1 * z[:, 1] * np.sum(
            z[:, f] ** 2 - 1, axis=1
        )

    def score(z):
        g = np.empty_like(z)
        g[:, 0], g[:, 1] = (
            0.2 * np.sum(z[:, e] ** 2 - 1, axis=1),
            0.1 * np.sum(z[:, f] ** 2 - 1, axis=1),
        )
        g[:, e], g[:, f] = 0.4 * z[:, [0]] * z[:, e], 0.2 * z[:, [1]] * z[:, f]
        return g

    told = explained(q, *weighted(q, ratio, score), pairs=True)
    assert (told.first, told.second) == (0, 1)
    assert told.one == pytest.approx(0.8, abs=0.03)  # 4,000 draws
    assert told.both == pytest.approx(1.0, abs=1e-6)
    assert explained(q, *weighted(q, ratio, score), pairs=False).second is None


def test_a_thin_direction_does_not_hide_the_scale():
    """Ten coordinates that share one wide direction.

    In units of their own sds their conditional curvature is huge.
    """
    root = np.eye(11)
    # sum of the first ten is 31 times as wide as their differences
    root[:10, :10] += 30.0 * np.ones((10, 10)) / 10.0
    q = Gaussian.from_root(np.zeros(11), root)

    def parts(z):
        contrast = z[:, :10] - z[:, :10].mean(axis=1, keepdims=True)
        return contrast, z[:, 10]

    def ratio(z):
        contrast, t = parts(z)
        return 0.1 * t * np.sum(contrast**2, axis=1)

    def score(z):
        contrast, t = parts(z)
        return np.concatenate(
            [0.2 * t[:, None] * contrast, 0.1 * np.sum(contrast**2, axis=1, keepdims=True)], axis=1
        )

    told = explained(q, *weighted(q, ratio, score), pairs=True)
    assert told.first == 10
    assert told.one > 0.95
