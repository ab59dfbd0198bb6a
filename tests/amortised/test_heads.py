"""Heads: normalised, drawn from what they say, and convex where they claim it.

Against quadrature and closed forms.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tightbound.amortised import heads

HEADS = {
    "mean": heads.Gaussian(2, "mean", sd=(0.5, 2.0)),
    "diagonal": heads.Gaussian(2, "diagonal"),
    "full": heads.Gaussian(2),
    "von Mises": heads.VonMises(),
    "spline": heads.Spline(1),
    "periodic spline": heads.Spline(1, basis=8, periodic=True),
    "mixture": heads.Mixture(1, components=3),
    "von Mises mixture": heads.VonMisesMixture(3),
    "circular flow": heads.CircularFlow(4),
    "product": heads.Product((heads.VonMises(), heads.Gaussian(1)), ((1,), (0,))),
}
every_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


def an_eta(head, seed=0):
    return jnp.asarray(head.start() + 0.7 * np.random.default_rng(seed).standard_normal(head.size))


def grid(circular, size):
    end = np.pi if circular else 12.0
    nodes = np.linspace(-end, end, size)
    weights = np.full(size, nodes[1] - nodes[0])
    weights[[0, -1]] /= 2
    return nodes, weights


@every_head
def test_density_integrates_to_one_and_draws_follow_it(head, key):
    eta, size = an_eta(head), 4001 if head.dim == 1 else 401
    axes = [grid(c, size) for c in head.circular]
    points = np.stack(
        [m.ravel() for m in np.meshgrid(*[a[0] for a in axes], indexing="ij")], axis=1
    )
    weights = np.prod(
        [m.ravel() for m in np.meshgrid(*[a[1] for a in axes], indexing="ij")], axis=0
    )
    density = (
        np.exp(np.asarray(jax.jit(jax.vmap(lambda u: head.log_prob(eta, u)))(jnp.asarray(points))))
        * weights
    )
    assert density.sum() == pytest.approx(1.0, abs=2e-4)
    draws = np.asarray(jax.jit(jax.vmap(lambda k: head.sample(eta, k)))(jr.split(key, 4000)))
    mass = density.reshape((size,) * head.dim)
    for i in range(head.dim):
        marginal = mass.sum(axis=tuple(j for j in range(head.dim) if j != i))
        distribution = np.cumsum(marginal) - 0.5 * marginal
        assert (
            scipy.stats.kstest(np.interp(draws[:, i], axes[i][0], distribution), "uniform").pvalue
            > 1e-4
        )
        moments = head.moments(eta)
        if moments is not None and not head.circular[i]:
            mean = marginal @ axes[i][0]
            assert moments[0][i] == pytest.approx(mean, abs=2e-3)
            assert moments[1][i] == pytest.approx(
                np.sqrt(marginal @ axes[i][0] ** 2 - mean**2), rel=2e-3
            )


@pytest.mark.parametrize("head", [h for n, h in HEADS.items() if n != "circular flow"])
def test_loss_is_convex_where_the_head_says_so_and_only_there(head):
    etas = (
        np.random.default_rng(1).standard_normal((40, head.size)) * 1.5
    )  # diagonals of either sign: outside the domain too
    us = np.random.default_rng(2).standard_normal((40, head.dim))
    hessian = jax.jit(jax.vmap(jax.hessian(head.loss)))(jnp.asarray(etas), jnp.asarray(us))
    smallest = np.linalg.eigvalsh(np.asarray(hessian))[:, 0].min()
    assert (smallest > -1e-9) == head.convex


@pytest.mark.parametrize("name", ["diagonal", "full", "von Mises", "spline"])
def test_inside_the_domain_the_loss_is_minus_the_log_density(name):
    head = HEADS[name]
    eta, u = jnp.asarray(head.start() + 0.1), jnp.asarray(np.full(head.dim, 0.3))
    assert head.loss(eta, u) == pytest.approx(-float(head.log_prob(eta, u)), abs=1e-12)


def test_below_the_floor_the_gradient_still_pushes_back():
    head = heads.Gaussian(1, "diagonal")
    # loss falls as the diagonal rises
    assert jax.grad(head.loss)(jnp.array([0.0, -0.5]), jnp.array([0.0]))[1] < -50
    assert np.isfinite(head.log_prob(jnp.array([0.0, -0.5]), jnp.array([0.0])))


def test_gaussian_is_the_gaussian_of_its_coordinates():
    root, mean, u = np.array([[2.0, 0.0], [-0.7, 0.5]]), np.array([0.3, -1.0]), np.array([0.1, 0.4])
    eta = np.concatenate([root.T @ mean, np.diag(root), root[np.tril_indices(2, -1)]])
    expected = scipy.stats.multivariate_normal(mean, np.linalg.inv(root @ root.T)).logpdf(u)
    assert heads.Gaussian(2).log_prob(jnp.asarray(eta), jnp.asarray(u)) == pytest.approx(
        expected, abs=1e-12
    )


def test_gaussian_starts_at_a_regression():
    slope, mean, cov = (
        np.array([[1.0, 2.0], [0.5, -1.0]]),
        np.array([0.2, 0.3]),
        np.array([[0.5, 0.2], [0.2, 0.3]]),
    )
    weight, bias = heads.Gaussian(2).linear_start(slope, mean, cov)
    x, u = np.array([0.4, -0.8]), np.array([0.7, 0.1])
    expected = scipy.stats.multivariate_normal(slope @ x + mean, cov).logpdf(u)
    assert heads.Gaussian(2).log_prob(
        jnp.asarray(weight @ x + bias), jnp.asarray(u)
    ) == pytest.approx(expected, abs=1e-10)


def test_von_mises_residual_is_grad_a_minus_t():
    eta, u = jnp.array([1.2, -0.5]), jnp.array([0.8])
    length = np.hypot(1.2, 0.5)
    mean = scipy.special.i1e(length) / scipy.special.i0e(length) * np.array([1.2, -0.5]) / length
    expected = mean - np.array([np.cos(0.8), np.sin(0.8)])
    np.testing.assert_allclose(heads.VonMises().residual(eta, u), expected, atol=1e-12)
    assert np.all(np.isfinite(heads.VonMises().residual(jnp.zeros(2), u)))
    for kappa in (0.1, 3.0, 800.0):
        expected = scipy.stats.vonmises(kappa, loc=0.5).logpdf(0.7)
        eta = kappa * jnp.array([np.cos(0.5), np.sin(0.5)])
        assert heads.VonMises().log_prob(eta, jnp.array([0.7])) == pytest.approx(expected, rel=1e-9)


def test_a_circular_flow_is_a_von_mises_until_it_is_bent_and_closes_the_circle():
    head, at = heads.CircularFlow(4), jnp.array([1.5, -0.6])
    value = jax.jit(head.log_prob)
    straight = jnp.concatenate([at, jnp.zeros(12)])
    for u in (-3.0, 0.2, 2.5):
        expected = heads.VonMises().log_prob(at, jnp.array([u]))
        assert value(straight, jnp.array([u])) == pytest.approx(float(expected), abs=1e-12)
    ends = [float(value(an_eta(head), jnp.array([u]))) for u in (-np.pi, np.pi)]
    assert ends[0] == pytest.approx(ends[1], abs=1e-12)
    with pytest.raises(ValueError, match="`bins` must be at least 2"):
        heads.CircularFlow(1)


def test_splines_sum_to_one_everywhere():
    for periodic in (False, True):
        head = heads.Spline(1, periodic=periodic)
        values = jax.vmap(head.statistics)(jnp.linspace(-7.0, 7.0, 57))
        np.testing.assert_allclose(values.sum(axis=1), 1.0, atol=1e-12)


def test_product_is_the_product_of_its_factors():
    head, eta, u = HEADS["product"], jnp.array([1.0, 0.5, 0.2, 2.0]), jnp.array([0.3, -0.4])
    expected = heads.VonMises().log_prob(eta[:2], u[1:]) + heads.Gaussian(1).log_prob(
        eta[2:], u[:1]
    )
    assert head.log_prob(eta, u) == pytest.approx(float(expected), abs=1e-12)
    assert head.circular == (False, True)


def test_flow_is_normalised():
    head = heads.Flow.spline(1, jr.key(0), size=3, layers=1, width=8)
    nodes, weights = grid(False, 2001)
    eta = jnp.array([0.3, -1.0, 0.5])
    density = np.exp(
        np.asarray(jax.jit(jax.vmap(lambda u: head.log_prob(eta, u)))(jnp.asarray(nodes)[:, None]))
    )
    assert density @ weights == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: heads.Gaussian(2, "low rank"), "`structure` must be"),
        (lambda: heads.Gaussian(0), "`dim` must be at least 1"),
        (lambda: heads.Gaussian(2, "mean"), "give `sd`"),
        (lambda: heads.Gaussian(2, "mean", sd=(1.0,)), "must hold 2 positive numbers"),
        (lambda: heads.Spline(1, basis=3), "`basis` at least 4"),
        (lambda: heads.Mixture(2, components=1), "use Gaussian"),
        (lambda: heads.VonMisesMixture(1), "use VonMises"),
        (lambda: heads.Product((heads.VonMises(),), ((1,),)), "each exactly once"),
    ],
)
def test_a_wrong_head_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
