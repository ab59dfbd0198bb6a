"""The local quadratics.

The completed square by autodiff, the gradient by quadrature, one formula for every dimension.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp

import tightbound as tb
from tightbound.estimators import LocalQuadratic
from tightbound.estimators.clutter.local_gaussians import line_sums, local_gaussians
from tightbound.estimators.gauss_hermite import tensor_rule
from tightbound.families import Gaussian
from tightbound.objectives import ELBO
from tightbound.results import PairingError, Result
from tightbound.solvers import NaturalGradient, StochasticGradient
from tightbound.targets import Clutter
from tightbound.testing import GaussianTarget

N5 = [-3.6048, 1.1717, 2.9157, 0.3442, 2.2250]


def contaminated(rng, n, dim, **options):
    inlier = rng.random(n) < 0.5
    truth = np.r_[2.0, np.zeros(dim - 1)]
    return Clutter(
        np.where(
            inlier[:, None],
            truth + rng.standard_normal((n, dim)),
            10**0.5 * rng.standard_normal((n, dim)),
        ),
        **options,
    )


def by_quadrature(k, mean, cov, count=81):
    """E_q of gradient and minus Hessian (by Stein's identity) of sum weight log L, and E_q pi, on a
    tensor rule.
    """
    rule, root = tensor_rule(count, len(mean)), np.linalg.cholesky(cov)
    e = k.points[None] - (mean + rule.nodes @ root.T)[:, None]
    pi = sp.expit(k.logits() - 0.5 * np.sum(e**2, axis=2) / k.scales)
    score = np.einsum("kn,knd->kd", pi * k.weights / k.scales, e)
    hess = np.linalg.solve(root.T, (rule.weights[:, None] * rule.nodes).T @ score)
    return rule.weights @ score, -0.5 * (hess + hess.T), rule.weights @ pi


@jax.jit
def expanded(mode, x, s, a, log_w_c, mean, precision):
    """Log of q rho_i / exp(second-order Taylor of log L_i at `mode`) at `mode`, up to q's
    normaliser: value, slope, Hessian.
    """

    def log_rho(t):
        return a + log_w_c - 0.5 * jnp.sum((x - t) ** 2) / s

    def log_site(t):
        return jnp.logaddexp(log_rho(t), log_w_c)

    def integrand(t):
        d = t - mode
        taylor = (
            log_site(mode)
            + jax.grad(log_site)(mode) @ d
            + 0.5 * d @ jax.hessian(log_site)(mode) @ d
        )
        return -0.5 * (t - mean) @ precision @ (t - mean) + log_rho(t) - taylor

    return integrand(mode), jax.grad(integrand)(mode), jax.hessian(integrand)(mode)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_completed_square_is_that_of_autodiff(dim):
    """q rho_i / exp(Taylor of log L_i at the mode of q rho_i), expanded by JAX.

    Mass, mean and covariance to 1e-12.
    """
    rng = np.random.default_rng(dim)
    member = contaminated(rng, 5, dim, vg=rng.uniform(0.5, 2.0, 5))
    k, half = member.kernels(), rng.standard_normal((dim, dim))
    mean, cov = rng.standard_normal(dim), 0.3 * (half @ half.T + np.eye(dim))
    found = local_gaussians(k, mean, cov)
    gradient, curvature = np.zeros(dim), np.zeros((dim, dim))
    for i, (s, x, a) in enumerate(zip(k.scales, k.points, k.logits(), strict=True)):
        mode = mean + cov @ np.linalg.solve(cov + s * np.eye(dim), x - mean)
        log_w_c = np.log(member.w[i]) + member.log_clutter[i]
        value, slope, hess = map(
            np.asarray, expanded(mode, x, s, a, log_w_c, mean, np.linalg.inv(cov))
        )
        step = np.linalg.solve(-hess, slope)
        log_mass = (
            value
            + 0.5 * slope @ step
            - 0.5 * np.linalg.slogdet(-hess)[1]
            - 0.5 * np.linalg.slogdet(cov)[1]
        )
        centre = mode + step
        np.testing.assert_allclose(np.log(found.mass[i]), log_mass, atol=1e-11)
        np.testing.assert_allclose(mean + found.shift[i], centre, atol=1e-12)
        gradient += found.mass[i] * (x - centre) / s
        spread = np.linalg.inv(-hess) - np.outer(centre - mean, x - centre)
        curvature += found.mass[i] * np.linalg.solve(cov, spread) / s
    np.testing.assert_allclose(found.gradient, gradient, atol=1e-12)
    np.testing.assert_allclose(found.curvature, 0.5 * (curvature + curvature.T), atol=1e-12)


def test_one_dimension_is_the_paper_s_formula():
    """B, C, D of Popov 2024, section 4, to 1e-12.

    Hence the derivatives of the sites' ELBO in the mean and in v.
    """
    rng = np.random.default_rng(4)
    for _ in range(20):
        k = contaminated(rng, 20, 1).kernels()
        mean, v = rng.normal(1.0, 2.0), rng.uniform(0.01, 3.0)
        d, u = k.points[:, 0] - mean, (k.points[:, 0] - mean) / (1 + v)
        p = sp.expit(k.logits() - 0.5 * u**2)
        hat = 1 / ((1 - p) * (p * u**2 + 1) * v + 1)
        mass = p * np.sqrt(hat) * np.exp(-0.5 * v * (1 - p**2 * hat) * u**2)
        b, c = mass * (1 + p * hat * v) / (1 + v), mass * hat
        found = local_gaussians(k, np.array([mean]), np.array([[v]]))
        np.testing.assert_allclose(found.mass, mass, atol=1e-13)
        np.testing.assert_allclose(found.gradient[0], np.sum(b * d), atol=1e-12)
        np.testing.assert_allclose(
            -0.5 * found.curvature[0, 0],
            0.5 * (-np.sum(c) + np.sum((1 - p * hat) * b * d**2 / (1 + v))),
            atol=1e-12,
        )


@pytest.mark.parametrize("widening", [1.0, 7.0])
@pytest.mark.parametrize("kind", ["same", "weights", "scales"])
def test_the_sums_of_one_dimension_are_the_general_ones(kind, widening):
    """`line_sums` is `local_gaussians` at D = 1 to 1e-12, across its chunks, with points far away
    and without clutter.
    """
    rng, n = np.random.default_rng(9), 40_000
    x = np.r_[2.0 + rng.standard_normal(n - 2), 1e6, -300.0]
    log_clutter = np.r_[-np.inf, np.full(n - 1, -4.0)]
    options = {
        "same": {},
        "weights": {"weights": rng.uniform(0.5, 2.0, n)},
        "scales": {"vg": rng.uniform(0.5, 2.0, n)},
    }
    k = Clutter(x, log_clutter=log_clutter, **options[kind]).kernels()
    for v in (1e-6, 0.3, 20.0):
        one, every = (
            line_sums(k, 1.7, v, widening),
            local_gaussians(k, np.array([1.7]), np.array([[v]]), widening),
        )
        np.testing.assert_allclose(one.bd, every.gradient[0], rtol=1e-12, atol=1e-11 * abs(one.b))
        np.testing.assert_allclose(
            one.c - one.e2, every.curvature[0, 0], rtol=1e-12, atol=1e-11 * abs(one.c)
        )


def test_gradient_errors_have_the_stated_orders():
    """The mean gradient's error falls faster with v / vg than the variance's, the cubic's faster.

    Median over 40 random data sets, n = 20, against 81 nodes, at v / vg of .02 and .08: quadrupling
    v multiplies the error of v * curvature by about 16 (order v^2; kept terms are of order v), of
    the cubic by more.
    """
    errors = {"plain": [], "cubic": []}
    for v in (0.02, 0.08):
        rng, rows = np.random.default_rng(6), {"plain": [], "cubic": []}
        for _ in range(40):
            k, mean = (
                contaminated(rng, 20, 1).kernels(),
                np.array([2.0 + 0.3 * rng.standard_normal()]),
            )
            gradient, curvature, _ = by_quadrature(k, mean, np.array([[v]]))
            for name in rows:
                found = local_gaussians(k, mean, np.array([[v]]), cubic=name == "cubic")
                rows[name].append(
                    (
                        np.sqrt(v) * abs(found.gradient - gradient)[0],
                        v * abs(found.curvature - curvature)[0, 0],
                    )
                )
        for name, column in rows.items():
            errors[name].append(np.median(column, axis=0))
    plain, cubic = (
        np.log(errors[name][1] / errors[name][0]) / np.log(4) for name in ("plain", "cubic")
    )
    assert plain[1] == pytest.approx(2.0, abs=0.4)
    assert plain[0] == pytest.approx(2.5, abs=0.5)
    assert cubic[1] > plain[1] + 0.5
    assert errors["plain"][0][1] < 2e-3
    assert errors["cubic"][1][1] < 0.1 * errors["plain"][1][1]


def test_gradient_errors_in_the_plane_are_the_known_ones():
    """Medians 9e-5, 1.4e-3 at largest eigenvalue / vg = .02 and 7e-3, .035 at .1.

    Over 40 data sets; the numbers are those of a separate program.
    """
    for ratio, most in ((0.02, (2e-4, 3e-3)), (0.1, (0.014, 0.07))):
        rng, rows = np.random.default_rng(5), []
        for _ in range(40):
            k, half = contaminated(rng, 20, 2).kernels(), rng.standard_normal((2, 2))
            cov = half @ half.T + 0.3 * np.eye(2)
            cov *= ratio / np.linalg.eigvalsh(cov)[-1]
            mean, root = (
                np.array([2.0, 0.0]) + 0.3 * rng.standard_normal(2),
                np.linalg.cholesky(cov),
            )
            gradient, curvature, _ = by_quadrature(k, mean, cov, 41)
            found = local_gaussians(k, mean, cov)
            rows.append(
                (
                    np.linalg.norm(root.T @ (found.gradient - gradient)),
                    np.linalg.norm(root.T @ (found.curvature - curvature) @ root),
                )
            )
        assert np.all(np.median(rows, axis=0) < most)


@pytest.mark.parametrize(("dim", "nodes"), [(2, 41), (3, 21)])
def test_the_cubic_gains_an_order_in_more_dimensions(dim, nodes):
    """Quadrupling S multiplies the whitened errors of the plain formula by about 4^2.

    The cubic's fall faster, and are smaller.

    Median over 12 random data sets, n = 20, largest eigenvalue / vg = .02 and .08, against a tensor
    rule.
    """
    errors = []
    for ratio in (0.02, 0.08):
        rng, rows = np.random.default_rng(5), []
        for _ in range(12):
            k, half = contaminated(rng, 20, dim).kernels(), rng.standard_normal((dim, dim))
            cov = half @ half.T + 0.3 * np.eye(dim)
            cov *= ratio / np.linalg.eigvalsh(cov)[-1]
            mean, root = (
                np.r_[2.0, np.zeros(dim - 1)] + 0.3 * rng.standard_normal(dim),
                np.linalg.cholesky(cov),
            )
            gradient, curvature, _ = by_quadrature(k, mean, cov, nodes)
            row = []
            for cubic in (False, True):
                found = local_gaussians(k, mean, cov, cubic=cubic)
                row.append(np.linalg.norm(root.T @ (found.gradient - gradient)))
                row.append(np.linalg.norm(root.T @ (found.curvature - curvature) @ root))
            rows.append(row)
        errors.append(np.median(rows, axis=0))
    orders = np.log(errors[1] / errors[0]) / np.log(4)
    assert orders[1] == pytest.approx(2.0, abs=0.4)
    assert orders[3] > orders[1] + 0.5
    assert errors[1][3] < 0.2 * errors[1][1]
    assert errors[1][2] < 0.4 * errors[1][0]


def test_the_cubic_in_one_dimension_is_its_integral():
    """By numerical integration of the Gaussian N(m, V) times its weight c(y), to 1e-10."""
    rng, v = np.random.default_rng(2), 0.4
    k, mean = contaminated(rng, 6, 1).kernels(), 1.4
    u, w = np.polynomial.hermite_e.hermegauss(40)
    gradient = curvature = 0.0
    for y, a in zip(k.points[:, 0], k.logits(), strict=True):
        top = mean + v * (y - mean) / (1 + v)
        p = sp.expit(a - 0.5 * ((y - mean) / (1 + v)) ** 2)
        local = v / ((1 - p) * (p * ((y - mean) / (1 + v)) ** 2 + 1) * v + 1)
        member = Clutter([y], log_clutter=[-a - 0.5 * np.log(2 * np.pi)])
        mass = local_gaussians(member.kernels(), np.array([mean]), np.array([[v]])).mass[0]
        shift = mean + v * (1 - p * local / v) * (y - mean) / (1 + v)
        theta = shift + np.sqrt(local) * u
        z, bend = top - y, p * (1 - p)
        third = 3 * bend * z - bend * (1 - 2 * p) * z**3
        weight = mass * (w / w.sum()) * (1 - third * (theta - top) ** 3 / 6)
        gradient += weight @ (y - theta)
        curvature -= weight @ ((y - theta) * (theta - mean)) / v
    found = local_gaussians(k, np.array([mean]), np.array([[v]]), cubic=True)
    assert found.gradient[0] == pytest.approx(gradient, abs=1e-10)
    assert found.curvature[0, 0] == pytest.approx(curvature, abs=1e-10)


def test_inlier_masses_are_nearly_the_posterior_probabilities():
    k = contaminated(np.random.default_rng(1), 20, 2).kernels()
    mean, cov = np.array([2.0, 0.0]), 0.02 * np.eye(2)
    np.testing.assert_allclose(
        local_gaussians(k, mean, cov).mass, by_quadrature(k, mean, cov, 31)[2], atol=2e-3
    )


def test_moments_are_whitened_and_include_the_prior():
    """In three dimensions with a full noise covariance.

    Gradient and curvature in z, against finite coordinates.
    """
    rng = np.random.default_rng(8)
    vg = np.array([[1.0, 0.3, 0.0], [0.3, 2.0, 0.1], [0.0, 0.1, 0.7]])
    plain = contaminated(rng, 12, 3)
    root = 0.2 * np.tri(3) + 0.1 * np.eye(3)
    turned = Clutter(
        plain.x @ np.linalg.cholesky(vg).T,
        vg=vg,
        log_clutter=plain.log_clutter - 0.5 * np.linalg.slogdet(vg)[1],
        prior_var=100 * vg,
    )
    mean, lower = np.array([1.0, 0.5, -0.5]), np.linalg.cholesky(vg)
    a = LocalQuadratic().moments(plain, mean, root, plain.kernels())
    b = LocalQuadratic().moments(turned, lower @ mean, lower @ root, turned.kernels())
    np.testing.assert_allclose(a.gradient, b.gradient, atol=1e-12)
    np.testing.assert_allclose(a.curvature, b.curvature, atol=1e-12)
    k = plain.kernels()
    sites = local_gaussians(k, mean, root @ root.T)
    np.testing.assert_allclose(a.gradient, root.T @ (sites.gradient - mean / 100), atol=1e-13)
    np.testing.assert_allclose(
        a.curvature, root.T @ (sites.curvature + np.eye(3) / 100) @ root, atol=1e-13
    )
    assert np.isnan(a.elbo)


def test_no_overflow_a_million_sds_away():
    k = Clutter([0.0, 1.0, 1e6]).kernels()
    for v in (1e-8, 1.0, 1e8):
        for cubic in (False, True):
            found = local_gaussians(k, np.array([0.5]), np.array([[v]]), cubic=cubic)
            assert np.isfinite(found.gradient).all()
            assert np.isfinite(found.curvature).all()


@pytest.mark.parametrize(("cubic", "kl"), [(False, 0.1483), (True, 0.1329)], ids=["plain", "cubic"])
def test_natural_gradient_reaches_the_fixed_point(cubic, kl):
    """Five points: the plain one ends at a KL of .1483.

    The cubic ends between it and the optimum, .1272.
    """
    target = Clutter(N5)
    start = Gaussian.from_root(np.array([1.7]), np.array([[0.7]]))
    fit = tb.fit(target, start, solver=NaturalGradient(LocalQuadratic(cubic=cubic)), tol=1e-5)
    assert fit.result is Result.converged
    assert np.isnan(fit.trace.loss).all()
    assert target.exact().kl(fit.q) == pytest.approx(kl, rel=1e-3)


def test_pairings():
    q = Gaussian.full(1)
    with pytest.raises(PairingError, match="gives moments and no loss"):
        tb.fit(Clutter(N5), q, ELBO(), StochasticGradient(LocalQuadratic()))
    with pytest.raises(PairingError, match="gives moments and no loss"):
        LocalQuadratic().surrogate(ELBO(), Clutter(N5), q, None, jax.random.key(0))
    with pytest.raises(PairingError, match="ability `contaminated`"):
        tb.fit(GaussianTarget(q), q, solver=NaturalGradient(LocalQuadratic()))
