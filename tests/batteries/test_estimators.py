"""Every estimator passes its battery; estimators broken on purpose fail it.

ESTIMATORS and MOMENTS: name -> a function that makes (estimator, check) with the options of
check_estimator or check_moments in the check. Adding an estimator is one line.
"""

import dataclasses
import functools
import itertools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import tightbound as tb
from tightbound.amortised import heads
from tightbound.amortised.encoders import AbstractEncoder
from tightbound.estimators import (
    DoublyReparam,
    Enumerate,
    FixedDesign,
    FromModel,
    GaussHermite,
    LocalQuadratic,
    MeasureValued,
    Minibatch,
    Pathwise,
    ProjectedLogit,
    Quadrature,
    Relaxed,
    Score,
    StickTheLanding,
    SumOfExponentials,
)
from tightbound.estimators.base import AbstractEstimator
from tightbound.estimators.draws import draw, evaluate
from tightbound.families import Bernoulli, Categorical, Diagonal, Gaussian, Product
from tightbound.objectives import (
    ELBO,
    IWELBO,
    VRIWAE,
    ChiUpper,
    Fisher,
    ForwardKL,
    Renyi,
    WakePhase,
)
from tightbound.targets import Clutter
from tightbound.targets.base import Joint
from tightbound.testing import (
    Problem,
    check_estimator,
    check_moments,
    enumeration_problem,
    quadrature_problem,
)
from tightbound.testing.comparisons import rows as rows_of

BOTH = (ELBO(), IWELBO(2))
LOG_WEIGHTS = (*BOTH, VRIWAE(0.5, 2))
AVERAGES = (*LOG_WEIGHTS, Fisher())
OF_SUMS = (*LOG_WEIGHTS, Renyi(0.5), ChiUpper(), WakePhase())


class Table(Joint):
    """log p = a b' + 0.4 c for the two coins b and the label c of a product: a product itself."""

    slope: np.ndarray
    coordinate_names = ("b[0]", "b[1]", "c")

    def constrain(self, z):
        return {"b": z[:2], "c": z[2]}

    def unconstrain(self, values):
        return jnp.concatenate([values["b"], values["c"][None]])

    def log_joint(self, values):
        return jnp.dot(self.slope, values["b"]) + 0.4 * values["c"]


class Coins(Table):
    """Two coins that depend on each other: the values of a family that is no product."""

    def log_joint(self, values):
        return jnp.dot(self.slope, values) + 0.7 * jnp.sum(values) ** 2


COIN = Bernoulli(np.array([0.3, -0.8]))


@functools.cache
def coins():
    """Two coins, whose posterior is no product of two: so without a best member."""
    points = np.array(list(itertools.product([0.0, 1.0], repeat=2)))
    return enumeration_problem(Coins(np.array([0.5, -1.0])), COIN, points)


@functools.cache
def coins_and_label():
    """Two coins and a label, independent under the posterior as well: a best member."""
    points = np.array(list(itertools.product([0.0, 1.0], [0.0, 1.0], range(3))))
    slope = np.array([0.5, -1.0])
    q = Product(b=COIN, c=Categorical(np.array([0.1, 0.5, -0.4])))
    best = Product(b=Bernoulli(slope), c=Categorical(0.4 * np.arange(3.0)))
    return enumeration_problem(Table(slope), q, points, best)


@functools.cache
def rows():
    """Counts, y ~ Poisson(exp(b x)): third derivatives that a Taylor polynomial leaves over."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.0, 2.0, 30)
    y = rng.poisson(np.exp(0.4 * x)).astype(float)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        target = tb.from_rows(
            lambda p: -0.5 * p["b"] ** 2,
            lambda p, rows: rows["y"] * rows["x"] * p["b"] - jnp.exp(rows["x"] * p["b"]),
            {"x": x, "y": y},
            {"b": 0.0},
        )
    return quadrature_problem(target, Gaussian(np.array([0.3]), Diagonal(np.array([-1.6]))))


class Linear(AbstractEncoder):
    """(m, a) = W x + b, in the coordinates of the Gaussian head."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, x):
        return self.weight * x + self.bias


