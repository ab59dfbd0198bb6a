"""Every solver reaches a known optimum; solvers broken on purpose fail the battery.

SOLVERS: name -> a function that makes (solver, its problem): the target, the start, and the means
and sds of the best member, with the options of check_solver. Adding a solver is one line.
"""

import contextlib
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.special as sp

import tightbound as tb
from tightbound import families as F
from tightbound.amortised import heads
from tightbound.amortised.encoders import AbstractEncoder
from tightbound.estimators import GaussHermite
from tightbound.families import Gaussian
from tightbound.results import Result
from tightbound.search.chain_statistics import ess_bulk, ess_tail
from tightbound.solvers import (
    EP,
    HMC,
    NUTS,
    SVI,
    Annealed,
    BatchAndMatch,
    CoordinateAscent,
    FixedDraws,
    FixedNoise,
    Gibbs,
    HeldOut,
    IndicatorMeanField,
    Laplace,
    LearnClutter,
    Metropolis,
    NaturalGradient,
    Nested,
    NestedPair,
    Pathfinder,
    StochasticGradient,
    Subsampled,
)
from tightbound.solvers.base import AbstractSolver, Info
from tightbound.targets import Clutter, LinearSites, NormalSample
from tightbound.targets.base import Density
from tightbound.testing import GaussianTarget, check_solver

ROOT = np.random.default_rng(0).standard_normal((4, 4))
MEAN = np.array([0.1, -5.0, 20.0, 1.0])
POSTERIOR = Gaussian.from_root(MEAN, np.array([[0.01], [1.0], [100.0], [3.0]]) * ROOT)
UNSCALED = Gaussian.from_root(MEAN, ROOT)
# the best mean-field q matches the precisions
MEAN_FIELD_SD = 1 / np.sqrt(POSTERIOR.scale.precision_diagonal())
N5 = np.array([-3.6048, 1.1717, 2.9157, 0.3442, 2.2250])
N20 = [-1.3252, -2.3011, -5.0710, -1.4873, 0.4896, 1.1387, 2.9932, 2.7633, 1.4019, 2.6568]
N20 += [0.5034, 1.6761, 1.0904, -3.4887, 1.3403, 2.3313, -0.4575, -1.1529, -1.7524, 0.3278]


