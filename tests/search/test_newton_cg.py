"""The trust-region step against closed forms.

Newton's point inside, the boundary outside, down along negative curvature.
"""

import numpy as np
import pytest

from tightbound.search.newton_cg import next_radius, steihaug

RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((6, 6))
HESSIAN, GRADIENT = ROOT @ ROOT.T + np.eye(6), RNG.standard_normal(6)


def model(step, hessian=HESSIAN):
    return GRADIENT @ step + 0.5 * step @ hessian @ step


def test_inside_it_is_newtons_step_and_predicts_its_decrease():
    step = steihaug(GRADIENT, lambda v: HESSIAN @ v, 1e3, 1e-12, 50)
    np.testing.assert_allclose(step.move, -np.linalg.solve(HESSIAN, GRADIENT), rtol=1e-9)
    assert step.inside
    assert step.products <= 8
    assert step.predicted == pytest.approx(-model(step.move), rel=1e-9)
    assert step.predicted == pytest.approx(
        0.5 * GRADIENT @ np.linalg.solve(HESSIAN, GRADIENT), rel=1e-9
    )


@pytest.mark.parametrize("radius", [0.01, 0.1])
def test_at_the_boundary(radius):
    step = steihaug(GRADIENT, lambda v: HESSIAN @ v, radius, 1e-12, 50)
    assert np.linalg.norm(step.move) == pytest.approx(radius, rel=1e-9)
    assert not step.inside
    assert step.predicted == pytest.approx(-model(step.move), rel=1e-9)
    cauchy = -radius * GRADIENT / np.linalg.norm(GRADIENT)
    assert step.predicted >= -model(cauchy) - 1e-12


def test_negative_curvature_is_followed_to_the_boundary():
    hessian = HESSIAN - 5.0 * np.eye(6)
    assert np.linalg.eigvalsh(hessian)[0] < 0
    step = steihaug(GRADIENT, lambda v: hessian @ v, 2.0, 1e-12, 50)
    assert np.linalg.norm(step.move) == pytest.approx(2.0)
    assert step.predicted == pytest.approx(-model(step.move, hessian), rel=1e-9)
    assert step.predicted > 0


def test_the_radius_follows_how_well_the_model_predicts():
    step = steihaug(GRADIENT, lambda v: HESSIAN @ v, 0.1, 1e-12, 50)
    assert next_radius(0.1, step, step.predicted) == (0.2, True)
    assert next_radius(0.1, step, 0.5 * step.predicted) == (0.1, True)
    radius, taken = next_radius(0.1, step, -np.inf)
    assert (radius, taken) == (pytest.approx(0.025), False)
    assert not next_radius(0.1, step, np.nan)[1]
