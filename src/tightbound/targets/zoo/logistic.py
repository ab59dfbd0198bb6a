"""Logistic regression with two coefficients: moments and evidence by quadrature in the plane."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit, logsumexp

from ..rows import from_rows
from .known import LOG_2PI, Known, moments_on_grid, normal

# Of the grid, in posterior sds: the trapezoid rule is then exact to rounding
_REACH, _STEP = 10.0, 0.1
# The log posterior is concave, and a handful of steps reach its mode; more of them change nothing
_NEWTON_STEPS = 30


def logistic_regression(num_rows: int = 60, *, prior_sd: float = 2.5, seed: int = 0) -> Known:
    """beta ~ N(0, prior_sd^2 I) in the plane, P(y_i = 1) = 1 / (1 + exp(-x_i' beta)).

    The data are simulated. The truth comes from the trapezoid rule on a grid in coordinates in
    which the posterior is nearly N(0, I).

    Arguments:
        num_rows: N.
        prior_sd: of intercept and slope.
        seed: of the data.
    """
    rng = np.random.default_rng(seed)
    design = np.column_stack([np.ones(num_rows), rng.standard_normal(num_rows)])
    y = (rng.random(num_rows) < expit(design @ np.array([-0.5, 1.5]))).astype(int)

    def log_likelihood(params, rows):
        logits = rows["X"] @ params["beta"]
        return rows["y"] * logits - jax.nn.softplus(logits)

    mode, root = _mode_and_root(design, y, prior_sd)
    ticks = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
    nodes = mode + np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2) @ root.T
    logits = nodes @ design.T
    log_joint = np.sum(y * logits - np.logaddexp(0, logits), axis=1)
    log_joint += np.sum(-0.5 * (nodes / prior_sd) ** 2 - np.log(prior_sd) - 0.5 * LOG_2PI, axis=1)
    mean, sd = moments_on_grid(log_joint, {"beta": nodes})
    weight = np.exp(log_joint - logsumexp(log_joint))
    return Known(
        name=f"logistic_regression({num_rows}, prior_sd={prior_sd:g}, seed={seed})",
        target=from_rows(
            lambda params: jnp.sum(normal(params["beta"], 0.0, prior_sd)),
            log_likelihood,
            {"X": design, "y": y},
            {"beta": np.zeros(2)},
        ),
        mean=mean,
        sd=sd,
        log_evidence=float(logsumexp(log_joint) + 2 * np.log(_STEP) + np.linalg.slogdet(root)[1]),
        cov=(nodes - mean["beta"]).T @ (weight[:, None] * (nodes - mean["beta"])),
    )


def _mode_and_root(
    design: Float[np.ndarray, "rows 2"], y: Int[np.ndarray, "rows"], prior_sd: float
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2 2"]]:
    """The posterior mode by Newton's method, and a root of the inverse Hessian there."""
    beta, hessian = np.zeros(2), np.eye(2)
    for _ in range(_NEWTON_STEPS):
        p = expit(design @ beta)
        hessian = (design.T * (p * (1 - p))) @ design + np.eye(2) / prior_sd**2
        beta = beta + np.linalg.solve(hessian, design.T @ (y - p) - beta / prior_sd**2)
    return beta, np.linalg.cholesky(np.linalg.inv(hessian))