@contextlib.contextmanager
def as_a_user():
    """Targets run the user's code, under JAX's ordinary promotion rules."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def gaussian(posterior, q, sd=None, **options):
    """A Gaussian posterior: its best member is itself, or has other sds where q is narrower."""
    sd = posterior.sd if sd is None else sd
    problem = {"target": GaussianTarget(posterior, 2.0), "q": q, "mean": posterior.mean, "sd": sd}
    return problem | options


def wide(dim):
    """A start at zero, of sds one."""
    return Gaussian.full(dim)


def of_draws(ran):
    """Means and sds of what cannot tell them itself; 20,000 stratified or mirrored draws."""
    z, _ = ran.q.draw(20_000, 0)
    return z.mean(axis=0), z.std(axis=0)


# -- contaminated data and sites


def sites():
    """Linear regression with noise variance .5: Gaussian sites, for which EP is exact."""
    rng = np.random.default_rng(11)
    a, y = rng.standard_normal((15, 3)), rng.standard_normal(15)
    precision = 2 * a.T @ a + np.eye(3) / 100
    return {
        "target": LinearSites(a, lambda s, y: -((s - y) ** 2), y),
        "q": wide(3),
        "mean": np.linalg.solve(precision, 2 * a.T @ y),
        "sd": np.sqrt(np.diag(np.linalg.inv(precision))),
        "tol": 1e-6,
    }


def clean(**options):
    """No point can be background: five draws of N(theta, 1), prior variance 100."""
    problem = {
        "target": Clutter(N5, log_clutter=-np.inf),
        "q": wide(1),
        "mean": np.array([N5.sum() / 5.01]),
        "sd": np.array([5.01**-0.5]),
    }
    return problem | options


def clutter():
    """From far away; the optimum of the ELBO by 2,001 trapezoid nodes is 1.17781, .34749."""
    return {
        "target": Clutter(N20),
        "q": Gaussian.from_root(np.array([2.5]), np.array([[0.3]])),
        "mean": np.array([1.17781]),
        "sd": np.array([0.34749**0.5]),
        "monotone": True,
    }


def unknown_noise():
    """No background, but a variance vg to learn: vg = E mean (x - theta)^2 is a fixed point.

    Beside theta it is log vg that is compared, in sds 1 / sqrt(n / 2) of its likelihood.
    """
    x = np.random.default_rng(2).normal(1.0, 1.5, 40)
    vg, unit = 1.0, (len(x) / 2) ** -0.5
    for _ in range(200):
        v = 1 / (len(x) / vg + 1 / 100)
        m = v * x.sum() / vg
        vg = np.mean((x - m) ** 2) + v
    return {
        "target": Clutter(x, vg=1.0, log_clutter=-np.inf),
        "q": wide(1),
        "mean": np.array([m, np.log(vg)]),
        "sd": np.array([v**0.5, unit]),
        "moments": lambda ran: (
            np.array([ran.q.mean[0], np.log(float(ran.target.vg))]),
            np.array([ran.q.sd[0], unit]),
        ),
        "monotone": True,
    }


# -- conjugate models


@functools.cache
def sample(count):
    return np.random.default_rng(5).normal(1.0, 2.0, count)


def _of_factors(ran):
    """Means and sds of the factors mu and tau."""
    mu, tau = ran.q["mu"], ran.q["tau"]
    means = [mu.mean, tau.shape / tau.rate]
    return np.array(means, float), np.array([mu.precision**-0.5, tau.shape**0.5 / tau.rate], float)


def normal_sample(count, **options):
    """The fixed point of Bishop 2006, eqs. 10.26-10.30, with independent priors."""
    x = sample(count)
    tau, shape = 1.0, 1e-3 + len(x) / 2
    for _ in range(200):
        precision = 1e-6 + len(x) * tau
        mean = tau * x.sum() / precision
        rate = 1e-3 + 0.5 * (np.sum((x - mean) ** 2) + len(x) / precision)
        tau = shape / rate
    target = NormalSample(x)
    problem = {
        "target": target,
        "q": target.start(0),
        "mean": np.array([mean, tau]),
        "sd": np.array([precision**-0.5, shape**0.5 / rate]),
        "moments": _of_factors,
    }
    return problem | options


def exact_normal_sample():
    """The posterior of mu and log tau itself, on a grid of 401 x 401 points."""
    x = sample(30)
    target = NormalSample(x)
    m = np.linspace(x.mean() - 4.0, x.mean() + 4.0, 401)[:, None]
    t = np.linspace(-4.0, 1.0, 401)[None]
    squares = np.sum((x - m[..., None]) ** 2, axis=-1)
    # Gamma(.001, .001) in log tau: its density times tau
    log_p = (1e-3 + len(x) / 2) * t - np.exp(t) * (1e-3 + 0.5 * squares) - 0.5e-6 * m**2
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = np.array([np.sum(p * m), np.sum(p * t)])
    square = np.array([np.sum(p * m**2), np.sum(p * t**2)])
    return {"target": target, "q": target.start(0), "mean": mean, "sd": np.sqrt(square - mean**2),
            "error": four_errors}  # fmt: skip


# -- samplers


def four_errors(ran):
    """Four standard errors of the chains' means, and of their sds: by their effective draws."""
    draws = np.asarray(ran.q.draws)
    ess = min(ess_bulk(draws).min(), ess_tail(draws).min())
    return 4 / np.sqrt(ess), 4 / np.sqrt(ess)


def sampled():
    """Correlated; the chains start from a q that is off by some sds, and too wide."""
    posterior = Gaussian.from_root(np.array([1.0, 300.0]), np.array([[2.0, 0.0], [-30.0, 10.0]]))
    near = posterior.moved(posterior.mean + 0.3 * posterior.sd, 1.3)
    return gaussian(posterior, near, error=four_errors)


# -- posteriors that are no Gaussians


class LogGammas(Density):
    """z_i = log of a Gamma(a_i, 1) variable: means digamma(a), variances trigamma(a)."""

    shapes: np.ndarray

    @property
    def dim(self):
        return len(self.shapes)

    @property
    def coordinate_names(self):
        return tuple(f"z[{i}]" for i in range(self.dim))

    def constrain(self, z):
        return {"z": z}

    def unconstrain(self, values):
        return values["z"]

    def log_density(self, z):
        return jnp.sum(self.shapes * z - jnp.exp(z))


