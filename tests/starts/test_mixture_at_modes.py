"""Mixtures over the modes of contaminated posteriors.

Close to the exact posterior, and preferred by the default.
"""

import numpy as np
import pytest

import tightbound as tb
from tightbound.experiments.clutter_methods import best_gaussian
from tightbound.families import Mixture
from tightbound.search.modes import modes
from tightbound.starts.mixture_at_modes import mixture_at_modes
from tightbound.targets import Clutter

TWO = Clutter([-6.0, -6.2, -5.9, 6.0, 6.3, 5.8], prior_var=50.0)
PLANE = Clutter(np.array([[0.0, 0.0], [0.3, -0.2], [6.0, 6.0], [6.5, 5.0], [-7.0, 3.0]]), vc=30.0)
CERTAIN = Clutter([-5.0, -5.1, 5.0, 5.2], log_clutter=[-np.inf, -4.0, -4.0, -4.0])


@pytest.mark.parametrize(
    ("target", "most"),
    [(TWO, 0.01), (PLANE, 0.1), (CERTAIN, 0.01)],
    ids=["line", "plane", "certain"],
)
def test_close_to_the_exact_posterior(target, most):
    """KL both ways against the grid."""
    k = target.kernels()
    found, exact = mixture_at_modes(target, k, modes(k), np.random.default_rng(0)), target.exact()
    assert 0 <= exact.kl(found) + 1e-9 < most
    assert exact.kl_from(found) < most


def test_the_default_prefers_it_where_no_gaussian_fits():
    """Two groups of three.

    The best Gaussian is more than .3 nat off, the fit less than .02, and both modes are weighted
    right.
    """
    exact, fit = TWO.exact(), tb.fit(TWO)
    assert exact.kl(best_gaussian(TWO)) > 0.3
    assert isinstance(fit.q, Mixture)
    assert exact.kl(fit.q) < 0.02
    assert fit.certificate.verdict == "pass"
    below = float(np.exp(exact.log_p[exact.points[:, 0] < 0]).sum() * exact.cell)
    assert np.mean(fit.q.draw(8000, 1)[0] < 0) == pytest.approx(below, abs=0.05)
