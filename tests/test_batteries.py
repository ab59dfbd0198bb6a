"""Every member of every kind of part passes its battery, and a part broken on purpose fails it."""

import contextlib
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tightbound.estimators import (
    DoublyReparam,
    FixedDesign,
    MeasureValued,
    Pathwise,
    Quadrature,
    Score,
    StickTheLanding,
)
from tightbound.estimators.base import AbstractEstimator
from tightbound.estimators.draws import draw, evaluate
from tightbound.families import AbstractFamily, Diagonal, Full, Gaussian, LowRank, StudentT, Warped
from tightbound.families.mixture import Mixture
from tightbound.families.nested import NestedGaussian
from tightbound.families.nested_pair import NestedGaussianPair
from tightbound.objectives import (
    ELBO,
    IWELBO,
    VRIWAE,
    AbstractObjective,
    ChiUpper,
    Fisher,
    Renyi,
    Source,
    WakePhase,
)
from tightbound.results import Result
from tightbound.solvers import (
    BatchAndMatch,
    FixedDraws,
    Laplace,
    NaturalGradient,
    StochasticGradient,
)
from tightbound.solvers.base import AbstractSolver, Info
from tightbound.targets.base import Density, Joint
from tightbound.testing import (
    GaussianTarget,
    check_estimator,
    check_family,
    check_objective,
    check_order,
    check_solver,
    check_target,
)


def named(table):
    """Parametrisation over a table, with its keys as ids."""
    return pytest.mark.parametrize("member", table.values(), ids=table)