def log_gammas(*shapes, error):
    a = np.array(shapes)
    return {
        "target": LogGammas(a),
        "q": wide(len(a)),
        "mean": sp.digamma(a),
        "sd": np.sqrt(sp.polygamma(1, a)),
        "moments": of_draws,
        "error": lambda ran: (error, error),
    }


def warped():
    """A member of the family: each coordinate goes through sinh((asinh u + skew) / exp(tail)).

    u is the coordinate of the base less its mean, in its sds.
    """
    base = Gaussian.from_root(np.array([1.0, -2.0]), np.array([[2.0, 0.0], [1.0, 0.5]]))
    skew, tail = np.array([0.5, -0.3]), np.array([0.0, -0.15])
    truth = F.Warped(base, skew, tail)
    e, w = np.polynomial.hermite_e.hermegauss(100)
    # minus its value at e = 0, so that medians stay
    s = np.sinh((np.arcsinh(e)[:, None] + skew) / np.exp(tail)) - np.sinh(skew / np.exp(tail))
    mean = (w / w.sum()) @ s
    var = (w / w.sum()) @ (s - mean) ** 2
    return {
        "target": tb.from_log_density(lambda p: truth._log_prob(p["z"]), {"z": np.zeros(2)}),
        "q": F.Warped.around(base.moved(base.mean + 0.2 * base.sd, 1.2)),
        "mean": base.mean + base.sd * mean,
        "sd": base.sd * np.sqrt(var),
        "moments": of_draws,
        # of 20,000 draws that are mirrored and not stratified: 4 / sqrt(20,000), and its own tol
        "error": lambda ran: (0.05, 0.05),
    }


# -- rows and simulations


def rows():
    """A linear regression on 4,000 rows, of which 400 give the curvature: sds to some 1 / 20."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 2)) * np.array([1.0, 10.0])
    y = x @ np.array([0.5, -0.05]) + 0.5 * rng.standard_normal(4000)
    precision = 4 * x.T @ x + np.eye(2) / 25
    target = tb.from_rows(
        lambda p: -0.5 * jnp.sum(p["b"] ** 2) / 25,
        lambda p, rows: -2.0 * (rows["y"] - rows["x"] @ p["b"]) ** 2,
        {"x": x, "y": y},
        {"b": np.zeros(2)},
    )
    return {
        "target": target,
        "q": wide(2),
        "mean": np.linalg.solve(precision, 4 * x.T @ y),
        "sd": np.sqrt(np.diag(np.linalg.inv(precision))),
        # the mean is that of all rows; a curvature of 400 rows has the relative error
        # sqrt(2 / 400) = .07, half of it in an sd, four times
        "error": lambda ran: (0.02, 0.14),
    }


class Linear(AbstractEncoder):
    """(m, a) = W x + b, in the coordinates of the Gaussian head: a z - m ~ N(0, 1)."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, x):
        return self.weight * x + self.bias


def simulations():
    """z ~ N(0, 1), x = 2 z + noise: z | x ~ N(.4 x, .2), which is in the family."""
    target = tb.from_simulator(
        lambda key: {"a": jr.normal(key)}, lambda key, p: 2 * p["a"] + jr.normal(key)
    )
    start = Linear(np.zeros(2), np.array([0.0, 1.0]))
    q = tb.amortised.amortised(target, heads.Gaussian(1, "diagonal"), start, standardise=False)
    x = np.array(1.3)
    return {
        "target": target,
        "q": q,
        "mean": np.array([0.4 * x]),
        "sd": np.array([0.2**0.5]),
        "moments": lambda ran: ran.q.at(x).moments,
        # 1,024 held-out simulations tell an sd to 1 / sqrt(2,048), a mean to 1 / sqrt(1,024)
        "error": lambda ran: (4 / 32, 4 / 45),
    }


