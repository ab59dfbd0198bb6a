"""The algebra of low-rank members that optimisers reach, against closed forms and exact arithmetic.

A coordinate that the factors explain almost alone (a Heywood case) has next to no noise of its own:
its D is as good as zero, while the covariance is as well conditioned as ever.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl

import tightbound as tb
from tightbound._numerics import to_device
from tightbound.families import Gaussian, LowRank
from tightbound.families.pivots import is_far, pivots
from tightbound.families.woodbury import Plain, Swapped, half_log_det_and_gradient, in_form


def equicorrelated(dim, rho, rank, smallest):
    """U and D of rho * ones + (1 - rho) * I, which all but one factor give single coordinates.

    Their D is `smallest` (of each another power of ten where that is None). The factors are rotated
    at random.
    """
    factor, diagonal = np.zeros((dim, rank)), np.full(dim, np.sqrt(1 - rho))
    factor[:, 0] = np.sqrt(rho)
    for k in range(1, rank):
        own = min(10.0**-k if smallest is None else smallest, 0.3 * np.sqrt(1 - rho))
        diagonal[13 * k] = own
        factor[13 * k, k] = np.sqrt(1 - rho - own**2)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((rank, rank)))[0]
    return factor @ rotation, diagonal


MEMBERS = [
    (dim, rho, rank, smallest)
    for dim in (301, 400)
    for rho in (0.5, 0.9, 0.99, 0.999)
    for rank, smallest in ((1, 1.0), (20, 1e-2), (20, 1e-8), (20, 1e-16), (20, 1e-200), (20, None))
]


@pytest.mark.parametrize(("dim", "rho", "rank", "smallest"), MEMBERS)
def test_closed_forms_of_an_equicorrelated_covariance(dim, rho, rank, smallest):
    factor, diagonal = equicorrelated(dim, rho, rank, smallest)
    q = Gaussian(np.arange(dim) / dim, LowRank(factor, np.log(diagonal)))
    cov = np.full((dim, dim), rho) + (1 - rho) * np.eye(dim)
    half_log_det = 0.5 * ((dim - 1) * np.log(1 - rho) + np.log1p(rho * (dim - 1)))
    entropy = half_log_det + 0.5 * dim * (1 + np.log(2 * np.pi))
    np.testing.assert_allclose(q.cov, cov, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(q.entropy(), entropy, rtol=0, atol=1e-9)

    z, log_q = q.draw(40, key=1)
    delta = z - q.mean
    shared = rho / ((1 - rho) * (1 - rho + dim * rho))
    quadratic = (delta**2).sum(axis=1) / (1 - rho) - shared * delta.sum(axis=1) ** 2
    expected = -0.5 * dim * np.log(2 * np.pi) - half_log_det - 0.5 * quadratic
    # The closed form itself is a difference: it loses the digits of a condition number.
    np.testing.assert_allclose(log_q, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(q.log_prob_on_host(z), log_q, rtol=0, atol=1e-9)
    np.testing.assert_allclose(q.scale.precision_diagonal(), 1 / (1 - rho) - shared, rtol=1e-7)

    white = q.whiten(z)
    np.testing.assert_allclose((white**2).sum(axis=1), quadratic, rtol=1e-7)
    np.testing.assert_allclose(q.unwhiten(white), z, rtol=0, atol=1e-8)
    np.testing.assert_allclose(q.root @ q.root.T, cov, rtol=0, atol=1e-9)
    np.testing.assert_allclose(q.whiten_score(delta), delta @ q.root, rtol=0, atol=1e-9)
    np.testing.assert_allclose(q.scale.unwhiten_columns(delta.T), q.root @ delta.T, atol=1e-9)
    # The covariance of the draws, exactly: of what unit noises make.
    made = q.scale.displace(np.eye(q.noise_dim))
    np.testing.assert_allclose(made.T @ made, cov, rtol=0, atol=1e-12)

    value, explained, pulled = half_log_det_and_gradient(factor, diagonal)
    precision = np.eye(dim) / (1 - rho) - shared
    np.testing.assert_allclose(value, half_log_det, rtol=0, atol=1e-9)
    np.testing.assert_allclose(1 - explained, diagonal**2 * np.diag(precision), atol=1e-9)
    np.testing.assert_allclose(pulled, diagonal[:, None] * (precision @ factor), atol=1e-9)


def textbook(factor, diagonal, delta):
    """Half the log determinant and the quadratic form by a Cholesky factor of I + W'W."""
    w, v = factor / diagonal[:, None], delta / diagonal
    lower = np.linalg.cholesky(np.eye(factor.shape[1]) + w.T @ w)
    a = np.linalg.solve(lower.T, np.linalg.solve(lower, w.T @ v))
    half_log_det = np.log(diagonal).sum() + np.log(np.diag(lower)).sum()
    return half_log_det, np.sum((v - w @ a) ** 2) + np.sum(a**2)


