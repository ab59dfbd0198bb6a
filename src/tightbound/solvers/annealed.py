"""The clutter paper's fixed-point loop: wide kernels first, then narrower ones, in closed form."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import numpy as np

from ..estimators.clutter.local_gaussians import line_sums, local_gaussians
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective
from ..results import PairingError, Result
from ..targets.base import require
from ..targets.sites import Contaminated, Kernels
from .base import AbstractSolver, Info

_PRECISION = 5e-5  # of `tol`: the loop converges linearly; 1e-6 of an sd at the default tolerance
_TRUST = (0.25, 16.0)  # factors by which a precision may change in one natural step
_LONGEST = 3.0  # sds that a mean may move in one natural step
_MOST_STEPS = 500
_ONE = np.ones((1, 1))


@dataclasses.dataclass(frozen=True)
class AnnealedState:
    """q in the coordinates where the noise is isotropic, the kernels, and the variance `width` of
    the median kernel now.
    """

    kernels: Kernels
    mean: np.ndarray
    cov: np.ndarray
    width: float
    tol: float
    steps: int = 0
    change: float = np.inf
    result: Result | None = None

    @property
    def narrowest(self) -> float:
        """vg of the median point.

        Where the annealing ends, and the largest variance that q may then have.
        """
        return self.kernels.median_scale


class Annealed(AbstractSolver):
    """The paper's loop for contaminated data: moment fixed point with kernels of variance h,
    annealed from 2 v down to vg.

    After each update h <- max(min(2 v, h / 2), vg) and v <- min(v, max(vg, h / 2)). So the variance
    of q ends at vg at most: where few points are inliers and the posterior is wider than a kernel,
    q is far too narrow. It starts from the mean and variance of the points and ignores q. A robust
    start (NaturalGradient with GaussHermite polishes it), and the reproduction of the paper; not
    the best Gaussian: overconfident by about .35 v / vg. There is no ELBO: the trace's loss is NaN.
    Not for anything but contaminated data.

    Arguments:
        rule: "paper" (one dimension, Algorithm 1), "natural" (any dimension: natural-gradient steps
            with the same moments and schedule), or None: "paper" in one dimension, "natural" in
            more.

    Source: Popov 2024 (arXiv 2404.10550), Algorithm 1; clutter spec, sections 2.2 and 2.3.
    """

    rule: str | None = eqx.field(default=None, static=True)
    compiled: ClassVar[bool] = False

    def __check_init__(self):
        if self.rule not in (None, "paper", "natural"):
            raise ValueError(
                f"Annealed: `rule` must be 'paper', 'natural' or None, got {self.rule!r}."
            )

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        require(self, target, Contaminated)
        if objective is not None:
            raise PairingError(
                "Annealed follows the paper's own fixed point and takes no objective, got"
                f" {type(objective).__name__}."
            )
        if q.covariance_structure != "full":
            raise PairingError(
                "Annealed returns a full-rank Gaussian; pass q=tb.families.Gaussian.full(dim), or"
                " no q."
            )
        if self.rule == "paper" and target.dim > 1:
            raise PairingError(
                f"Annealed: the paper's rule is for one dimension, the target has {target.dim}; use"
                " rule='natural'."
            )

    def init(self, target: Any, q: Any, objective: Any, key: Any, tol: float) -> AnnealedState:
        return first_state(target.kernels(), tol)

    def step(
        self, target: Any, q: Any, objective: Any, state: AnnealedState, key: Any
    ) -> tuple[Any, Any, Any, Info]:
        new = advanced(state, _rule_of(self.rule, target))
        return target, gaussian_of(new), new, Info(np.float64(np.nan), np.float64(new.change), 1)

    def done(self, state: AnnealedState) -> Result | None:
        return state.result


def anneal(target: Any, *, tol: float = 0.02, rule: str | None = None) -> Gaussian:
    """The end of the loop as a Gaussian, for a start: no trace, no guard."""
    state = first_state(target.kernels(), tol)
    while state.result is None:
        state = advanced(state, _rule_of(rule, target))
    return gaussian_of(state)


def first_state(kernels: Kernels, tol: float) -> AnnealedState:
    """q with the weighted mean of the points and their variance plus vg; h = max(2 v, vg)."""
    mean = np.average(kernels.points, axis=0, weights=kernels.weights)
    delta = kernels.points - mean
    cov = (delta * (kernels.weights / kernels.weights.sum())[:, None]).T @ delta
    narrowest = float(np.median(kernels.scales))
    cov = cov + narrowest * np.eye(len(mean))
    width = max(2.0 * float(np.linalg.eigvalsh(cov)[-1]), narrowest)
    return AnnealedState(kernels, mean, cov, width, tol)


def advanced(state: AnnealedState, rule: Any) -> AnnealedState:
    """One update of q by the rule, then of the kernel width, then the cap on q's variances."""
    mean, cov = rule(state)
    narrowest = state.narrowest
    sizes, vectors = (cov[0], _ONE) if len(mean) == 1 else np.linalg.eigh(cov)
    width = max(min(2.0 * float(sizes[-1]), state.width / 2.0), narrowest)
    capped = np.minimum(sizes, max(narrowest, width / 2.0))
    cov = (vectors * capped) @ vectors.T
    whitener = (vectors / np.sqrt(capped)).T
    moved = float(np.sqrt(np.mean((whitener @ (mean - state.mean)) ** 2)))
    turned = whitener @ state.cov @ whitener.T
    turn = turned[0] if len(mean) == 1 else np.linalg.eigvalsh(turned)
    change = max(moved, float(np.abs(np.log(np.maximum(turn, 1e-300))).max()))
    result = None
    if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(cov))):
        return dataclasses.replace(state, steps=state.steps + 1, result=Result.nonfinite)
    if change < _PRECISION * state.tol and width == state.width:
        result = Result.converged
    elif state.steps + 1 >= _MOST_STEPS:
        result = Result.max_steps
    return dataclasses.replace(
        state, mean=mean, cov=cov, width=width, steps=state.steps + 1, change=change, result=result
    )


