"""Variational EM for contaminated data whose share of background and variances are unknown."""

import dataclasses
from typing import ClassVar

import equinox as eqx
import numpy as np
import scipy.special as sp
from jaxtyping import Float

from .._numerics import host_rng
from .._types import Key
from ..estimators.fixed_design import moment_matched
from ..estimators.gauss_hermite import tensor_rule
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective
from ..results import PairingError, Result
from ..search.natural_rule import natural_step, newton_model
from ..starts.annealed import anneal
from ..targets.base import AbstractTarget, require
from ..targets.sites import Kernels, LearnableNoise
from .base import AbstractSolver, Info, check_full_rank, check_no_objective

_NODES = {1: 31, 2: 15}  # per axis, by dimension; in more dimensions a tensor rule is too large
_PAIRS = 128  # of draws there, and at least as many as dimensions
_LEAST_RATE = 0.1  # of the natural step: the M-step moves the ELBO too, so the loss may rise
_MOST_GROWTH = 4.0  # of a variance in one M-step, either way: with q far off it would overshoot
_PRECISION = 0.01  # of `tol`: relative change of a variance and of w, for EM converges linearly


@dataclasses.dataclass(frozen=True)
class LearnState:
    """q in the target's coordinates, the standardised nodes, and where the last step came from.

    Attributes:
        mean: of q.
        root: a square root of q's covariance.
        nodes: at which expectations under q are taken, in whitened coordinates.
        weights: of the nodes.
        tol: accuracy asked for, in posterior sds.
        rho: size of the natural-gradient step.
        loss: at the last step, nats.
        steps: so far.
        result: how the run has ended.
    """

    mean: Float[np.ndarray, "dim"]
    root: Float[np.ndarray, "dim dim"]
    nodes: Float[np.ndarray, "nodes dim"]
    weights: Float[np.ndarray, "nodes"]
    tol: float
    rho: float = 1.0
    loss: float = np.inf
    steps: int = 0
    result: Result | None = None


class LearnClutter(AbstractSolver):
    """q(theta) and point estimates of w, vg and vc together.

    Each step is one M-step and one natural-gradient step. With r_i(theta) the responsibility of the
    inlier: w = mean of 1 - E_q r_i, vg = sum E_q[r_i |x_i - theta|^2] / (D sum E_q r_i), vc = sum
    (1 - E_q r_i) |x_i|^2 / (D sum (1 - E_q r_i)), each with the prior's counts added; a vg or vc of
    several points or directions is rescaled as a whole. Maximises the ELBO plus the log priors;
    `fit.target` holds what was learnt (`.w`, `.vg`, `.vc`), `fit.q` is the posterior given it. With
    few points vg comes out too small: 17 % at n = 50 without a prior, so n = 20 wants one. Not
    where the uncertainty of w, vg and vc matters: give them priors in `tb.from_log_density`. Starts
    from the target's own w, vg and vc: try several where the background is hard to tell from the
    noise.

    Arguments:
        learn: which of "w", "vg", "vc".
        w: (a, b) of a Beta prior of the share of background.
        vg: (shape, scale) of an inverse-gamma prior of the noise variance, or None for none.
        vc: the same for the background variance.
        max_steps: steps after which the run ends with `max_steps`.

    Source: Dempster, Laird & Rubin 1977, for the likelihood of Minka 2001, section 3.2.1; Neal &
    Hinton 1998 (the bound that both steps climb).
    """

    learn: tuple[str, ...] = eqx.field(default=("w", "vg", "vc"), static=True)
    w: tuple[float, float] = eqx.field(default=(1.0, 1.0), static=True)
    vg: tuple[float, float] | None = eqx.field(default=None, static=True)
    vc: tuple[float, float] | None = eqx.field(default=None, static=True)
    max_steps: int = eqx.field(default=1000, static=True)
    compiled: ClassVar[bool] = False

    def __check_init__(self):
        if not self.learn or not set(self.learn) <= {"w", "vg", "vc"}:
            raise ValueError(
                f"LearnClutter: `learn` must name some of 'w', 'vg', 'vc', got {self.learn!r}."
            )
        if not all(x >= 1.0 for x in self.w):
            raise ValueError(
                "LearnClutter: `w` must be (a, b) of a Beta prior, both at least 1, got"
                f" {self.w!r}."
            )
        for name, prior in (("vg", self.vg), ("vc", self.vc)):
            if prior is not None and not all(x > 0 for x in prior):
                raise ValueError(
                    f"LearnClutter: `{name}` must be a positive (shape, scale) or None, got"
                    f" {prior!r}."
                )

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        data = require(self, target, LearnableNoise)
        check_no_objective(self, objective, "climbs the ELBO")
        check_full_rank(self, q)
        if "vc" in self.learn and data.clutter_root is None:
            raise PairingError(
                "LearnClutter cannot learn `vc`: the background was given by `log_clutter`; leave"
                " 'vc' out of `learn`."
            )

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> LearnState:
        dim, start = require(self, target, LearnableNoise).dim, anneal(target)
        if dim in _NODES:
            rule = tensor_rule(_NODES[dim], dim)
            nodes, weights = np.asarray(rule.nodes), np.asarray(rule.weights)
        else:
            half = moment_matched(host_rng(key, "learn clutter"), max(_PAIRS, dim), dim)
            nodes, weights = np.concatenate([half, -half]), np.full(2 * len(half), 0.5 / len(half))
        return LearnState(np.asarray(start.mean), np.asarray(start.root), nodes, weights, tol)

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: LearnState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, LearnState, Info]:
        data = require(self, target, LearnableNoise)
        k = data.kernels()
        found = _expected(data, k, state)
        loss = -(found.elbo + self._log_prior(data))
        rho = (
            max(_LEAST_RATE, 0.5 * state.rho)
            if loss > state.loss + 1e-9 * abs(loss)
            else min(1.0, 1.5 * state.rho)
        )
        model = newton_model(found.gradient, found.curvature)
        mean, root = map(np.asarray, natural_step(state.mean, state.root, model, rho)[:2])
        new_target, moved = self._maximised(data, k, found)
        change = max(
            moved, float(np.sqrt(np.mean(np.linalg.solve(state.root, mean - state.mean) ** 2)))
        )
        result = Result.converged if change < _PRECISION * state.tol else None
        if result is None and state.steps + 1 >= self.max_steps:
            result = Result.max_steps
        new = dataclasses.replace(
            state, mean=mean, root=root, rho=rho, loss=loss, steps=state.steps + 1, result=result
        )  # fmt: skip
        return (
            new_target,
            Gaussian.from_root(mean, root),
            new,
            Info(np.float64(loss), np.float64(change), len(state.nodes)),
        )

    def done(self, state: LearnState) -> Result | None:
        return state.result

    def _maximised(
        self, target: LearnableNoise, k: Kernels, found: "_Expected"
    ) -> tuple[LearnableNoise, float]:
        """The target with the M-step's w, vg and vc, and the largest relative change."""
        inlier, outlier = float(k.weights @ found.inlier), float(k.weights @ (1.0 - found.inlier))
        w, noise, background = None, 1.0, 1.0
        if "w" in self.learn:
            a, b = self.w
            w = float(
                np.clip((outlier + a - 1.0) / (inlier + outlier + a + b - 2.0), 1e-12, 1.0 - 1e-12)
            )
        if "vg" in self.learn:
            noise = _scale(float(k.weights @ found.squares), k.dim * inlier, self.vg, target.vg)
        if "vc" in self.learn:
            squares = target.background_squares()
            background = _scale(
                float((k.weights * (1.0 - found.inlier)) @ squares),
                k.dim * outlier,
                self.vc,
                target.vc,
            )
        moved = max(
            abs(np.log(noise)),
            abs(np.log(background)),
            0.0 if w is None else float(np.max(np.abs(w - target.w))),
        )
        return target.with_noise(w, noise, background), float(moved)

    def _log_prior(self, target: LearnableNoise) -> float:
        """Log prior densities of what is learnt, up to constants."""
        total = 0.0
        if "w" in self.learn:
            total += (self.w[0] - 1) * np.log(target.w[0]) + (self.w[1] - 1) * np.log1p(
                -target.w[0]
            )
        for name, prior, value in (("vg", self.vg, target.vg), ("vc", self.vc, target.vc)):
            if name in self.learn and prior is not None:
                total -= (prior[0] + 1) * np.log(value) + prior[1] / value
        return float(total)