SOLVERS = {
    "StochasticGradient full": lambda: (StochasticGradient(), gaussian(POSTERIOR, wide(4))),
    "StochasticGradient diagonal": lambda: (
        StochasticGradient(), gaussian(POSTERIOR, Gaussian.diagonal(4), MEAN_FIELD_SD)),
    "NaturalGradient full": lambda: (
        NaturalGradient(), gaussian(POSTERIOR, wide(4), monotone=True)),
    "NaturalGradient diagonal": lambda: (
        NaturalGradient(),
        gaussian(POSTERIOR, Gaussian.diagonal(4), MEAN_FIELD_SD, monotone=True)),
    "NaturalGradient of clutter": lambda: (NaturalGradient(GaussHermite()), clutter()),
    "BatchAndMatch": lambda: (BatchAndMatch(), gaussian(UNSCALED, wide(4))),
    "FixedDraws diagonal": lambda: (
        FixedDraws(), gaussian(POSTERIOR, Gaussian.diagonal(4), MEAN_FIELD_SD, monotone=True)),
    "FixedDraws low rank": lambda: (
        FixedDraws(), gaussian(POSTERIOR, Gaussian.low_rank(4, 4))),
    "Laplace": lambda: (Laplace(), gaussian(UNSCALED, wide(4), monotone=True)),
    # 200 draws choose the iterate, whose inverse Hessian is that of a few secant pairs
    "Pathfinder": lambda: (
        Pathfinder(paths=1), gaussian(UNSCALED, wide(4), error=lambda ran: (0.25, 0.25))),
    "FixedNoise": lambda: (FixedNoise(pairs=512), warped()),
    "Nested": lambda: (Nested(), log_gammas(3.0, error=0.02)),
    "NestedPair": lambda: (NestedPair(), log_gammas(3.0, 6.0, error=0.02)),
    # contaminated data and sites
    "EP": lambda: (EP(), sites()),
    "EP parallel": lambda: (EP(parallel=True), sites()),
    "IndicatorMeanField": lambda: (IndicatorMeanField(), clean(tol=1e-6)),
    "Annealed": lambda: (Annealed(), clean(tol=1e-4)),
    "Annealed natural": lambda: (Annealed("natural"), clean(tol=1e-4)),
    "LearnClutter": lambda: (LearnClutter(learn=("vg",)), unknown_noise()),
    # conjugate models
    "CoordinateAscent": lambda: (
        CoordinateAscent(), normal_sample(30, tol=1e-6, monotone=True)),
    # a noisy recursion, stopped where a pass gains little: as close as the data's own tenth of an
    # sd asks for
    "SVI": lambda: (
        SVI(batch_size=40, forgetting=0.9),
        normal_sample(400, max_steps=400, error=lambda ran: (0.2, 0.05))),
    "Gibbs": lambda: (Gibbs(warmup=20, draws=500), exact_normal_sample()),
    # samplers
    "NUTS": lambda: (NUTS(draws=400, warmup=200), sampled()),
    "HMC": lambda: (HMC(draws=1000, warmup=200), sampled()),
    "Metropolis": lambda: (Metropolis(draws=3000, warmup=400), sampled()),
    # rows and simulations
    "Subsampled": lambda: (Subsampled(rows=400), rows()),
    "HeldOut": lambda: (HeldOut(), simulations()),
}  # fmt: skip
NEEDS_BLACKJAX = ("NUTS", "HMC", "Metropolis")


@pytest.mark.parametrize("name", SOLVERS)
def test_solver(name):
    if name in NEEDS_BLACKJAX:
        pytest.importorskip("blackjax", reason="the samplers' extra is not installed")
    with as_a_user():
        solver, problem = SOLVERS[name]()
        check_solver(solver, **problem)


# -- negative controls


class Scripted(AbstractSolver):
    """Walks from q to the posterior in ten steps, and may stop short, get lost or climb."""

    fault: str
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
        check_solver(Scripted(fault), **gaussian(POSTERIOR, wide(4), monotone=True))


def test_solver_battery_passes_the_same_solver_unbroken():
    check_solver(Scripted(""), **gaussian(POSTERIOR, wide(4), monotone=True))


def test_solver_battery_catches_chains_that_are_off():
    """Independent draws, whose error is 4 / sqrt(2,000) = .09 sds, a quarter of an sd off."""

    class Drifting(Scripted):
        def finish(self, target, q, state):
            z = np.random.default_rng(0).standard_normal((4, 500, 4))
            centre = target.gaussian.mean + 0.25 * target.gaussian.sd
            return F.Empirical(centre + z @ np.asarray(target.gaussian.root).T)

    with pytest.raises(AssertionError, match="of the mean is 0.2"):
        check_solver(Drifting(""), **gaussian(POSTERIOR, wide(4), error=four_errors))


def test_solver_battery_catches_what_is_learnt_wrongly():
    """A solver that leaves the target's unknown noise as it was."""
    problem = unknown_noise() | {"monotone": False}
    with as_a_user(), pytest.raises(AssertionError, match="coordinate . of the mean"):
        check_solver(IndicatorMeanField(), **problem)