def paper_update(state: AnnealedState) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1, one dimension.

    B, C, D at the old (mean, v), then the mean, then the variance with the new mean.
    """
    k, v, mean = state.kernels, float(state.cov[0, 0]), float(state.mean[0])
    sums = line_sums(k, mean, v, state.width / state.narrowest)
    precision = float(k.prior_precision[0, 0])
    move = (sums.bd + precision * (float(k.prior_mean[0]) - mean)) / (sums.b + precision)
    spread = sums.e2 - 2 * move * sums.e1 + move**2 * sums.e0
    return np.array([mean + move]), np.array(
        [[(max(spread, 0.0) * v + 1.0) / (sums.c + precision)]]
    )


def natural_update(state: AnnealedState) -> tuple[np.ndarray, np.ndarray]:
    """S^-1 <- S0^-1 + H, mean <- mean + S_new gradient, each within its trust region."""
    k, widening = state.kernels, state.width / state.narrowest
    if k.dim == 1:
        sums = line_sums(k, float(state.mean[0]), float(state.cov[0, 0]), widening)
        slope, bend = np.array([sums.bd]), np.array([[sums.c - sums.e2]])
    else:
        sites = local_gaussians(k, state.mean, state.cov, widening)
        slope, bend = sites.gradient, sites.curvature
    gradient = slope + k.prior_precision @ (k.prior_mean - state.mean)
    root = np.linalg.cholesky(state.cov)
    factors, vectors = np.linalg.eigh(root.T @ (bend + k.prior_precision) @ root)
    new_root = root @ (vectors / np.sqrt(np.clip(factors, *_TRUST)))
    step = new_root.T @ gradient
    step = step * min(1.0, _LONGEST / (float(np.linalg.norm(step)) + 1e-300))
    return state.mean + new_root @ step, new_root @ new_root.T


_RULES = {"paper": paper_update, "natural": natural_update}


def _rule_of(rule: str | None, target: Any) -> Any:
    return _RULES[rule or ("paper" if target.dim == 1 else "natural")]


def gaussian_of(state: AnnealedState) -> Gaussian:
    """q in the coordinates of the target."""
    root = state.kernels.root
    return Gaussian.from_root(root @ state.mean, root @ np.linalg.cholesky(state.cov))


__all__ = ["Annealed", "AnnealedState", "anneal"]
