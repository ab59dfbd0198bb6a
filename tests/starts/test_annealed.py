"""The annealed loop: its schedule, and a start that does not depend on units and axes."""

import numpy as np
import pytest

from tightbound.families import Gaussian
from tightbound.results import PairingError, Result
from tightbound.starts.annealed import advanced, anneal, first_state, paper_update
from tightbound.targets import Clutter
from tightbound.testing import GaussianTarget

N5 = [-3.6048, 1.1717, 2.9157, 0.3442, 2.2250]


def test_schedule_halves_the_width_to_vg_and_caps_the_variance():
    state = first_state(Clutter(N5).kernels(), 0.02)
    assert state.mean[0] == pytest.approx(np.mean(N5))
    assert state.cov[0, 0] == pytest.approx(np.var(N5) + 1)
    assert state.width == pytest.approx(2 * (np.var(N5) + 1))
    while state.result is None:
        new = advanced(state, paper_update)
        raw = paper_update(state)[1][0, 0]
        assert new.width == pytest.approx(max(min(2 * raw, state.width / 2), 1.0))
        assert new.cov[0, 0] == pytest.approx(min(raw, max(1.0, new.width / 2)))
        state = new
    assert state.width == 1.0
    assert state.result is Result.converged


def test_points_of_different_precision_and_full_noise_are_equivariant():
    """Measured in other units and axes, the same posterior: q is carried along."""
    rng = np.random.default_rng(3)
    x, scales = rng.standard_normal((15, 2)), rng.uniform(0.5, 2.0, 15)
    a = np.array([[2.0, 0.0], [-0.5, 0.7]])
    plain = Clutter(x, log_clutter=-4.0)
    turned = Clutter(
        x @ a.T, vg=a @ a.T, log_clutter=-4.0 - np.log(np.linalg.det(a)), prior_var=100 * a @ a.T
    )
    np.testing.assert_allclose(anneal(turned).mean, a @ anneal(plain).mean, atol=1e-9)
    np.testing.assert_allclose(anneal(turned).cov, a @ anneal(plain).cov @ a.T, atol=1e-9)
    heavier = Clutter(np.concatenate([x, x]), vg=np.concatenate([scales, scales]))
    weighted = Clutter(x, vg=scales, weights=2 * np.ones(15))
    np.testing.assert_allclose(anneal(heavier).mean, anneal(weighted).mean, atol=1e-9)


def test_only_contaminated_data_have_kernels_to_anneal():
    with pytest.raises(PairingError, match="ability `contaminated`"):
        anneal(GaussianTarget(Gaussian.full(1)))
