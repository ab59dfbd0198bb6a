"""The rung that settles hierarchical scales: Gaussians fitted at a grid of values of one coordinate."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from .._numerics import host_rng
from ..estimators.fixed_design import moment_matched, whitened_moments
from ..families.nested import NestedGaussian
from ..objectives.base import AbstractObjective
from ..results import PairingError, Result
from ..targets.base import Density, require
from ..targets.batched import batched
from .base import AbstractSolver, Info
from .lbfgs import Evaluate
from .natural import natural_step, newton_model

_FALL = 8.0  # nats below the best knot at which a side of the grid ends
_FLAT = 0.5  # nats per knot below which the next one is set farther out
_MAX_KNOTS = 48
_SETTLED = 0.03  # whitened rms move at which a conditional fit is done
_REPEATS = 4


@dataclasses.dataclass(frozen=True)
class Knot:
    """The Gaussian N(mean, root root') of the other coordinates at one value of t, and its ELBO (nats)."""

    t: float
    mean: np.ndarray
    root: np.ndarray
    elbo: float


@dataclasses.dataclass(frozen=True)
class NestedState:
    """The knots so far, and which sides of the grid are still open."""

    coordinate: int
    design: np.ndarray
    spacing: tuple[float, float]  # of the next knot on the left and on the right; grows where the profile is flat
    slope: np.ndarray  # regression of the rest on t under the Gaussian that we start from
    knots: tuple[Knot, ...]  # ascending in t
    open_left: bool
    open_right: bool
    result: Result | None = None

    @property
    def best(self) -> float:
        return max(k.elbo for k in self.knots)


class Nested(AbstractSolver):
    """From a Gaussian to a NestedGaussian: refit the rest by natural gradient at a grid of values of one coordinate.

    The coordinate is the one with the strongest third-order coupling to the scores (`third_order_coupling`), in practice
    the log scale of a hierarchical model (in one dimension q becomes the posterior on a grid). The grid walks outwards in
    steps of `step_sds` sds until the conditional ELBO, the log density of t up to a constant, has fallen by 8 nats. Costs
    some 3,000-15,000 gradients. Not for targets that the Gaussian already fits: it gains nothing there and adds grid noise.

    Arguments:
        coordinate: index of t; None chooses it.
        choice: which coordinate to choose, in order of coupling: 0 is the strongest.
        step_sds: distance of knots in sds of t.

    Source: default-fit spec, section 1.1c.
    """

    coordinate: int | None = None
    choice: int = 0
    step_sds: float = 0.7
    compiled: ClassVar[bool] = False

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        require(self, target, Density)
        if getattr(getattr(q, "scale", None), "structure", None) != "full":
            raise PairingError(
                f"Nested starts from a full-rank Gaussian, not {type(q).__name__}; fit one first: "
                "tb.fit(target, gaussian_fit.q, solver=tb.solvers.Nested())."
            )
        if objective is not None:
            raise PairingError("Nested maximises the ELBO at each knot and takes no other objective; leave `objective` out.")
        if self.coordinate is not None and not 0 <= self.coordinate < q.dim:
            raise PairingError(f"Nested: `coordinate` must lie in 0..{q.dim - 1}, got {self.coordinate}.")

    def init(self, target: Any, q: Any, objective: Any, key: Any, tol: float) -> NestedState:
        mean, root = np.array(q.mean, dtype=np.float64), np.array(q.scale.root, dtype=np.float64)
        evaluate, rng, dim = batched(target), host_rng(key, "nested"), q.dim
        j = self.coordinate
        if j is None:
            coupling = third_order_coupling(evaluate, mean, root, rng) if dim > 1 else np.zeros((1, 1))
            j = int(np.argsort(-np.sum(coupling**2, axis=1))[min(self.choice, dim - 1)])
        covariance, rest = root @ root.T, np.delete(np.arange(dim), j)
        slope = covariance[rest, j] / covariance[j, j]
        conditional = covariance[np.ix_(rest, rest)] - np.outer(slope, slope) * covariance[j, j]
        conditional += 1e-10 * np.diag(np.diag(conditional))
        design = moment_matched(rng, max(dim - 1, 32) if dim > 1 else 1, dim - 1)
        guess = Knot(float(mean[j]), mean[rest], np.linalg.cholesky(conditional), -np.inf)
        (start,) = _refit(evaluate, j, [guess], design)
        spacing = self.step_sds * float(np.sqrt(covariance[j, j]))
        result = None if np.isfinite(start.elbo) else Result.nonfinite
        return NestedState(j, design, (spacing, spacing), slope, (start,), True, True, result)

    def step(self, target: Any, q: Any, objective: Any, state: NestedState, key: Any) -> tuple[Any, Any, Any, Info]:
        """One knot further on each open side, both in the same batch."""
        evaluate = batched(target)
        before = evaluate.evaluations
        sides = [s for s, is_open in ((-1, state.open_left), (1, state.open_right)) if is_open]
        new = dict(
            zip(sides, _refit(evaluate, state.coordinate, [_predict(state, s) for s in sides], state.design), strict=True)
        )
        for side, knot in new.items():
            state = _extended(state, side, knot)
        if not (state.open_left or state.open_right):
            state = dataclasses.replace(state, result=Result.converged if len(state.knots) >= 4 else Result.nonfinite)
        elif len(state.knots) >= _MAX_KNOTS:
            state = dataclasses.replace(state, result=Result.max_steps)
        if len(state.knots) >= 4:
            q = _family(state)
        return target, q, state, Info(np.float64(-_elbo(state)), np.float64(1.0), evaluate.evaluations - before)

    def done(self, state: NestedState) -> Result | None:
        return state.result


def third_order_coupling(evaluate: Evaluate, mean: np.ndarray, root: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """T[j, k] = E_q[s_k u_j u_k] with standardised coordinates u and scores s: zero for every Gaussian target. `[d, d]`."""
    dim = len(mean)
    sd = np.sqrt(np.sum(root**2, axis=1))
    total = np.zeros((dim, dim))
    for _ in range(_REPEATS):
        moves = moment_matched(rng, max(dim, 64), dim) @ root.T
        values, scores = evaluate(np.concatenate([mean + moves, mean - moves]))
        good = np.isfinite(values) & np.all(np.isfinite(scores), axis=1)
        u, s = np.concatenate([moves, -moves])[good] / sd, scores[good] * sd
        total += u.T @ (s * u) / max(good.sum(), 1)
    return total / _REPEATS


def _extended(state: NestedState, side: int, knot: Knot) -> NestedState:
    """The state with one more knot on a side; the side is closed once it has fallen far enough, and spaced wider if flat."""
    if np.isfinite(knot.elbo):
        edge = state.knots[0 if side < 0 else -1]
        knots = (knot, *state.knots) if side < 0 else (*state.knots, knot)
        spacing = list(state.spacing)
        if abs(knot.elbo - edge.elbo) < _FLAT and knot.elbo < state.best:
            spacing[side > 0] *= 1.5
        state = dataclasses.replace(state, knots=knots, spacing=(spacing[0], spacing[1]))
    if not np.isfinite(knot.elbo) or knot.elbo < state.best - _FALL:
        state = dataclasses.replace(state, **{"open_left" if side < 0 else "open_right": False})
    return state


def _predict(state: NestedState, side: int) -> Knot:
    """The next knot outwards, its mean extrapolated from the last two (or by the Gaussian's regression)."""
    last, step = state.knots[0 if side < 0 else -1], side * state.spacing[side > 0]
    slope = state.slope
    if len(state.knots) > 1:
        inner = state.knots[1 if side < 0 else -2]
        slope = (last.mean - inner.mean) / (last.t - inner.t)
    return Knot(last.t + step, last.mean + step * slope, last.root, -np.inf)


def _elbo(state: NestedState) -> float:
    """log of the integral of exp(profile): the ELBO of the nested family, by the trapezoidal rule over its knots."""
    t, profile = np.array([k.t for k in state.knots]), np.array([k.elbo for k in state.knots])
    mass = np.trapezoid(np.exp(profile - state.best), t) if len(t) > 1 else 1.0
    return float(state.best + np.log(mass))


def _family(state: NestedState) -> NestedGaussian:
    t = np.array([k.t for k in state.knots])
    profile = np.array([k.elbo for k in state.knots])
    means, roots = np.stack([k.mean for k in state.knots]), np.stack([k.root for k in state.knots])
    return NestedGaussian.through(state.coordinate, t, profile, means, roots)


def _refit(evaluate: Evaluate, coordinate: int, guesses: list[Knot], design: np.ndarray) -> list[Knot]:
    """Natural-gradient fits of the rest at each guess's t, in lockstep: one batch of all designs per iteration."""
    knots = [dataclasses.replace(g) for g in guesses]
    rho, open_ = [1.0] * len(knots), [True] * len(knots)
    moments = _moments(evaluate, coordinate, knots, design)
    for _ in range(20):  # a start too wide for where the density is finite
        if all(m.finite for m in moments):
            break
        knots = [k if m.finite else dataclasses.replace(k, root=0.5 * k.root) for k, m in zip(knots, moments, strict=True)]
        moments = _moments(evaluate, coordinate, knots, design)
    for _ in range(16):
        models = [newton_model(m.gradient, m.curvature) if m.finite else None for m in moments]
        open_ = [o and model is not None and not _is_settled(model) for o, model in zip(open_, models, strict=True)]
        active = [i for i, o in enumerate(open_) if o]
        if not active:
            break
        trials = [_moved(knots[i], models[i], rho[i]) for i in active]
        tried = _moments(evaluate, coordinate, trials, design)
        for i, trial, new in zip(active, trials, tried, strict=True):
            if new.finite and new.elbo > moments[i].elbo:
                open_[i] = bool(new.elbo - moments[i].elbo > 1e-3)
                knots[i], moments[i], rho[i] = trial, new, min(1.0, 1.8 * rho[i])
            else:
                rho[i] *= 0.4
    return [dataclasses.replace(k, elbo=float(m.elbo)) for k, m in zip(knots, moments, strict=True)]


def _moments(evaluate: Evaluate, coordinate: int, knots: list[Knot], design: np.ndarray) -> list:
    batches = []
    for knot in knots:
        moves = design @ knot.root.T
        batches.append(np.insert(np.concatenate([knot.mean + moves, knot.mean - moves]), coordinate, knot.t, axis=1))
    values, scores = evaluate(np.concatenate(batches))
    size, out = 2 * len(design), []
    for i, knot in enumerate(knots):
        pick = slice(i * size, (i + 1) * size)
        inner = np.delete(scores[pick], coordinate, axis=1) @ knot.root
        out.append(whitened_moments(design, values[pick], inner, float(np.linalg.slogdet(knot.root)[1])))
    return out


def _moved(knot: Knot, model, rho: float) -> Knot:
    mean, root, _ = natural_step(knot.mean, knot.root, model, rho)
    return dataclasses.replace(knot, mean=mean, root=root)


def _is_settled(model) -> bool:
    if not len(model.eigenvalues):  # one dimension: nothing is left to fit at a knot
        return True
    move = np.sqrt(np.mean((model.gradient / model.stiff) ** 2))
    return bool(move < _SETTLED and np.sqrt(np.mean((model.eigenvalues - 1.0) ** 2)) < 0.05)
