"""The clutter paper's fixed-point loop: wide kernels first, then narrower ones, in closed form.

`starts/annealed_batch.py` runs the same rule as compiled code, for many data sets at once.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float

from .._types import Scalar
from ..estimators.clutter.local_gaussians import line_sums, local_gaussians
from ..families.gaussian import Gaussian
from ..results import Result
from ..targets.base import AbstractTarget, require
from ..targets.sites import Contaminated, Kernels

_PRECISION = 5e-5  # of `tol`: the loop converges linearly; 1e-6 of an sd at the default tolerance
_TRUST = (0.25, 16.0)  # factors by which a precision may change in one natural step
_LONGEST = 3.0  # sds that a mean may move in one natural step
_MOST_STEPS = 500  # some forty are usual
_ONE = np.ones((1, 1))  # the eigenvectors of a 1 x 1 matrix, which LAPACK takes long to find


@dataclasses.dataclass(frozen=True)
class AnnealedState:
    """q in the coordinates where the noise is isotropic, and how far the annealing is.

    Attributes:
        kernels: of the points.
        mean: of q.
        cov: of q.
        width: variance of the median kernel now.
        tol: accuracy asked for, in posterior sds.
        steps: so far.
        change: size of the last move of q, in its sds.
        result: how the loop has ended.
    """

    kernels: Kernels
    mean: Float[np.ndarray, "dim"]
    cov: Float[np.ndarray, "dim dim"]
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


MeanAndCovariance: TypeAlias = tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]
Rule: TypeAlias = Callable[[AnnealedState], MeanAndCovariance]
"""An update of q: the mean and the covariance after it, before the cap on the variances."""


@runtime_checkable
class PointSums(Protocol):
    """The sums over the points that an update in one dimension needs; `LineSums` defines them."""

    @property
    def b(self) -> Scalar: ...

    @property
    def bd(self) -> Scalar: ...

    @property
    def c(self) -> Scalar: ...

    @property
    def e0(self) -> Scalar: ...

    @property
    def e1(self) -> Scalar: ...

    @property
    def e2(self) -> Scalar: ...


def anneal(target: AbstractTarget, *, tol: float = 0.02, rule: str | None = None) -> Gaussian:
    """The end of the loop as a Gaussian, for a start: no trace, no guard.

    Arguments:
        target: contaminated data.
        tol: accuracy asked for, in posterior sds.
        rule: "paper", "natural", or None for the one that fits the dimension.

    Raises:
        PairingError: the target is no contaminated data.
    """
    data = require("anneal", target, Contaminated)
    state, update = first_state(data.kernels(), tol), rule_named(rule, data.dim)
    while state.result is None:
        state = advanced(state, update)
    return gaussian_of(state)


def first_state(kernels: Kernels, tol: float) -> AnnealedState:
    """q with the weighted mean of the points and their variance plus vg; h = max(2 v, vg)."""
    mean = np.average(kernels.points, axis=0, weights=kernels.weights)
    delta = kernels.points - mean
    cov = (delta * (kernels.weights / kernels.weights.sum())[:, None]).T @ delta
    narrowest = float(np.median(kernels.scales))
    cov = cov + narrowest * np.eye(len(mean))
    width = first_width(float(np.linalg.eigvalsh(cov)[-1]), narrowest, np)
    return AnnealedState(kernels, mean, cov, float(width), tol)


def advanced(state: AnnealedState, rule: Rule) -> AnnealedState:
    """One update of q by the rule, then of the kernel width, then the cap on q's variances."""
    mean, cov = rule(state)
    narrowest = state.narrowest
    sizes, vectors = (cov[0], _ONE) if len(mean) == 1 else np.linalg.eigh(cov)
    width = float(next_width(sizes[-1], state.width, narrowest, np))
    capped = np.minimum(sizes, largest_variance(width, narrowest, np))
    cov = (vectors * capped) @ vectors.T
    # The change is measured in the new q's sds: a mean that moves far in a direction in which q is
    # wide has hardly moved, and a variance counts by the log of its ratio.
    whitener = (vectors / np.sqrt(capped)).T
    moved = float(np.sqrt(np.mean((whitener @ (mean - state.mean)) ** 2)))
    turned = whitener @ state.cov @ whitener.T
    turn = turned[0] if len(mean) == 1 else np.linalg.eigvalsh(turned)
    change = max(moved, float(np.abs(np.log(np.maximum(turn, 1e-300))).max()))
    result = None
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        # The last finite q stays
        return dataclasses.replace(state, steps=state.steps + 1, result=Result.nonfinite)
    # A small move while the kernels still narrow says nothing about where the loop ends.
    if change < _PRECISION * state.tol and width == state.width:
        result = Result.converged
    elif state.steps + 1 >= _MOST_STEPS:
        result = Result.max_steps
    return dataclasses.replace(
        state, mean=mean, cov=cov, width=width, steps=state.steps + 1, change=change, result=result
    )


