"""Natural gradient.

Exact on Gaussians of any condition number, monotone, and every result that it can return.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import tightbound as tb
from tightbound.estimators.fixed_design import moment_matched, whitened_moments
from tightbound.families.gaussian import Gaussian, kl
from tightbound.results import PairingError, Result
from tightbound.search.natural_rule import natural_step, newton_model
from tightbound.solvers.natural import NaturalGradient
from tightbound.targets.base import Density


class Quadratic(Density):
    """N(mean, precision^-1), unnormalised."""

    mean: np.ndarray
    precision: np.ndarray

    @property
    def dim(self):
        return len(self.mean)

    @property
    def coordinate_names(self):
        return tuple(f"z[{i}]" for i in range(self.dim))

    def constrain(self, z):
        return {"z": z}

    def unconstrain(self, values):
        return values["z"]

    def log_density(self, z):
        moved = z - self.mean
        return -0.5 * moved @ (self.precision @ moved)


class OneDimensional(Quadratic):
    """A density on the line given by a function of one number."""

    f: object = eqx.field(static=True, default=None)

    def log_density(self, z):
        return self.f(z[0])


def line(f):
    return OneDimensional(np.zeros(1), np.eye(1), f)


def rotated(dim, condition, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    eigenvalues = np.logspace(0, np.log10(condition), dim)
    return (
        Quadratic(3 * rng.standard_normal(dim), (basis * eigenvalues) @ basis.T),
        basis,
        eigenvalues,
    )


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
def test_exact_in_every_eigendirection_of_a_gaussian(condition):
    """The bar is 1e-3 sd.

    A moment-matched design is exact on quadratics, so only rounding is left.
    """
    target, basis, eigenvalues = rotated(100, condition)
    fit = tb.fit(target, solver=NaturalGradient())
    assert fit.result is Result.converged
    error = np.abs(basis.T @ (fit.q.mean - target.mean)) * np.sqrt(eigenvalues)
    sd = np.sqrt(np.einsum("ij,jk,ki->i", basis.T, fit.q.cov, basis) * eigenvalues)
    assert error.max() < 1e-3
    assert np.abs(sd - 1).max() < 1e-3


def test_one_undamped_step_is_newtons():
    """From within the trust factor of the truth, one step lands on it.

    Mean and covariance together.
    """
    target, _, _ = rotated(4, 10.0)
    truth = np.linalg.cholesky(np.linalg.inv(target.precision))
    root, mean = 0.8 * truth, target.mean + truth @ np.array([0.3, -0.2, 0.1, 0.4])
    z = moment_matched(np.random.default_rng(0), 32, 4)
    points = np.concatenate([mean + z @ root.T, mean - z @ root.T])
    scores = -(points - target.mean) @ target.precision
    moments = whitened_moments(z, np.zeros(64), scores @ root, 0.0)
    new_mean, new_root, change = natural_step(
        mean, root, newton_model(moments.gradient, moments.curvature), 1.0
    )
    np.testing.assert_allclose(new_mean, target.mean, atol=1e-12)
    np.testing.assert_allclose(new_root @ new_root.T, np.linalg.inv(target.precision), atol=1e-12)
    assert change == pytest.approx(np.linalg.slogdet(new_root)[1] - np.linalg.slogdet(root)[1])


def test_whitened_moments_by_quadrature():
    """E[g] and E[hess] of sin under N(0.3, 0.5^2), d = 1, against Gauss-Hermite.

    4 standard errors of 20,000 pairs.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    x = 0.3 + 0.5 * nodes
    z = moment_matched(np.random.default_rng(1), 20_000, 1)
    points = np.concatenate([0.3 + 0.5 * z[:, 0], 0.3 - 0.5 * z[:, 0]])
    m = whitened_moments(z, np.sin(points), 0.5 * np.cos(points)[:, None], np.log(0.5))
    gradient = 0.5 * weights @ np.cos(x)
    error = m.gradient_spread.std() / np.sqrt(20_000)
    assert m.gradient[0] == pytest.approx(gradient, abs=4 * error)
    assert m.curvature[0, 0] == pytest.approx(0.25 * weights @ np.sin(x), abs=4 / np.sqrt(20_000))
    entropy = np.log(0.5) + 0.5 * (1 + np.log(2 * np.pi))
    assert m.elbo == pytest.approx(weights @ np.sin(x) + entropy, abs=4 * m.elbo_stderr)


def test_the_optimum_on_a_skewed_target_is_the_best_gaussian():
    """log density z - exp(z) (log of an exponential variable): the best Gaussian has E q exp(z) = 1
    and sd 1.

    Stationarity: 1 = E exp(z) = exp(mean + sd^2 / 2) and 1 / sd^2 = E exp(z) = 1, so mean = -1/2,
    sd = 1.
    """
    fit = tb.fit(line(lambda z: z - jnp.exp(z)), solver=NaturalGradient(), tol=0.01)
    # the largest design (512 pairs) leaves an error of about .02 in mean and sd; three of them
    assert fit.q.mean[0] == pytest.approx(-0.5, abs=0.06)
    assert fit.q.sd[0] == pytest.approx(1.0, abs=0.06)


