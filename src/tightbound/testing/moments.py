"""The battery of estimators that give whitened moments and no loss."""

import numpy as np
from jaxtyping import Float

from .._numerics import host_algebra, scoped
from .._types import Key
from ..estimators.base import AbstractMomentEstimator, Moments
from ..estimators.gauss_hermite import tensor_rule
from ..families.gaussian import Gaussian
from ..objectives.classic import ELBO
from ..results import PairingError
from ..targets.base import Density
from ..targets.batched import batched
from .comparisons import close, refuses

_NODES = 81  # per axis of the rule that is the truth: to 1e-10 for kernels as wide as q, or wider
# Of the difference quotients of an estimator's own value: its cube root of the rounding error
_STEP = 1e-5
_STEP_ERROR = 1e-7


@scoped
def check_moments(
    estimator: AbstractMomentEstimator,
    target: Density,
    q: Gaussian,
    key: Key,
    *,
    tolerance: float,
    climbs: bool,
) -> None:
    """Value, gradient and curvature of E_q[log p] against quadrature, and against one another.

    The truth needs values of the log density alone: with z = mean + root u, Stein's identities give
    E[log p u] for the whitened gradient and E[log p (u u' - I)] for the curvature.

    Arguments:
        estimator: to be tested.
        target: in one or two dimensions.
        q: a full-rank Gaussian, as narrow against the target as the estimator's error asks for.
        key: of the design.
        tolerance: of value, gradient and curvature, in nats: whitened moments have that unit. The
            estimator's own bound on the error of its value is added.
        climbs: whether gradient and curvature must be the derivatives of its own value, so that a
            search can climb it.
    """
    name = type(estimator).__name__
    if not estimator.unbiased_for:
        refuses(
            lambda: estimator.check(target, q, ELBO()),
            PairingError,
            f"{name} is unbiased for no objective, but `check` lets one pass.",
        )
    design = estimator.prepare(target, q, key)
    with host_algebra():
        found = estimator.moments(target, np.asarray(q.mean), np.asarray(q.root), design)
        elbo, gradient, curvature = _truth(target, q)
        if climbs:
            _check_derivatives(estimator, target, q, design, found, name)
    assert bool(found.finite), f"{name}: the moments are not finite."
    assert climbs <= bool(np.isfinite(found.elbo)), f"{name}: there is no value to climb."
    if np.isfinite(found.elbo):
        off = abs(float(found.elbo) - elbo)
        # NaN where the estimator has no bound on the error of its value
        allowed = tolerance + float(np.nan_to_num(found.elbo_stderr))
        assert off <= allowed, f"{name}: the ELBO is {off:.2g} nats off; {allowed:.2g} are allowed."
    for what, value, truth in (
        ("gradient", found.gradient, gradient),
        ("curvature", found.curvature, curvature),
    ):
        off = np.abs(value - truth).max()
        assert off <= tolerance, f"{name}: the {what} is {off:.2g} off; {tolerance} is allowed."


def _truth(
    target: Density, q: Gaussian
) -> tuple[float, Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
    """ELBO, whitened gradient and curvature by a tensor rule."""
    rule = tensor_rule(_NODES, q.dim, 0.0)
    u, weights = np.asarray(rule.nodes), np.asarray(rule.weights)
    values, _ = batched(target)(np.asarray(q.mean) + u @ np.asarray(q.root).T)
    mean = weights @ values
    centred = weights * (values - mean)
    curvature = -(u.T * centred) @ u
    return float(mean + q.entropy()), centred @ u, curvature


def _check_derivatives(
    estimator: AbstractMomentEstimator,
    target: Density,
    q: Gaussian,
    design: object,
    found: Moments,
    name: str,
) -> None:
    """Central differences of the estimator's own ELBO, along whitened means and log roots."""
    mean, root, eye = np.asarray(q.mean), np.asarray(q.root), np.eye(q.dim)

    def value(m: Float[np.ndarray, "dim"], r: Float[np.ndarray, "dim dim"]) -> float:
        return float(estimator.moments(target, m, r, design).elbo)

    for j in range(q.dim):
        move = _STEP * root[:, j]
        slope = (value(mean + move, root) - value(mean - move, root)) / (2 * _STEP)
        close(
            found.gradient[j],
            slope,
            _STEP_ERROR,
            f"{name}: the gradient in the mean is {found.gradient[j]:.8f}, but its own value has"
            f" the slope {slope:.8f}.",
        )
        for i in range(q.dim):
            turn = np.zeros((q.dim, q.dim))
            turn[i, j] = _STEP
            ahead, behind = value(mean, root @ (eye + turn)), value(mean, root @ (eye - turn))
            # root -> root (I + t E_ij) moves the entropy by t where i = j
            slope, given = (ahead - behind) / (2 * _STEP), eye[i, j] - found.curvature[i, j]
            close(
                given,
                slope,
                _STEP_ERROR,
                f"{name}: the curvature gives the slope {given:.8f} in the root, but its own value"
                f" has {slope:.8f}.",
            )