@pytest.mark.parametrize("smallest", [1e-9, 1e-16])
def test_the_textbook_fails_on_these_members(smallest):
    """The negative control: without a swap the factorisation raises or is off by nats."""
    rho, dim = 0.9, 301
    factor, diagonal = equicorrelated(dim, rho, 20, smallest)
    exact = 0.5 * ((dim - 1) * np.log(1 - rho) + np.log1p(rho * (dim - 1)))
    try:
        value, _ = textbook(factor, diagonal, np.ones(dim))
    except np.linalg.LinAlgError:
        return
    assert abs(value - exact) > 1


def exactly(factor, diagonal, delta):
    """The same in rational arithmetic, from the very floats."""
    u = np.vectorize(Fraction, otypes=[object])(factor)
    s = (u @ u.T + np.diag([Fraction(float(d)) ** 2 for d in diagonal])).tolist()
    dim = len(s)
    right, half_log_det, quadratic = [Fraction(float(x)) for x in delta], 0.0, Fraction(0)
    for j in range(dim):
        pivot = s[j][j]
        # Of numerator and denominator apart: their quotient may be no float.
        half_log_det += 0.5 * (_log(pivot.numerator) - _log(pivot.denominator))
        quadratic += right[j] ** 2 / pivot
        for i in range(j + 1, dim):
            ratio = s[i][j] / pivot
            right[i] -= ratio * right[j]
            s[i] = [a - ratio * b for a, b in zip(s[i], s[j], strict=True)]
    return half_log_det, float(quadratic)


def _log(number):
    shift = max(0, number.bit_length() - 1000)
    return np.log(float(number >> shift)) + shift * np.log(2.0)


def _small_members():
    rng = np.random.default_rng(1)
    factor = rng.standard_normal((8, 3))
    units = 10.0 ** rng.uniform(-8, 8, 8)
    graded, few, two = np.full((3, 8), 0.3)
    graded[:4], few[:3], two[:2] = 10.0 ** -np.arange(4, 20, 4), 1e-18, 1e-9
    equal_columns, no_column, equal_rows = factor.copy(), factor.copy(), factor.copy()
    equal_columns[:, 2], no_column[:, 2], equal_rows[1] = factor[:, 1], 0.0, factor[0]
    seven = np.full(8, 0.3)
    seven[:2] = 1e-7
    return {
        "ordinary": (factor, np.ones(8), 1e-12),
        "large factor": (1e6 * factor, np.ones(8), 1e-8),
        "graded noises": (factor, graded, 1e-9),
        "three of three factors": (factor, few, 1e-12),
        "units": (factor * units[:, None], two * units, 1e-12),
        "two equal factors": (equal_columns, two, 1e-12),
        "a factor of zero": (no_column, two, 1e-12),
        "two equal coordinates": (equal_rows, seven, 1e-9),
        "more small noises than factors": (factor[:, :1], np.geomspace(1e-9, 0.1, 8), 1e-6),
        "more factors than coordinates": (rng.standard_normal((3, 5)), np.full(3, 1e-12), 1e-12),
    }


SMALL = _small_members()