@functools.cache
def simulations():
    """z ~ N(0, 1), x = 2 z + noise; q(z | x) with a z - m ~ N(0, 1) and (m, a) linear in x.

    E (a z - m)^2 / 2 - log a + log(2 pi) / 2 with a held at b_1: Var z = 1, Var x = 5, Cov = 2.
    """
    w, b, a = 0.7, 0.2, 1.5
    with jax.numpy_rank_promotion("allow"):
        target = tb.from_simulator(
            lambda key: {"a": jr.normal(key)}, lambda key, p: 2 * p["a"] + jr.normal(key)
        )
        q = tb.amortised.amortised(
            target,
            heads.Gaussian(1, "diagonal"),
            Linear(np.array([w, 0.0]), np.array([b, a])),
            standardise=False,
        )
    # e = a z - w x - b; what standardises is not trained
    square, with_x, with_z = a**2 - 4 * a * w + 5 * w**2 + b**2, 2 * a - 5 * w, a - 2 * w
    loss = 0.5 * square - np.log(a) + 0.5 * np.log(2 * np.pi)
    # W_2 is zero but free: d loss / d W_2 = E[(e z - 1 / a) x], odd in the normals but for b
    slopes = Linear(np.array([-with_x, -2.0 * b]), np.array([b, with_z - 1 / a]))
    still = jax.tree.map(np.zeros_like, q.scaling)
    truth = rows_of(1, np.asarray(loss), slopes, still)[0]
    return Problem(target, q, lambda objective: truth, None)


def estimator(objectives, problem=None, **options):
    """check_estimator with its options."""
    return lambda part, key: check_estimator(
        part, objectives, key, problem=None if problem is None else problem(), **options
    )


ESTIMATORS = {
    "Pathwise": lambda: (Pathwise(8), estimator(AVERAGES)),
    "StickTheLanding": lambda: (StickTheLanding(8), estimator(BOTH[:1], biased=BOTH[1:])),
    "DoublyReparam": lambda: (DoublyReparam(8), estimator(LOG_WEIGHTS)),
    "Score": lambda: (Score(8), estimator(AVERAGES)),
    "Score optimal": lambda: (Score(8, baseline="optimal"), estimator(AVERAGES)),
    "Score taylor": lambda: (
        Score(8, baseline="taylor"), estimator(BOTH[:1], refused=AVERAGES[1:])),
    "MeasureValued": lambda: (MeasureValued(4), estimator(AVERAGES)),
    "Quadrature": lambda: (Quadrature(20), estimator((AVERAGES[0], AVERAGES[-1]))),
    "FixedDesign": lambda: (FixedDesign(), estimator(BOTH)),
    "GaussHermite": lambda: (GaussHermite(), estimator(BOTH[:1])),
    "Minibatch": lambda: (Minibatch(10, Pathwise(8)), estimator(BOTH[:1], rows)),
    "Minibatch plain": lambda: (
        Minibatch(10, Pathwise(8), taylor=0), estimator(BOTH[:1], rows)),
    "FromModel": lambda: (FromModel(100), estimator((ForwardKL(),), simulations)),
    # finite support
    "Enumerate": lambda: (Enumerate(), estimator(OF_SUMS, coins_and_label)),
    "Relaxed": lambda: (Relaxed(8, 1.0), estimator((), coins, biased=BOTH[:1])),
    "Relaxed straight through": lambda: (
        Relaxed(8, 1.0, True), estimator((), coins, biased=BOTH[:1])),
    "Score of coins": lambda: (Score(8), estimator(BOTH, coins, complete=False)),
    "MeasureValued of coins": lambda: (
        MeasureValued(4), estimator(BOTH[:1], coins, complete=False)),
    # Noises and other switches of estimators that are above in full.
    "Pathwise antithetic": lambda: (
        Pathwise(8, noise="antithetic"), estimator(BOTH, complete=False)),
    "Pathwise sobol": lambda: (Pathwise(8, noise="sobol"), estimator(BOTH, complete=False)),
    "StickTheLanding antithetic": lambda: (
        StickTheLanding(8, noise="antithetic"), estimator(BOTH[:1], complete=False)),
    "StickTheLanding sobol": lambda: (
        StickTheLanding(8, noise="sobol"), estimator(BOTH[:1], complete=False)),
    "DoublyReparam sobol": lambda: (
        DoublyReparam(8, noise="sobol"), estimator(BOTH[1:], complete=False)),
    "Score antithetic": lambda: (Score(8, noise="antithetic"), estimator(BOTH, complete=False)),
    "Score sobol": lambda: (
        Score(8, baseline="none", noise="sobol"), estimator(BOTH[:1], complete=False)),
    "Score moving average": lambda: (
        Score(8, baseline="moving_average"), estimator(BOTH[:1], complete=False)),
    "MeasureValued antithetic": lambda: (
        MeasureValued(4, noise="antithetic"), estimator(BOTH[:1], complete=False)),
    "MeasureValued sobol": lambda: (
        MeasureValued(4, coupled=False, noise="sobol"), estimator(BOTH[:1], complete=False)),
}  # fmt: skip