def test_mean_field_reaches_the_mean_field_optimum():
    """The best diagonal Gaussian of N(m, P^-1) has mean m and precisions diag(P) (Blei et al.

    2017, section 2.4).
    """
    target, _, _ = rotated(5, 30.0)
    fit = tb.fit(target, Gaussian.diagonal(5), solver=NaturalGradient())
    sd = np.diag(target.precision) ** -0.5
    # the solver stops at a quarter of tol = 0.02 sd (rms) in the mean, at tol in the curvature
    np.testing.assert_allclose((fit.q.mean - target.mean) / sd, 0.0, atol=0.01)
    np.testing.assert_allclose(fit.q.sd, sd, rtol=0.01)


def test_the_elbo_never_falls_on_one_design():
    target = line(lambda z: -0.25 * z**4 + jnp.sin(3 * z))
    fit = tb.fit(target, Gaussian.full(1), solver=NaturalGradient(max_doublings=0))
    assert np.all(np.diff(fit.trace.loss) <= 1e-9)


def test_kl_at_the_optimum_is_zero_on_a_gaussian():
    target, _, _ = rotated(6, 100.0)
    fit = tb.fit(target, solver=NaturalGradient())
    truth = Gaussian.from_root(target.mean, np.linalg.cholesky(np.linalg.inv(target.precision)))
    assert float(kl(fit.q, truth)) == pytest.approx(0.0, abs=1e-8)


# every result that it can return


@pytest.mark.parametrize(("distance", "dim"), [(5e3, 3), (1e6, 1)])
def test_a_start_thousands_of_sds_away_arrives(distance, dim):
    """Steps of full length double while they climb.

    Log2(distance) of them, where equal ones would take distance / 2.
    """
    target = Quadratic(np.full(dim, distance), np.eye(dim))
    fit = tb.fit(target, Gaussian.full(dim), solver=NaturalGradient())
    assert fit.result is Result.converged
    assert fit.steps < 2 * np.log2(distance)
    np.testing.assert_allclose(fit.q.mean, distance, rtol=1e-9)
    np.testing.assert_allclose(fit.q.cov, np.eye(dim), atol=1e-8)


def test_result_noisy_when_the_family_is_far():
    """The design may not grow and tol is below its error.

    It says so instead of claiming convergence.
    """
    solver = NaturalGradient(estimator=tb.estimators.FixedDesign(pairs=64), max_doublings=0)
    fit = tb.fit(line(lambda z: z - jnp.exp(z)), solver=solver, tol=1e-4)
    assert fit.result is Result.noisy


def test_result_unbounded_on_a_flat_direction():
    class Flat(Quadratic):
        def log_density(self, z):
            return -0.5 * z[0] ** 2 + 0.0 * z[1]

    fit = tb.fit(Flat(np.zeros(2), np.eye(2)), Gaussian.full(2), solver=NaturalGradient())
    assert fit.result is Result.unbounded
    assert fit.q.mean[0] == pytest.approx(0.0, abs=1e-6)


def test_result_nonfinite_raises_with_the_fit_attached():
    with pytest.raises(tb.FitError, match="NaN or infinite") as caught:
        tb.fit(line(lambda z: jnp.log(-1.0 - z**2)), Gaussian.full(1), solver=NaturalGradient())
    assert caught.value.fit.result is Result.nonfinite
    fit = tb.fit(
        line(lambda z: jnp.log(-1.0 - z**2)),
        Gaussian.full(1),
        solver=NaturalGradient(),
        throw=False,
    )
    assert not fit.result.usable


def test_result_max_steps_and_budget_return_what_they_had():
    target, _, _ = rotated(5, 1e6)
    few = tb.fit(target, Gaussian.full(5), solver=NaturalGradient(), max_steps=2)
    assert few.result is Result.max_steps
    assert few.steps == 2
    poor = tb.fit(
        target, Gaussian.full(5), solver=NaturalGradient(), budget=tb.Budget(evaluations=70)
    )
    assert poor.result is Result.budget
    assert np.all(np.isfinite(poor.q.mean))
    more = tb.fit(target, few.q, solver=NaturalGradient())
    assert more.result is Result.converged
    np.testing.assert_allclose(more.q.mean, target.mean, atol=1e-6)


def test_wrong_pairings_are_refused_in_a_sentence():
    target, _, _ = rotated(3, 1.0)
    with pytest.raises(
        PairingError, match="full or diagonal scale, not Gaussian with a low_rank scale"
    ):
        tb.fit(target, Gaussian.low_rank(3, 1), solver=NaturalGradient())
    with pytest.raises(PairingError, match="maximises the ELBO and nothing else, got IWELBO"):
        tb.fit(target, objective=tb.objectives.IWELBO(4), solver=NaturalGradient())
    with pytest.raises(PairingError, match="Pathwise only estimates gradients"):
        tb.fit(target, solver=NaturalGradient(estimator=tb.estimators.Pathwise(4)))


def test_the_state_is_not_shared_between_steps():
    """`step` returns a new state and leaves the old one alone, so a run can be resumed from any of
    them.
    """
    target, _, _ = rotated(3, 10.0)
    solver, q = NaturalGradient(), Gaussian.full(3)
    state = solver.init(target, q, None, 0, 0.02)
    before = state.search.mean.copy(), state.search.root.copy()
    solver.step(target, q, None, state, 0)
    np.testing.assert_array_equal(before[0], state.search.mean)
    np.testing.assert_array_equal(before[1], state.search.root)
