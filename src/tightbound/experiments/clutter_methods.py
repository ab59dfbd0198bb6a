"""What the clutter experiments share: data, methods, and the best Gaussian as the referee.

GAA is the analytic approximation of the ELBO's gradient of Popov 2024, "Analytical approximation of
the ELBO gradient in the context of the clutter problem" (arXiv 2404.10550).
"""

import time
from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import scipy.optimize as so
from jaxtyping import Float

from ..account import Budget
from ..estimators.clutter.local_quadratic import LocalQuadratic
from ..estimators.clutter.projected_logit import ProjectedLogit
from ..estimators.clutter.sum_of_exponentials import SumOfExponentials
from ..estimators.gauss_hermite import GaussHermite
from ..families.gaussian import Gaussian
from ..loop import Run
from ..loop import run as run_loop
from ..objectives.classic import ELBO
from ..plan.rungs.contaminated import contaminated
from ..solvers.annealed import Annealed
from ..solvers.base import AbstractSolver
from ..solvers.ep import EP
from ..solvers.indicators import IndicatorMeanField
from ..solvers.laplace import Laplace
from ..solvers.natural import NaturalGradient
from ..starts.annealed import anneal
from ..targets.clutter import Clutter


class Ended(NamedTuple):
    """Where a method ended, whether by itself, and what it took."""

    q: Gaussian
    ok: bool
    steps: int
    seconds: float


def search(
    target: Clutter,
    solver: AbstractSolver,
    q: Gaussian,
    tol: float = 0.02,
    steps: int | None = None,
) -> Run:
    """The one loop, without ladder and certificate."""
    return run_loop(
        target,
        q,
        solver.default_objective(),
        solver,
        key=0,
        tol=tol,
        budget=Budget(),
        max_steps=steps,
    )


def gaussian_of(run: Run) -> Gaussian:
    """Its q: every search here starts from a Gaussian, and no solver leaves its family."""
    return cast(Gaussian, run.q)


def default_rung(target: Clutter) -> Run:
    """The first rung of `tb.fit(target)`.

    Annealed, started from the modes as well where q is wide, and polished.
    """
    chosen = contaminated(target, 0, None)
    return run_loop(
        target, chosen.q, ELBO(), chosen.solver, key=0, tol=0.02, budget=Budget(), max_steps=None
    )


def _full(target: Clutter) -> Gaussian:
    return Gaussian.full(target.dim)


METHODS: dict[str, Callable[[Clutter], Run]] = {
    "default": default_rung,
    "EP": lambda target: search(target, EP(damping=0.5), _full(target)),
    "GAA": lambda target: search(target, Annealed(), _full(target)),
    "GAA + cubic": lambda target: search(
        target, NaturalGradient(LocalQuadratic(cubic=True)), anneal(target)
    ),
    "SOE12": lambda target: search(target, NaturalGradient(SumOfExponentials(12)), anneal(target)),
    "projected": lambda target: search(target, NaturalGradient(ProjectedLogit()), anneal(target)),
    "Laplace": lambda target: search(target, Laplace(), anneal(target), 1e-2),
    "MF": lambda target: search(target, IndicatorMeanField(), _full(target)),
    "GH15": lambda target: search(target, NaturalGradient(GaussHermite(15)), anneal(target)),
}
"""Name -> a search of the best Gaussian, in the sense of each."""


def timed(name: str, target: Clutter) -> Ended:
    """One method on one target."""
    began = time.perf_counter()
    ran = METHODS[name](target)
    return Ended(gaussian_of(ran), ran.result.ok, ran.steps, time.perf_counter() - began)


def best_gaussian(target: Clutter) -> Gaussian:
    """VB-opt: the Gaussian of the largest ELBO in one dimension, to some nine digits.

    From the exact mean and every mode by L-BFGS, then Nelder-Mead, on 341 trapezoid nodes: it
    shares nothing with the library's own quadratures and solvers, which it judges.
    """
    exact = target.exact()
    nodes = np.linspace(-8.5, 8.5, 341)
    weights = np.exp(-0.5 * nodes**2)
    weights /= weights.sum()

    def loss(p: Float[np.ndarray, "2"] | tuple[float, float]) -> float:
        """Minus the ELBO of mean p[0] and log sd p[1], up to a constant."""
        z = (p[0] + np.exp(p[1]) * nodes)[:, None]
        return float(-(weights @ target.log_density_on_host(z)) - p[1])

    widest = 0.5 * np.log(exact.cov[0, 0])
    starts = [
        (exact.mean[0], widest),
        (anneal(target).mean[0], 0.5 * np.log(anneal(target).cov[0, 0])),
    ]
    # Narrow starts at the modes: a wide one spreads over several and does not end in any.
    starts += [(mode[0], min(widest, -0.6)) for mode in exact.modes[:4]]
    ends = [
        so.minimize(loss, start, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9}).x
        for start in starts
    ]
    best = min(ends, key=loss)
    # L-BFGS has finite differences for a gradient, and so half of the digits.
    simplex = best + 1e-4 * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    polish = {"xatol": 1e-10, "fatol": 1e-15, "initial_simplex": simplex}
    mean, log_sd = so.minimize(loss, best, method="Nelder-Mead", options=polish).x
    return Gaussian.from_root(np.array([mean]), np.array([[np.exp(log_sd)]]))


def draw(
    rng: np.random.Generator, n: int, *, w: float = 0.5, theta: float = 2.0
) -> Float[np.ndarray, "n"]:
    """The paper's test setting: half of the points from N(2, 1), half from N(0, 10)."""
    inlier = rng.random(n) < 1.0 - w
    return np.where(inlier, theta + rng.standard_normal(n), np.sqrt(10.0) * rng.standard_normal(n))


def draw_vectors(rng: np.random.Generator, n: int, dim: int) -> Float[np.ndarray, "n dim"]:
    """The same in several dimensions: inliers around (2, 0, ..., 0)."""
    inlier, truth = rng.random(n) < 0.5, np.r_[2.0, np.zeros(dim - 1)]
    return np.where(
        inlier[:, None],
        truth + rng.standard_normal((n, dim)),
        np.sqrt(10.0) * rng.standard_normal((n, dim)),
    )


__all__ = [
    "METHODS",
    "Ended",
    "best_gaussian",
    "default_rung",
    "draw",
    "draw_vectors",
    "gaussian_of",
    "search",
    "timed",
]
