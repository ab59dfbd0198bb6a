"""Sums of exponentials.

The stated errors of the fit, gradients of what is climbed, and a global optimum.
"""

import numpy as np
import pytest

import tightbound as tb
from tightbound.estimators import SumOfExponentials
from tightbound.estimators.clutter.sum_of_exponentials import exponentials
from tightbound.estimators.gauss_hermite import tensor_rule
from tightbound.families import Gaussian
from tightbound.objectives import ELBO
from tightbound.results import PairingError, Result
from tightbound.solvers import NaturalGradient, StochasticGradient
from tightbound.targets import Clutter
from tightbound.testing import GaussianTarget

N5 = [-3.6048, 1.1717, 2.9157, 0.3442, 2.2250]


@pytest.mark.parametrize(
    ("terms", "errors"),
    [
        (8, (8e-5, 9e-4, 6e-3, 0.07)),
        (12, (1e-6, 2e-5, 3e-4, 0.012)),
        (16, (3e-8, 2e-6, 3e-5, 2e-3)),
    ],
)
def test_errors_of_the_fit_are_the_known_ones(terms, errors):
    """The largest error over r at a = 1, 2, 3, 6, from an independent fit.

    To the factor of 1.7 that its one digit leaves; at 16 terms and a = 1 rounding in the
    coefficients allows 3e-7. The bound that it reports holds off its table too.
    """
    a = np.array([1.0, 2.0, 3.0, 6.0])
    half = np.linspace(0.0, 7.0, 4001) ** 2
    for shift in (0.0, 0.034):
        coefficients, rates, bound = exponentials(a + shift, terms)
        fitted = np.einsum("ak,akr->ar", coefficients, np.exp(-rates[:, :, None] * half))
        worst = np.max(np.abs(fitted - np.logaddexp(0.0, a[:, None] + shift - half)), axis=1)
        assert np.all(worst <= 1.05 * bound + 1e-12)
        assert np.all(worst < np.maximum(1.7 * np.array(errors), 3e-7))
    tiny, _, bound = exponentials(np.array([-40.0]), terms)
    assert abs(tiny.sum() - np.exp(-40.0)) < 1e-4 * np.exp(-40.0) + bound[0]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_gradients_are_those_of_its_elbo_to_1e_8(dim):
    """Central differences in the mean and in log root; full covariances, weights and scales."""
    rng = np.random.default_rng(dim)
    half = rng.standard_normal((dim, dim))
    target = Clutter(
        rng.standard_normal((7, dim)),
        vg=half @ half.T + np.eye(dim),
        weights=rng.uniform(0.5, 2.0, 7),
        prior_var=5.0,
    )
    estimator = SumOfExponentials()
    design = estimator.prepare(target, None, None)
    mean, root = rng.standard_normal(dim), np.linalg.cholesky(0.5 * np.eye(dim) + 0.1)
    found, h = estimator.moments(target, mean, root, design), 1e-5

    def elbo(m, r):
        return float(estimator.moments(target, m, r, design).elbo)

    for j in range(dim):
        move = h * root[:, j]
        slope = (elbo(mean + move, root) - elbo(mean - move, root)) / (2 * h)
        assert found.gradient[j] == pytest.approx(slope, abs=1e-8)
        for i in range(dim):
            turn = np.zeros((dim, dim))
            turn[i, j] = h
            slope = (
                elbo(mean, root @ (np.eye(dim) + turn)) - elbo(mean, root @ (np.eye(dim) - turn))
            ) / (2 * h)
            assert (i == j) - found.curvature[i, j] == pytest.approx(slope, abs=1e-8)


def test_elbo_is_within_its_bound():
    """Against 61 nodes per axis, q from a tenth to one and a half times as wide as the kernels."""
    rng = np.random.default_rng(3)
    target = Clutter(rng.standard_normal((6, 2)) + 1.0)
    for width in (0.1, 0.7, 1.5):
        mean, root = np.array([0.8, 0.3]), width * np.array([[1.0, 0.0], [0.4, 0.8]])
        rule = tensor_rule(61, 2)
        entropy = np.log(np.linalg.det(root)) + 1 + np.log(2 * np.pi)
        truth = rule.weights @ target.log_density_on_host(mean + rule.nodes @ root.T) + entropy
        for terms in (8, 16):
            found = SumOfExponentials(terms).moments(
                target, mean, root, SumOfExponentials(terms).prepare(target, None, None)
            )
            assert abs(float(found.elbo) - truth) < float(found.elbo_stderr) + 2e-5
            assert float(found.elbo_stderr) < (0.05, 1e-3)[terms == 16]


def test_natural_gradient_reaches_the_best_gaussian():
    """Five points with v / vg far above 1: monotone, to the best Gaussian by quadrature.

    Its KL is .1272, its mean 1.7609, its variance .8276.
    """
    target = Clutter(N5)
    fit = tb.fit(
        target,
        Gaussian.from_root(np.array([1.0]), np.array([[2.0]])),
        solver=NaturalGradient(SumOfExponentials(12)),
        tol=1e-4,
    )
    assert fit.result is Result.converged
    assert fit.q.mean[0] == pytest.approx(1.7609, abs=2e-3)
    # the solver stops when steps gain less than 1e-4 nat
    assert fit.q.cov[0, 0] == pytest.approx(0.8276, rel=0.02)
    assert target.exact().kl(fit.q) == pytest.approx(0.1272, rel=1e-3)
    assert np.all(np.diff(fit.trace.loss) < 1e-9)
    wide = Clutter([-4.0, 5.0], prior_var=25.0, w=0.9)
    exact = wide.exact()
    start = Gaussian.from_root(np.zeros(1), np.array([[4.0]]))
    ends = [
        tb.fit(wide, start, solver=NaturalGradient(e)).q
        for e in (SumOfExponentials(), tb.estimators.GaussHermite(81))
    ]
    assert ends[0].cov[0, 0] > 5
    assert exact.kl(ends[0]) == pytest.approx(exact.kl(ends[1]), abs=5e-4)


def test_pairings():
    q = Gaussian.full(1)
    with pytest.raises(PairingError, match="gives moments and no loss"):
        tb.fit(Clutter(N5), q, ELBO(), StochasticGradient(SumOfExponentials()))
    with pytest.raises(PairingError, match="gives moments and no loss"):
        SumOfExponentials().surrogate(ELBO(), Clutter(N5), q, None, 0)
    with pytest.raises(PairingError, match="ability `contaminated`"):
        tb.fit(GaussianTarget(q), q, solver=NaturalGradient(SumOfExponentials()))
    with pytest.raises(PairingError, match="above 20 no sum of exponentials"):
        tb.fit(Clutter(N5, log_clutter=-40.0), q, solver=NaturalGradient(SumOfExponentials()))
    with pytest.raises(ValueError, match="between 2 and 16"):
        SumOfExponentials(1)
