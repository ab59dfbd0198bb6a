"""Gaussians fitted to some coordinates while others are held: the knots of the nested families."""

import dataclasses
from typing import Any

import numpy as np

from ..estimators.fixed_design import whitened_moments
from ..results import PairingError
from ..solvers.natural import natural_step, newton_model
from ..targets.base import Density, require
from .lbfgs import Evaluate

_SETTLED = 0.03  # whitened rms move at which a conditional fit is done


@dataclasses.dataclass(frozen=True)
class Knot:
    """The Gaussian N(mean, root root') of the rest where the coordinates held have the value(s) t,
    and its ELBO (nats).
    """

    t: Any
    mean: np.ndarray
    root: np.ndarray
    elbo: float


def check_start(solver: Any, target: Any, q: Any, objective: Any) -> None:
    """Refuse what solvers that refit a Gaussian at knots cannot start from.

    Raises:
        PairingError: q is no full-rank Gaussian, or an objective is given.
    """
    require(solver, target, Density)
    name = type(solver).__name__
    if q.covariance_structure != "full":
        raise PairingError(
            f"{name} starts from a full-rank Gaussian, not {type(q).__name__}; fit one first: "
            f"tb.fit(target, gaussian_fit.q, solver=tb.solvers.{name}())."
        )
    if objective is not None:
        raise PairingError(
            f"{name} maximises the ELBO at each knot and takes no other objective; leave"
            " `objective` out."
        )


def regression(root: np.ndarray, coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Under N(0, root root').

    Slopes `[rest, held]` of the rest on those held, and a root of its covariance given them.
    """
    covariance, rest = root @ root.T, np.delete(np.arange(len(root)), coordinates)
    held = covariance[np.ix_(coordinates, coordinates)]
    slope = np.linalg.solve(held, covariance[np.ix_(coordinates, rest)]).T
    conditional = covariance[np.ix_(rest, rest)] - slope @ held @ slope.T
    return slope, np.linalg.cholesky(conditional + 1e-10 * np.diag(np.diag(conditional)))


def refit(
    evaluate: Evaluate, coordinates: Any, guesses: list[Knot], design: np.ndarray
) -> list[Knot]:
    """Natural-gradient fits of the rest, `coordinates` held at each guess's t.

    One batch of all designs per iteration.
    """
    if not guesses:
        return []
    if not design.shape[1]:  # nothing is left to fit
        values, _ = evaluate(
            np.array([np.atleast_1d(g.t) for g in guesses])[
                :, np.argsort(np.atleast_1d(coordinates))
            ]
        )
        return [
            dataclasses.replace(g, elbo=float(v) if np.isfinite(v) else -np.inf)
            for g, v in zip(guesses, values, strict=True)
        ]
    knots = [dataclasses.replace(g) for g in guesses]
    rho, open_ = [1.0] * len(knots), [True] * len(knots)
    moments = _moments(evaluate, coordinates, knots, design)
    for _ in range(20):  # a start too wide for where the density is finite
        if all(m.finite for m in moments):
            break
        knots = [
            k if m.finite else dataclasses.replace(k, root=0.5 * k.root)
            for k, m in zip(knots, moments, strict=True)
        ]
        moments = _moments(evaluate, coordinates, knots, design)
    for _ in range(16):
        models = [newton_model(m.gradient, m.curvature) if m.finite else None for m in moments]
        open_ = [
            o and model is not None and not _is_settled(model)
            for o, model in zip(open_, models, strict=True)
        ]
        active = [i for i, o in enumerate(open_) if o]
        if not active:
            break
        trials = [_moved(knots[i], models[i], rho[i]) for i in active]
        tried = _moments(evaluate, coordinates, trials, design)
        for i, trial, new in zip(active, trials, tried, strict=True):
            if new.finite and new.elbo > moments[i].elbo:
                open_[i] = bool(new.elbo - moments[i].elbo > 1e-3)
                knots[i], moments[i], rho[i] = trial, new, min(1.0, 1.8 * rho[i])
            else:
                rho[i] *= 0.4
    return [dataclasses.replace(k, elbo=float(m.elbo)) for k, m in zip(knots, moments, strict=True)]


def _moments(evaluate: Evaluate, coordinates: Any, knots: list[Knot], design: np.ndarray) -> list:
    """Whitened moments of the target at each knot, over the design `[m, rest]`."""
    size, rest = (
        2 * len(design),
        np.delete(np.arange(design.shape[1] + np.size(coordinates)), coordinates),
    )
    points = np.empty((len(knots) * size, len(rest) + np.size(coordinates)))
    for i, knot in enumerate(knots):
        moves, part = design @ knot.root.T, points[i * size : (i + 1) * size]
        part[:, rest] = np.concatenate([knot.mean + moves, knot.mean - moves])
        part[:, coordinates] = knot.t
    values, scores = evaluate(points)
    out = []
    for i, knot in enumerate(knots):
        pick = slice(i * size, (i + 1) * size)
        inner = scores[pick][:, rest] @ knot.root
        out.append(
            whitened_moments(design, values[pick], inner, float(np.linalg.slogdet(knot.root)[1]))
        )
    return out


def _moved(knot: Knot, model, rho: float) -> Knot:
    mean, root, _ = natural_step(knot.mean, knot.root, model, rho)
    return dataclasses.replace(knot, mean=mean, root=root)


def _is_settled(model) -> bool:
    move = np.sqrt(np.mean((model.gradient / model.stiff) ** 2))
    return bool(move < _SETTLED and np.sqrt(np.mean((model.eigenvalues - 1.0) ** 2)) < 0.05)