def paper_update(state: AnnealedState) -> MeanAndCovariance:
    """Algorithm 1, one dimension: `paper_step` at the sums of these points."""
    k, v, mean = state.kernels, float(state.cov[0, 0]), float(state.mean[0])
    sums = line_sums(k, mean, v, state.width / state.narrowest)
    precision, pull = float(k.prior_precision[0, 0]), float(k.prior_mean[0]) - mean
    move, new_v = paper_step(sums, v, precision, pull, np)
    return np.array([mean + move]), np.array([[new_v]])


def natural_update(state: AnnealedState) -> MeanAndCovariance:
    """S^-1 <- S0^-1 + H, mean <- mean + S_new gradient, each within its trust region."""
    k, widening = state.kernels, state.width / state.narrowest
    if k.dim == 1:
        sums = line_sums(k, float(state.mean[0]), float(state.cov[0, 0]), widening)
        slope, bend = np.array([sums.bd]), np.array([[sums.c - sums.e2]])
    else:
        sites = local_gaussians(k, state.mean, state.cov, widening)
        slope, bend = sites.gradient, sites.curvature
    gradient = slope + k.prior_precision @ (k.prior_mean - state.mean)
    # The precision is changed in coordinates in which q is N(0, I), where a trust region is a clip
    # of eigenvalues; H need not be positive, and the clip makes it so.
    root = np.linalg.cholesky(state.cov)
    factors, vectors = np.linalg.eigh(root.T @ (bend + k.prior_precision) @ root)
    new_root = root @ (vectors / np.sqrt(np.clip(factors, *_TRUST)))
    step = new_root.T @ gradient
    step = step * min(1.0, _LONGEST / (float(np.linalg.norm(step)) + 1e-300))
    return state.mean + new_root @ step, new_root @ new_root.T


_RULES: dict[str, Rule] = {"paper": paper_update, "natural": natural_update}


def rule_named(name: str | None, dim: int) -> Rule:
    """The update of this name; None is the paper's in one dimension, the natural one in more."""
    return _RULES[name or ("paper" if dim == 1 else "natural")]


def gaussian_of(state: AnnealedState) -> Gaussian:
    """q in the coordinates of the target."""
    root = state.kernels.root
    return Gaussian.from_root(root @ state.mean, root @ np.linalg.cholesky(state.cov))


# The rule itself, for numbers on the host (`xp` is numpy) and for lanes under jit (jax.numpy).


def paper_step(
    sums: PointSums, v: Scalar, precision: Scalar, pull: Scalar, xp: ModuleType
) -> tuple[Scalar, Scalar]:
    """How far the mean moves, and the new variance: Algorithm 1 in one dimension.

    The mean moves by (sum B d + P0 (m0 - mean)) / (sum B + P0); the variance is that of the points
    around the new mean, v' = (v sum D (d - move)^2 / (h + v) + 1) / (sum C + P0).

    Arguments:
        sums: over the points, at the old mean and variance.
        v: the old variance.
        precision: P0 of the prior.
        pull: m0 - mean.
        xp: numpy or jax.numpy.
    """
    move = (sums.bd + precision * pull) / (sums.b + precision)
    # A sum of squares, but expanded: rounding may leave it below zero
    spread = sums.e2 - 2 * move * sums.e1 + move**2 * sums.e0
    return move, (xp.maximum(spread, 0.0) * v + 1.0) / (sums.c + precision)


def first_width(largest: Scalar, narrowest: Scalar, xp: ModuleType) -> Scalar:
    """The kernel variance to begin with: twice the largest variance of q, vg at least."""
    return xp.maximum(2.0 * largest, narrowest)


def next_width(largest: Scalar, width: Scalar, narrowest: Scalar, xp: ModuleType) -> Scalar:
    """h <- max(min(2 v, h / 2), vg): at least halved, until it is vg."""
    return xp.maximum(xp.minimum(2.0 * largest, width / 2.0), narrowest)


def largest_variance(width: Scalar, narrowest: Scalar, xp: ModuleType) -> Scalar:
    """The cap max(vg, h / 2) on the variances of q, with the new h."""
    return xp.maximum(narrowest, width / 2.0)


__all__ = [
    "AnnealedState",
    "PointSums",
    "Rule",
    "advanced",
    "anneal",
    "first_state",
    "first_width",
    "gaussian_of",
    "largest_variance",
    "natural_update",
    "next_width",
    "paper_step",
    "paper_update",
    "rule_named",
]