@dataclasses.dataclass(frozen=True)
class _Expected:
    """Expectations under q.

    Attributes:
        elbo: nats, without the priors of what is learnt.
        gradient: of the log density, in whitened coordinates.
        curvature: minus its Hessian, in whitened coordinates.
        inlier: E r_i.
        squares: E r_i |y_i - t|^2 / s_i.
    """

    elbo: float
    gradient: Float[np.ndarray, "dim"]
    curvature: Float[np.ndarray, "dim dim"]
    inlier: Float[np.ndarray, "rows"]
    squares: Float[np.ndarray, "rows"]


def _expected(target: LearnableNoise, k: Kernels, state: LearnState) -> _Expected:
    """The expectations, as sums over the nodes."""
    z = state.mean + state.nodes @ state.root.T
    t = np.linalg.solve(k.root, z.T).T
    # One coordinate after the other: `[nodes, n, D]` at once would not stay in the cache.
    squares = np.zeros((len(t), len(k.points)))
    for j in range(k.dim):
        squares += (t[:, j, None] - k.points[:, j]) ** 2
    squares /= k.scales
    r = sp.expit(k.own_logits - 0.5 * squares)
    share = r * (k.weights / k.scales)
    score = (
        share @ k.points - share.sum(axis=1)[:, None] * t - (t - k.prior_mean) @ k.prior_precision
    )
    white = np.linalg.solve(k.root, state.root).T @ score.T  # [d, nodes]
    # Stein's identity, E[hess log p] = E[score noise'], symmetric only in expectation
    half = white @ (state.weights[:, None] * state.nodes)
    entropy = float(np.linalg.slogdet(state.root)[1]) + 0.5 * k.dim * (1.0 + np.log(2 * np.pi))
    return _Expected(
        elbo=float(state.weights @ target.log_density_on_host(z)) + entropy,
        gradient=white @ state.weights,
        curvature=-0.5 * (half + half.T),
        inlier=state.weights @ r,
        squares=state.weights @ (r * squares),
    )


def _scale(squares: float, count: float, prior: tuple[float, float] | None, now: float) -> float:
    """The factor of a variance: (squares + 2 scale / now) / (count + 2 (shape + 1)).

    Kept within 4 either way.
    """
    shape, scale = (-1.0, 0.0) if prior is None else prior
    return float(
        np.clip(
            (squares + 2.0 * scale / now) / max(count + 2.0 * (shape + 1.0), 1e-12),
            1.0 / _MOST_GROWTH,
            _MOST_GROWTH,
        )
    )


__all__ = ["LearnClutter", "LearnState"]