@pytest.mark.parametrize("name", SMALL)
def test_small_members_against_exact_arithmetic(name):
    factor, diagonal, tolerance = SMALL[name]
    scale = LowRank(factor, np.log(diagonal))
    delta = scale.displace(np.random.default_rng(2).standard_normal(scale.noise_dim))
    half_log_det, quadratic = exactly(factor, np.exp(scale.log_diagonal), delta)
    np.testing.assert_allclose(scale.half_log_det(), half_log_det, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(scale.quadratic(delta), quadratic, rtol=tolerance)
    np.testing.assert_allclose((scale.whiten(delta) ** 2).sum(), quadratic, rtol=tolerance)
    root = scale.unwhiten(np.eye(scale.dim)).T
    relative = (root @ root.T - scale.cov) / np.outer(scale.sd, scale.sd)
    np.testing.assert_allclose(relative, 0.0, atol=1e-13)


@jax.jit
def compiled(scale, delta):
    value, slope = jax.value_and_grad(lambda scale: scale.half_log_det())(scale)
    both = scale.half_log_det_and_quadratic(delta)
    return (value, *both, scale.whiten(delta), scale.unwhiten(delta)), slope


@pytest.mark.parametrize("name", SMALL)
def test_compiled_code_agrees(name):
    """Values, the square root itself, and derivatives in U and log D, on either form."""
    factor, diagonal, tolerance = SMALL[name]
    scale = LowRank(factor, np.log(diagonal))
    delta = scale.displace(np.random.default_rng(2).standard_normal(scale.noise_dim))

    values, slope = compiled(to_device(scale), jnp.asarray(delta))
    expected = (
        scale.half_log_det(),
        scale.half_log_det(),
        scale.quadratic(delta),
        scale.whiten(delta),
        scale.unwhiten(delta),
    )
    for value, other in zip(values, expected, strict=True):
        size = np.max(np.abs(other))
        np.testing.assert_allclose(value, other, rtol=0, atol=max(1e-10, 100 * tolerance) * size)
    _, explained, pulled = half_log_det_and_gradient(factor, diagonal)
    np.testing.assert_allclose(slope.log_diagonal, 1 - explained, rtol=0, atol=1e-7)
    np.testing.assert_allclose(diagonal[:, None] * slope.factor, pulled, rtol=0, atol=1e-7)


def test_members_side_by_side_may_have_either_form():
    """Under vmap both forms are computed; the one that is not used spoils no derivative."""
    members = [SMALL["ordinary"], SMALL["three of three factors"]]
    factors = jnp.stack([jnp.asarray(factor) for factor, _, _ in members])
    logs = jnp.stack([jnp.log(jnp.asarray(diagonal)) for _, diagonal, _ in members])
    value = jax.jit(jax.vmap(jax.value_and_grad(lambda u, d: LowRank(u, d).half_log_det())))
    values, slopes = value(factors, logs)
    for i, (factor, diagonal, _) in enumerate(members):
        expected, _, pulled = half_log_det_and_gradient(factor, diagonal)
        np.testing.assert_allclose(values[i], expected, rtol=1e-12)
        np.testing.assert_allclose(diagonal[:, None] * slopes[i], pulled, rtol=0, atol=1e-9)


def test_ordinary_members_do_not_swap():
    factor, diagonal, _ = SMALL["ordinary"]
    assert not is_far(factor, diagonal)
    assert not pivots(factor, diagonal)[1].any()
    both = Plain.of(factor, np.log(diagonal)), Swapped.of(factor, np.log(diagonal))
    np.testing.assert_allclose(*(form.b for form in both), rtol=1e-14)
    seen = []
    in_form(factor, np.log(diagonal), lambda form: seen.append(type(form)) or np.zeros(()))
    assert seen == [Plain]


def test_a_pivot_is_the_coordinate_without_noise():
    factor, diagonal, _ = SMALL["units"]
    pins, taken = pivots(factor, diagonal)
    assert set(pins[taken]) == {0, 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_gives_nan_and_no_exception(bad):
    """As under JAX: a fit then ends with a result that says so, in the place of an exception."""
    factor, diagonal, _ = SMALL["ordinary"]
    spoilt = factor.copy()
    spoilt[0, 0] = bad
    with np.errstate(all="ignore"):
        for scale in (LowRank(spoilt, np.log(diagonal)), LowRank(factor, np.full(8, -bad))):
            assert not np.isfinite(scale.half_log_det())
            assert np.isnan(scale.quadratic(np.ones(8)))
            assert np.isnan(scale.whiten(np.ones(8))).any()


@pytest.mark.parametrize(("rho", "key"), [(0.9, 0), (0.99, 1)])
def test_a_fit_that_ends_in_such_a_member_is_sound(rho, key):
    """These two raised LinAlgError, with throw=False too, after climbing on rounding errors."""
    dim = 301
    shared = rho / ((1 - rho) * (1 - rho + dim * rho))

    def log_density(values):
        z = values["z"]
        return -0.5 * (jnp.sum(z**2) / (1 - rho) - shared * jnp.sum(z) ** 2)

    target = tb.from_log_density(log_density, {"z": np.zeros(dim)})
    fit = tb.fit(target, key=key, throw=False)
    assert fit.q.covariance_structure == "low_rank"
    half_log_det = 0.5 * ((dim - 1) * np.log(1 - rho) + np.log1p(rho * (dim - 1)))
    assert fit.q.entropy() - half_log_det - 0.5 * dim * (1 + np.log(2 * np.pi)) < 2.0


def test_draws_and_whitening_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(0)
    for scale in (LowRank(rng.standard_normal((301, 20)), 0.3 * rng.standard_normal(301)),):
        q, found = Gaussian(np.zeros(301), scale), []
        for threads in (1, 2):
            with threadpoolctl.threadpool_limits(threads, user_api="blas"):
                z, log_q = q.draw(4000, key=0)
                found.append((z, log_q, q.whiten(z), q.unwhiten(z), q.log_prob_on_host(z)))
        for one, two in zip(*found, strict=True):
            np.testing.assert_array_equal(one, two)