# Estimators of contaminated data have no loss: value and moments against quadrature. Kernels have
# variance 1, so that the variance of q is v / vg, in powers of which their errors are stated.
N5 = Clutter([-3.6048, 1.1717, 2.9157, 0.3442, 2.2250])
PLANE = Clutter(
    np.random.default_rng(3).standard_normal((6, 2)) + 1.0,
    weights=np.random.default_rng(4).uniform(0.5, 2.0, 6),
)


def narrow(v):
    return Gaussian.from_root(np.array([0.8, 0.3]), np.sqrt(v) * np.array([[1.0, 0.0], [0.4, 0.8]]))


def moments(target, q, tolerance, climbs):
    return lambda part, key: check_moments(part, target, q, key, tolerance=tolerance, climbs=climbs)


MOMENTS = {
    "GaussHermite": lambda: (GaussHermite(81), moments(PLANE, narrow(0.5), 1e-8, True)),
    # errors of order v^2 in the curvature: some v^2 for these six points
    "LocalQuadratic": lambda: (LocalQuadratic(), moments(PLANE, narrow(1e-3), 3e-5, False)),
    "LocalQuadratic cubic": lambda: (
        LocalQuadratic(cubic=True), moments(PLANE, narrow(1e-2), 1e-4, False)),
    # log odds of a point are a Gaussian to first order in the sd of q
    "ProjectedLogit": lambda: (ProjectedLogit(), moments(PLANE, narrow(1e-3), 3e-5, True)),
    # as wide as a kernel; the sums of exponentials are off by less than it says
    "SumOfExponentials": lambda: (SumOfExponentials(16), moments(PLANE, narrow(0.5), 1e-3, True)),
    "SumOfExponentials 1": lambda: (
        SumOfExponentials(16),
        moments(N5, Gaussian.from_root(np.array([1.7]), np.array([[0.9]])), 1e-3, True)),
}  # fmt: skip


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimator(name, key):
    part, check = ESTIMATORS[name]()
    check(part, key)


@pytest.mark.parametrize("name", MOMENTS)
def test_moments(name, key):
    part, check = MOMENTS[name]()
    check(part, key)


# -- negative controls


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


def test_estimator_battery_catches_points_that_are_left_out(key):
    """Of finite support: the sum over half of the points."""

    class Half(Enumerate):
        def surrogate(self, objective, target, q, state, key):
            loss, state = Enumerate.surrogate(self, objective, target, q, state, key)
            return 0.5 * loss, state

    with pytest.raises(AssertionError, match="is biased"):
        check_estimator(Half(), BOTH[:1], key, complete=False, problem=coins_and_label())


def test_estimator_battery_catches_batches_of_the_wrong_scale(key):
    """Rows: the batch counted once, as if the data had no more rows."""

    class Unscaled(Minibatch):
        def surrogate(self, objective, target, q, state, key):
            part = target.take(jax.lax.dynamic_slice_in_dim(state.order, 0, self.batch_size))
            part = dataclasses.replace(part, scale=1.0)
            return self.estimator.surrogate(objective, part, q, state.inner, key)[0], state

    with pytest.raises(AssertionError, match="is biased"):
        check_estimator(Unscaled(10, Pathwise(4)), BOTH[:1], key, problem=rows())


class Crooked(LocalQuadratic):
    """Half of the curvature, or a value to climb that has another gradient."""

    fault: str = eqx.field(static=True, default="curvature")

    def moments(self, target, mean, root, design):
        found = LocalQuadratic.moments(self, target, mean, root, design)
        if self.fault == "curvature":
            return eqx.tree_at(lambda m: m.curvature, found, 0.5 * found.curvature)
        return eqx.tree_at(lambda m: m.elbo, found, np.asarray(-0.5 * mean @ mean))


@pytest.mark.parametrize(
    ("fault", "climbs", "sentence"),
    [("curvature", False, "the curvature is"), ("value", True, "its own value has the slope")],
    ids=["curvature", "value"],
)
def test_moments_battery_catches(fault, climbs, sentence, key):
    with pytest.raises(AssertionError, match=sentence):
        check_moments(Crooked(fault=fault), PLANE, narrow(1e-3), key, tolerance=3e-5, climbs=climbs)