@contextlib.contextmanager
def as_a_user():
    """Targets run the user's code, under JAX's ordinary promotion rules."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# -- families
# ---------------------------------------------------------------------------------------------------------


def nested():
    knots = np.linspace(-4.0, 4.0, 17)
    means, roots = 0.3 * knots[:, None] ** 2, np.exp(0.2 * knots)[:, None, None] * np.ones((1, 1))
    return NestedGaussian.through(0, knots, -0.5 * knots**2, means, roots)


def nested_pair():
    """On a lattice of 9 x 9 knots.

    An independent normal pair, and one more coordinate that follows both.
    """
    lattice = np.stack(
        np.meshgrid(np.linspace(-4.0, 4.0, 9), np.linspace(-4.0, 4.0, 9), indexing="ij"), axis=-1
    )
    profile, means = -0.5 * np.sum(lattice**2, axis=-1), 0.3 * lattice[..., :1] * lattice[..., 1:]
    roots = np.exp(0.2 * lattice[..., 0])[..., None, None] * np.ones((1, 1))
    axes = np.array([[1.0, 0.0], [0.4, 0.8]])
    return NestedGaussianPair.through(
        (0, 2), np.zeros(2), axes, np.array([-4.0, -4.0]), 1.0, profile, means, roots
    )


FAMILIES = {
    "Gaussian diagonal 1": Gaussian(np.array([0.7]), Diagonal(np.array([-1.0]))),
    "Gaussian diagonal 2": Gaussian(np.array([1.0, -3.0]), Diagonal(np.array([1.0, -0.5]))),
    "Gaussian full 1": Gaussian(np.array([0.7]), Full(np.array([[0.4]]))),
    "Gaussian full 2": Gaussian.from_root(np.array([5.0, 0.0]), np.array([[2.0, 0.0], [0.9, 0.5]])),
    "Gaussian full 4": Gaussian.from_root(
        np.arange(4.0), np.random.default_rng(1).standard_normal((4, 4))
    ),
    "Gaussian low rank 2": Gaussian(
        np.array([1.0, 2.0]), LowRank(np.array([[0.8], [-0.6]]), np.array([-0.3, 0.2]))
    ),
    "Gaussian low rank 4": Gaussian(
        np.zeros(4), LowRank(np.random.default_rng(2).standard_normal((4, 2)), np.zeros(4))
    ),
    "Mixture 2": Mixture(
        [Gaussian.full(2), Gaussian.full(2).moved(np.array([2.0, 1.0]), 0.5)], np.array([0.3, -0.3])
    ),
    "NestedGaussian 2": nested(),
    "NestedGaussianPair 3": nested_pair(),
    "StudentT full 2": StudentT.around(
        Gaussian.from_root(np.array([5.0, 0.0]), np.array([[2.0, 0.0], [0.9, 0.5]])), 6.0
    ),
    "Warped 2": Warped(
        Gaussian.from_root(np.array([1.0, 2.0]), np.array([[2.0, 0.0], [1.0, 0.5]])),
        np.array([0.4, -0.2]),
        np.array([0.1, -0.2]),
    ),
}


@named(FAMILIES)
def test_family(member, key):
    check_family(member, key)


class Tampered(AbstractFamily):
    """A standard normal of two coordinates with one thing wrong."""

    inner: Gaussian
    fault: str = eqx.field(static=True)

    @property
    def dim(self):
        return 2

    def _sample(self, key, x=None):
        z = self.inner._sample(key)
        if self.fault == "stopped draws":  # the gradient through the draws is lost
            return jax.lax.stop_gradient(z)
        return z * 1.15 if self.fault == "draws too wide" else z

    def _log_prob(self, z, x=None):
        return self.inner._log_prob(z) + (0.05 if self.fault == "normalisation" else 0.0)

    def retract(self, step):
        extra = 0.1 if self.fault == "a step of zero moves" else 0.0
        moved = eqx.apply_updates(self.inner, step.inner)
        return Tampered(Gaussian(moved.mean + extra, moved.scale), self.fault)

    def entropy(self):
        return self.inner.entropy() + (0.3 if self.fault == "entropy" else 0.0)


FAULTS = {
    "normalisation": "integrates to 1.05",
    "draws too wide": "does not follow the density|disagree",
    "stopped draws": "pathwise and score-function gradients",
    "entropy": "`entropy` is not the mean",
    "a step of zero moves": "`retract` of a zero step",
}


@pytest.mark.parametrize(("fault", "sentence"), FAULTS.items(), ids=FAULTS)
def test_family_battery_catches(fault, sentence, key):
    with pytest.raises(AssertionError, match=sentence):
        check_family(Tampered(Gaussian.full(2), fault), key)


def test_family_battery_passes_the_same_family_untampered(key):
    check_family(Tampered(Gaussian.full(2), ""), key)


# -- objectives
# -------------------------------------------------------------------------------------------------------

OBJECTIVES = {
    "ELBO": ELBO(),
    "IWELBO 5": IWELBO(5),
    "Renyi 0.5": Renyi(0.5),
    "Renyi 1.3": Renyi(1.3),
    "VRIWAE 5": VRIWAE(0.4, 5),
    "ChiUpper 1.5": ChiUpper(1.5),
    "WakePhase": WakePhase(),
    "Fisher": Fisher(),
}
UPPER = ("ChiUpper 1.5", "WakePhase")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective(name, key):
    check_objective(OBJECTIVES[name], key, upper=name in UPPER, divergence=name == "Fisher")


def test_bounds_are_ordered(key):
    check_order(
        [Renyi(1.3), ELBO(), IWELBO(2), IWELBO(5), IWELBO(20)],
        key,
        upper=[ChiUpper(1.5), ChiUpper(2.0)],
    )
    check_order([ELBO(), Renyi(0.5)], key, upper=[WakePhase()])


class Wrong(AbstractObjective):
    """The ELBO with one thing wrong."""

    fault: str = eqx.field(static=True)
    drawn_from: ClassVar[Source] = Source.q

    def loss(self, draws):
        if self.fault == "sign":
            return jnp.mean(draws.log_w)
        if self.fault == "entropy left out":
            return -jnp.mean(draws.log_p)
        if self.fault == "overflow":
            return -jnp.mean(draws.log_w) + 1e-300 * jnp.mean(jnp.exp(draws.log_w))
        return -jnp.mean(draws.log_w) + 0.1 * jnp.var(draws.log_w)  # right at q = posterior only

    def exact(self, target, q):
        return ELBO().exact(target, q)


WRONG = {
    "sign": "at q = posterior",
    "entropy left out": "at q = posterior",
    "another divergence": "not the `exact` one",
    "overflow": "not finite for log weights of 1e3",
}


@pytest.mark.parametrize(("fault", "sentence"), WRONG.items(), ids=WRONG)
def test_objective_battery_catches(fault, sentence, key):
    with pytest.raises(AssertionError, match=sentence):
        check_objective(Wrong(fault), key)


def test_order_battery_catches_bounds_out_of_order(key):
    with pytest.raises(AssertionError, match="exceeds"):
        check_order([IWELBO(5), ELBO()], key)


# -- estimators
# -------------------------------------------------------------------------------------------------------

BOTH = (ELBO(), IWELBO(2))
LOG_WEIGHTS = (*BOTH, VRIWAE(0.5, 2))
AVERAGES = (*LOG_WEIGHTS, Fisher())
ESTIMATORS = {
    "Pathwise": (Pathwise(8), AVERAGES, {}),
    "StickTheLanding": (StickTheLanding(8), BOTH[:1], {"biased": BOTH[1:]}),
    "DoublyReparam": (DoublyReparam(8), LOG_WEIGHTS, {}),
    "Score": (Score(8), AVERAGES, {}),
    "Score optimal": (Score(8, baseline="optimal"), AVERAGES, {}),
    "Score taylor": (Score(8, baseline="taylor"), BOTH[:1], {"refused": AVERAGES[1:]}),
    "MeasureValued": (MeasureValued(4), AVERAGES, {}),
    "Quadrature": (Quadrature(20), (AVERAGES[0], AVERAGES[-1]), {}),
    "FixedDesign": (FixedDesign(), BOTH, {}),
}
# Noises and other switches of estimators that are above in full.
SWITCHES = {
    "Pathwise antithetic": (Pathwise(8, noise="antithetic"), BOTH, {}),
    "Pathwise sobol": (Pathwise(8, noise="sobol"), BOTH, {}),
    "StickTheLanding antithetic": (StickTheLanding(8, noise="antithetic"), BOTH[:1], {}),
    "StickTheLanding sobol": (StickTheLanding(8, noise="sobol"), BOTH[:1], {}),
    "DoublyReparam sobol": (DoublyReparam(8, noise="sobol"), BOTH[1:], {}),
    "Score antithetic": (Score(8, noise="antithetic"), BOTH, {}),
    "Score sobol": (Score(8, baseline="none", noise="sobol"), BOTH[:1], {}),
    "Score moving average": (Score(8, baseline="moving_average"), BOTH[:1], {}),
    "MeasureValued antithetic": (MeasureValued(4, noise="antithetic"), BOTH[:1], {}),
    "MeasureValued sobol": (MeasureValued(4, coupled=False, noise="sobol"), BOTH[:1], {}),
}


@named(ESTIMATORS)
def test_estimator(member, key):
    estimator, objectives, other = member
    check_estimator(estimator, objectives, key, **other)


@named(SWITCHES)
def test_estimator_switch(member, key):
    estimator, objectives, other = member
    check_estimator(estimator, objectives, key, complete=False, **other)


class Broken(AbstractEstimator):
    """Eight pathwise draws with one thing wrong."""

    fault: str = eqx.field(static=True)
    unbiased_for: ClassVar = (ELBO,)
    zero_variance_at_optimum: ClassVar = True

    def surrogate(self, objective, target, q, state, key):
        z = draw(q, "independent", None, 8, 1, key)
        if self.fault == "gradient stopped in the draws":
            z = jax.lax.stop_gradient(z)
        if self.fault == "draws too wide":
            z = q.mean[None, :] + 1.1 * (z - q.mean[None, :])
        return objective.loss(evaluate(objective, target, q, z)), state


BROKEN = {
    "gradient stopped in the draws": "is biased",
    "draws too wide": "is biased",
    # right for the ELBO, but it declares what only StickTheLanding has
    "pathwise noise": "q = posterior has noise",
}


@pytest.mark.parametrize(("fault", "sentence"), BROKEN.items(), ids=BROKEN)
def test_estimator_battery_catches(fault, sentence, key):
    with pytest.raises(AssertionError, match=sentence):
        check_estimator(Broken(fault), [ELBO()], key)


def test_estimator_battery_catches_a_bias_that_is_none(key):
    with pytest.raises(AssertionError, match="listed as biased, but"):
        check_estimator(Pathwise(8), BOTH[:1], key, biased=[ELBO()], complete=False)


def test_estimator_battery_asks_for_every_objective(key):
    with pytest.raises(AssertionError, match="says that it is unbiased for IWELBO"):
        check_estimator(Pathwise(8), [ELBO()], key)


def test_estimator_battery_catches_recompilation(key):
    class Recompiling(Pathwise):
        def prepare(self, target, q, key):
            return None

        def surrogate(self, objective, target, q, state, key):
            loss, _ = Pathwise(8).surrogate(objective, target, q, None, key)
            # a state that grows has a new shape each time
            return loss, jnp.zeros(1 if state is None else len(state) + 1)

    with pytest.raises(AssertionError, match="compiled again"):
        check_estimator(Recompiling(8), BOTH[:1], key, complete=False)


# -- targets
# ----------------------------------------------------------------------------------------------------------

TARGETS = {"GaussianTarget": GaussianTarget(Gaussian.from_root(np.ones(3), np.eye(3) + 0.3), 2.0)}


@named(TARGETS)
def test_target(member, key):
    check_target(member, key)


class Scale(Joint, Density):
    """A positive value with an exponential prior, on its log scale; `fault` leaves something out."""

    fault: str = eqx.field(static=True)
    dim = 1
    coordinate_names = ("scale",)

    def constrain(self, z):
        return {"scale": jnp.exp(z[0])}

    def unconstrain(self, values):
        return jnp.log(values["scale"])[None] + (1.0 if self.fault == "inverse" else 0.0)

    def log_joint(self, values):
        return -values["scale"]

    def log_density(self, z):
        jacobian = 0.0 if self.fault == "Jacobian" else z[0]
        value = self.log_joint(self.constrain(z)) + jacobian
        return _with_wrong_gradient(value) if self.fault == "gradient" else value


@jax.custom_jvp
def _with_wrong_gradient(x):
    return x


_with_wrong_gradient.defjvp(lambda primals, tangents: (primals[0], 1.01 * tangents[0]))


def test_target_battery_passes_the_same_target_unbroken(key):
    check_target(Scale(""), key, reference=lambda values: 3.0 - values["scale"])


BROKEN_TARGETS = {
    "Jacobian": "log-Jacobian is 0",
    "inverse": "does not invert",
    "gradient": "not the difference quotient",
}


@pytest.mark.parametrize(("fault", "sentence"), BROKEN_TARGETS.items(), ids=BROKEN_TARGETS)
def test_target_battery_catches(fault, sentence, key):
    with pytest.raises(AssertionError, match=sentence):
        check_target(Scale(fault), key)


def test_target_battery_catches_another_model(key):
    with pytest.raises(AssertionError, match="more than a constant"):
        check_target(Scale(""), key, reference=lambda values: -2.0 * values["scale"])


# -- solvers
# ----------------------------------------------------------------------------------------------------------

ROOT = np.random.default_rng(0).standard_normal((4, 4))
MEAN = np.array([0.1, -5.0, 20.0, 1.0])
POSTERIOR = Gaussian.from_root(MEAN, np.array([[0.01], [1.0], [100.0], [3.0]]) * ROOT)
UNSCALED = Gaussian.from_root(MEAN, ROOT)
# the best mean-field q matches the precisions
MEAN_FIELD_SD = 1 / np.sqrt(POSTERIOR.scale.precision_diagonal())
SOLVERS = {
    "StochasticGradient full": (
        StochasticGradient(),
        POSTERIOR,
        Gaussian.full(4),
        POSTERIOR.sd,
        False,
    ),
    "StochasticGradient diagonal": (
        StochasticGradient(),
        POSTERIOR,
        Gaussian.diagonal(4),
        MEAN_FIELD_SD,
        False,
    ),
    "NaturalGradient full": (NaturalGradient(), POSTERIOR, Gaussian.full(4), POSTERIOR.sd, True),
    "NaturalGradient diagonal": (
        NaturalGradient(),
        POSTERIOR,
        Gaussian.diagonal(4),
        MEAN_FIELD_SD,
        True,
    ),
    "BatchAndMatch": (BatchAndMatch(), UNSCALED, Gaussian.full(4), UNSCALED.sd, False),
    "FixedDraws diagonal": (FixedDraws(), POSTERIOR, Gaussian.diagonal(4), MEAN_FIELD_SD, True),
    "FixedDraws low rank": (FixedDraws(), POSTERIOR, Gaussian.low_rank(4, 4), POSTERIOR.sd, False),
    "Laplace": (Laplace(), UNSCALED, Gaussian.full(4), UNSCALED.sd, True),
}


@named(SOLVERS)
def test_solver(member):
    solver, posterior, q, sd, monotone = member
    with as_a_user():
        check_solver(
            solver, GaussianTarget(posterior, 2.0), q, mean=posterior.mean, sd=sd, monotone=monotone
        )


class Scripted(AbstractSolver):
    """Walks from q to the posterior in ten steps, and may stop short, get lost or climb."""

    fault: str = eqx.field(static=True)
    compiled: ClassVar = False

    def check(self, target, q, objective):
        pass

    def init(self, target, q, objective, key, tol):
        return 0

    def step(self, target, q, objective, state, key):
        way = 0.97 if self.fault == "short" else 1.0
        width = 1.05 if self.fault == "wide" else 1.0
        q = target.gaussian.moved(target.gaussian.mean * way * (state + 1) / 10, width)
        loss = float(10 - state) + (2.0 if self.fault == "climbing" and state == 5 else 0.0)
        return target, q, state + 1, Info(np.float64(loss), np.float64(1.0), 1)

    def done(self, state):
        if state < 10:
            return None
        return Result.stalled if self.fault == "lost" else Result.converged


SCRIPTS = {
    "short": "of the mean is",
    "wide": "sd . is off by 5.0 %",
    "lost": "ended after 10 steps",
    "climbing": "its loss rises by",
}


@pytest.mark.parametrize(("fault", "sentence"), SCRIPTS.items(), ids=SCRIPTS)
def test_solver_battery_catches(fault, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_solver(
            Scripted(fault),
            GaussianTarget(POSTERIOR),
            Gaussian.full(4),
            mean=POSTERIOR.mean,
            sd=POSTERIOR.sd,
            monotone=True,
        )


def test_solver_battery_passes_the_same_solver_unbroken():
    check_solver(
        Scripted(""),
        GaussianTarget(POSTERIOR),
        Gaussian.full(4),
        mean=POSTERIOR.mean,
        sd=POSTERIOR.sd,
        monotone=True,
    )
