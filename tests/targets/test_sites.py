"""Linear sites: their density by hand, tilted moments against quadrature, and every refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate as si
import scipy.stats as st

from tightbound.results import TargetError
from tightbound.targets import LinearSites
from tightbound.testing import check_target

RNG = np.random.default_rng(3)
A = RNG.standard_normal((4, 2))
Y = np.array([1.0, -1.0, 1.0, 1.0])


def logistic(s, y):
    return jax.nn.log_sigmoid(s * y)


def test_density(key):
    target = LinearSites(A, logistic, Y, prior_mean=[0.5, 0.0], prior_var=2.0)
    check_target(target, key)
    z = np.array([0.3, -0.8])
    by_hand = st.multivariate_normal([0.5, 0.0], 2 * np.eye(2)).logpdf(z) - np.sum(
        np.log1p(np.exp(-Y * (A @ z)))
    )
    assert float(target.log_density(z)) == pytest.approx(by_hand, rel=1e-13)
    assert float(target.log_site(1, z)) == pytest.approx(
        -np.log1p(np.exp(-Y[1] * (A[1] @ z))), rel=1e-13
    )
    assert target.constrain(z)["z"] is z
    np.testing.assert_array_equal(target.unconstrain({"z": z}), z)


def test_tilt_against_adaptive_quadrature():
    target = LinearSites(A, logistic, Y)
    mean, cov = np.array([0.5, -0.2]), np.array([[2.0, 0.4], [0.4, 1.0]])
    value, slope, bend = target.tilt(np.array([2]), mean[None], cov[None])
    m, v = A[2] @ mean, A[2] @ cov @ A[2]
    f = lambda s, k: s**k * st.norm(m, np.sqrt(v)).pdf(s) / (1 + np.exp(-s * Y[2]))  # noqa: E731
    z, one, two = (
        si.quad(f, m - 12 * np.sqrt(v), m + 12 * np.sqrt(v), args=(k,), epsabs=1e-13)[0]
        for k in range(3)
    )
    assert value[0] == pytest.approx(np.log(z), abs=1e-10)
    np.testing.assert_allclose(slope[0], A[2] * (one / z - m) / v, atol=1e-9)
    np.testing.assert_allclose(
        bend[0], np.outer(A[2], A[2]) * (1 - (two / z - (one / z) ** 2) / v) / v, atol=1e-9
    )


BAD = {
    "directions": ((np.ones(3), logistic, np.ones(3)), {}, r"`directions` must be \[n, d\]"),
    "NaN": ((np.array([[np.nan]]), logistic, np.ones(1)), {}, "`directions` has 1 NaN"),
    "data": ((A, logistic, np.ones(3)), {}, "`data` must have leading axis 4"),
    "prior": (
        (A, logistic, Y),
        {"prior_var": np.ones((2, 2))},
        "`prior_var` must be symmetric and positive definite",
    ),
}


@pytest.mark.parametrize(("args", "kwargs", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_is_a_sentence(args, kwargs, sentence):
    with pytest.raises(TargetError, match=sentence):
        LinearSites(*args, **kwargs)


def test_under_jit():
    target = LinearSites(A, logistic, Y)
    with jax.enable_x64(True):
        z = jnp.array([0.1, 0.2])
        assert float(jax.jit(lambda z: target.log_density(z))(z)) == pytest.approx(
            float(target.log_density(z)), rel=1e-13
        )
