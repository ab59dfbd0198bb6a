"""L-BFGS in lockstep: known optima, SciPy's answer, points where the density is not finite."""

import numpy as np
import pytest
import scipy.optimize as so

from tightbound.search.lbfgs import ascend


def rosenbrock(points):
    """-f and its gradient for Rosenbrock's valley in any dimension: maximum 0 at (1, ..., 1)."""
    values = -np.array([so.rosen(p) for p in points])
    return values, -np.stack([so.rosen_der(p) for p in points])


def quadratic(precision, mean):
    def evaluate(points):
        moved = points - mean
        return -0.5 * np.einsum("ni,ij,nj->n", moved, precision, moved), -moved @ precision

    return evaluate


def test_reaches_the_valley_floor_from_every_start():
    starts = np.random.default_rng(0).uniform(-2, 2, (6, 5))
    paths = ascend(rosenbrock, starts, max_iterations=500)
    assert len(paths) == 6
    for path in paths:
        assert path.converged
        # 5-d Rosenbrock has one more local minimum, near (-1, 1, 1, 1, 1), with f about 3.93 (Shang
        # & Qiu 2006)
        near_one = np.allclose(path.points[-1], 1.0, atol=1e-4)
        assert near_one or path.values[-1] == pytest.approx(-3.93, abs=0.01)


def test_agrees_with_scipy_on_an_ill_conditioned_quadratic():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    precision = (basis * np.logspace(0, 4, 8)) @ basis.T
    mean = rng.standard_normal(8)
    evaluate = quadratic(precision, mean)
    (path,) = ascend(evaluate, rng.standard_normal((1, 8)), gtol=1e-8)
    scipy_answer = so.minimize(
        lambda x: -evaluate(x[None])[0][0],
        np.zeros(8),
        jac=lambda x: -evaluate(x[None])[1][0],
        tol=1e-12,
    )
    np.testing.assert_allclose(path.points[-1], mean, atol=1e-6)
    np.testing.assert_allclose(path.points[-1], scipy_answer.x, atol=1e-4)


def test_values_never_fall_along_a_path():
    (path,) = ascend(rosenbrock, np.array([[-1.5, 2.0, 0.5]]))
    assert np.all(np.diff(path.values) >= 0)


def test_inverse_hessian_diagonal_finds_the_scales():
    scales = np.array([1e-2, 1.0, 50.0])
    (path,) = ascend(
        quadratic(np.diag(1 / scales**2), np.zeros(3)), np.array([[0.5, -0.7, 20.0]]), gtol=1e-9
    )
    # a guess to difference over, not an estimate: the right order of magnitude over a range of
    # 5,000 in scale
    assert np.abs(np.log10(np.sqrt(path.inverse_hessian_diagonal) / scales)).max() < 1.0


def test_backs_off_where_the_density_is_not_finite():
    # log z - z on z > 0: maximum at 1; NaN elsewhere, as a user's log would be
    def half_line(points):
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(points[:, 0]) - points[:, 0], 1 / points - 1

    paths = ascend(half_line, np.array([[5.0], [-1.0], [0.01]]))
    assert len(paths) == 2, "the start at -1 has no finite density and no path"
    for path in paths:
        assert path.points[-1, 0] == pytest.approx(1.0, abs=1e-4)


def test_an_unbounded_density_ends_without_convergence():
    paths = ascend(lambda x: (x[:, 0].copy(), np.ones_like(x)), np.zeros((1, 1)), max_iterations=20)
    assert not paths[0].converged
