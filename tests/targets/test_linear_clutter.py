"""Regression with outliers.

The density by SciPy, tilted moments by quadrature, exact limits, and what is refused.
"""

import numpy as np
import pytest
import scipy.stats as st

import tightbound as tb
from tightbound.families import Gaussian
from tightbound.results import TargetError
from tightbound.solvers import EP
from tightbound.starts.reweighted import anneal_reweighted
from tightbound.targets import Clutter, LinearClutter
from tightbound.testing import check_target

RNG = np.random.default_rng(5)
A = np.column_stack([np.ones(40), RNG.standard_normal(40)])
OUT = np.arange(40) % 4 == 0
Y = A @ np.array([1.0, -2.0]) + np.where(
    OUT, RNG.uniform(-20, 20, 40), 0.3 * RNG.standard_normal(40)
)
SMALL = LinearClutter(
    A[:6],
    Y[:6],
    w=[0.1, 0.2, 0.3, 0.1, 0.2, 0.3],
    vg=[0.1, 0.2, 0.1, 0.2, 0.1, 0.2],
    vc=30.0,
    prior_var=9.0,
)


def test_density_is_the_one_of_scipy_and_passes_its_battery(key):
    check_target(SMALL, key)
    z = np.array([0.7, -1.0])
    truth = st.multivariate_normal(np.zeros(2), 9 * np.eye(2)).logpdf(z)
    for a, y, w, vg in zip(A[:6], Y[:6], SMALL.w, SMALL.vg, strict=True):
        inlier, outlier = st.norm(a @ z, vg**0.5).pdf(y), st.norm(np.mean(Y[:6]), 30**0.5).pdf(y)
        truth += np.log((1 - w) * inlier + w * outlier)
    assert float(SMALL.log_density(z)) == pytest.approx(truth, abs=1e-10)
    assert sum(float(SMALL.log_site(i, z)) for i in range(6)) == pytest.approx(
        truth - st.multivariate_normal(np.zeros(2), 9 * np.eye(2)).logpdf(z), abs=1e-10
    )


def test_tilt_is_the_derivative_of_the_site_integral():
    """log Z by the trapezoid rule along a_i.

    Gradient and Hessian in the cavity's mean by differences of it.
    """
    mean, cov, i = np.array([0.5, -0.5]), np.array([[2.0, 0.3], [0.3, 1.0]]), 1

    def log_z(m):
        sd, centre = np.sqrt(A[i] @ cov @ A[i]), A[i] @ m
        s = np.linspace(centre - 10 * sd, centre + 10 * sd, 8001)
        values = 0.8 * st.norm(s, SMALL.vg[i] ** 0.5).pdf(Y[i]) + 0.2 * np.exp(SMALL.log_clutter[i])
        return np.log(np.sum(values * st.norm(centre, sd).pdf(s)) * (s[1] - s[0]))

    value, slope, bend = SMALL.tilt(np.array([i]), mean[None], cov[None])
    assert value[0] == pytest.approx(log_z(mean), abs=1e-9)
    h = 1e-3 * np.eye(2)
    np.testing.assert_allclose(
        slope[0], [(log_z(mean + e) - log_z(mean - e)) / 2e-3 for e in h], atol=1e-5
    )
    hess = [
        [
            (log_z(mean + a + b) - log_z(mean + a - b) - log_z(mean - a + b) + log_z(mean - a - b))
            / 4e-6
            for a in h
        ]
        for b in h
    ]
    np.testing.assert_allclose(bend[0], -np.array(hess), atol=1e-4)


def test_one_direction_is_the_clutter_target():
    """Directions of one: the posterior and evidence of Clutter, by its exact grid and by EP."""
    x = np.array([1.0, 1.3, 0.8, 7.0])
    line = LinearClutter(np.ones((4, 1)), x, w=0.3, vg=0.5, vc=20.0, clutter_mean=0.0)
    flat = Clutter(x, w=0.3, vg=0.5, vc=20.0)
    points = np.linspace(-3, 9, 7)[:, None]
    np.testing.assert_allclose(
        [float(line.log_density(z)) for z in points], flat.log_density_on_host(points), atol=1e-12
    )
    ends = [tb.fit(t, Gaussian.full(1), solver=EP()) for t in (line, flat)]
    np.testing.assert_allclose(ends[0].q.mean, ends[1].q.mean, atol=1e-9)
    assert ends[0].trace.loss[-1] == pytest.approx(ends[1].trace.loss[-1], abs=1e-9)


def test_outliers_are_found_and_ignored():
    """A quarter of 40 points uniform on (-20, 20).

    The posterior is close to that of the inliers alone.
    """
    target = LinearClutter(A, Y, w=0.25, vg=0.09)
    fit = tb.fit(target)
    precision = A[~OUT].T @ A[~OUT] / 0.09 + np.eye(2) / 100
    mean, sd = (
        np.linalg.solve(precision, A[~OUT].T @ Y[~OUT] / 0.09),
        np.sqrt(np.diag(np.linalg.inv(precision))),
    )
    np.testing.assert_allclose(fit.q.mean, mean, atol=1.0 * sd.max())
    np.testing.assert_allclose(fit.q.sd, sd, rtol=0.15)
    assert fit.certificate.verdict == "pass"
    np.testing.assert_array_equal(target.inlier_probabilities(fit.q) < 0.5, OUT)
    low, high = fit.certificate.log_evidence
    log_z = -tb.fit(target, Gaussian.full(2), solver=EP()).trace.loss[-1]
    assert low - 5e-3 < log_z < high + 5e-3


def test_the_start_is_least_squares_where_there_is_hardly_any_background():
    target = LinearClutter(A[~OUT], Y[~OUT], w=1e-9, vg=0.09, vc=1e4)
    start = anneal_reweighted(target)
    precision = A[~OUT].T @ A[~OUT] / 0.09 + np.eye(2) / 100
    np.testing.assert_allclose(
        start.mean, np.linalg.solve(precision, A[~OUT].T @ Y[~OUT] / 0.09), atol=1e-8
    )
    np.testing.assert_allclose(start.cov, np.linalg.inv(precision), rtol=1e-6)


BAD = {
    "no rows": ((np.ones((0, 2)), []), {}, r"\[n, d\]"),
    "y": ((np.ones((3, 1)), [1.0, 2.0]), {}, r"`y` must have shape \[3\]"),
    "NaN": ((np.ones((2, 1)), [1.0, np.nan]), {}, r"`y` has 1 NaN .* at \[1\]"),
    "inf": (([[np.inf], [1.0]], [1.0, 2.0]), {}, r"`directions` has 1 NaN or infinite"),
    "w": ((np.ones((2, 1)), [1.0, 2.0]), {"w": 1.0}, "strictly between 0 and 1"),
    "vg": ((np.ones((2, 1)), [1.0, 2.0]), {"vg": 0.0}, "`vg` is a variance"),
    "vc": ((np.ones((2, 1)), [1.0, 2.0]), {"vc": -1.0}, "`vc` is a variance"),
    "log_clutter": ((np.ones((2, 1)), [1.0, 2.0]), {"log_clutter": np.inf}, "-inf means none"),
    "prior": ((np.ones((2, 1)), [1.0, 2.0]), {"prior_mean": [0.0, 1.0]}, r"shape \[1\]"),
}


@pytest.mark.parametrize(("args", "kwargs", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_is_a_sentence(args, kwargs, sentence):
    with pytest.raises(TargetError, match=sentence):
        LinearClutter(*args, **kwargs)
