"""Eight schools, both parameterisations: moments and evidence by quadrature over the one scale."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._types import Array, PyTree
from ..log_density import LogDensity, from_log_density
from .known import LOG_2PI, Known, Values, moments_on_grid, normal

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
"""Estimated effects of coaching in eight schools, points. Source: Rubin (1981), table 1."""

STANDARD_ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
"""Their standard errors, points."""

_PRIOR_SD, _PRIOR_SCALE = 5.0, 5.0  # of mu and of tau, points
# The integrand falls off as tau on the left and tau^-8 on the right
_LOG_TAU = np.arange(-40.0, 25.0, 0.02)


def eight_schools(*, centered: bool = False) -> Known:
    """mu ~ N(0, 5^2), tau ~ HalfCauchy(5), theta_j ~ N(mu, tau^2), y_j ~ N(theta_j, sigma_j^2).

    Centred, the values are mu, tau, theta and the posterior is a funnel that a Gaussian misses;
    non-centred, they are mu, tau, theta_trans = (theta - mu) / tau, with theta derived. Given tau
    everything else is Gaussian, so that the truth is one integral over log tau, by the trapezoid
    rule. Source: Gelman et al., Bayesian Data Analysis, section 5.5.

    Arguments:
        centered: which parameterisation.
    """
    log_weight = _log_marginal(np.exp(_LOG_TAU)) + _LOG_TAU
    mean, sd = moments_on_grid(log_weight, *_given_tau(np.exp(_LOG_TAU)))
    if centered:
        del mean["theta_trans"], sd["theta_trans"]
    return Known(
        name=f"eight_schools(centered={centered})",
        target=_centered() if centered else _noncentered(),
        mean=mean,
        sd=sd,
        log_evidence=float(np.logaddexp.reduce(log_weight)) + math.log(_LOG_TAU[1] - _LOG_TAU[0]),
        draw=lambda n, rng: _draw(n, rng, log_weight, centered),
    )


def _log_prior(params: PyTree) -> Float[Array, ""]:
    tau = params["tau"]
    half_cauchy = math.log(2 / (math.pi * _PRIOR_SCALE)) - jnp.log1p((tau / _PRIOR_SCALE) ** 2)
    return normal(params["mu"], 0.0, _PRIOR_SD) + half_cauchy


def _centered() -> LogDensity:
    def log_density(params):
        theta = params["theta"]
        schools = normal(theta, params["mu"], params["tau"]) + normal(
            EFFECTS, theta, STANDARD_ERRORS
        )
        return _log_prior(params) + jnp.sum(schools)

    return from_log_density(
        log_density, {"mu": 0.0, "tau": 1.0, "theta": np.zeros(8)}, support={"tau": "positive"}
    )


def _noncentered() -> LogDensity:
    def effects(params):
        return {"theta": params["mu"] + params["tau"] * params["theta_trans"]}

    def log_density(params):
        schools = normal(params["theta_trans"], 0.0, 1.0) + normal(
            EFFECTS, effects(params)["theta"], STANDARD_ERRORS
        )
        return _log_prior(params) + jnp.sum(schools)

    example = {"mu": 0.0, "tau": 1.0, "theta_trans": np.zeros(8)}
    return from_log_density(log_density, example, support={"tau": "positive"}, derived=effects)


def _mu_given_tau(
    tau: Float[np.ndarray, "m"],
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"], Float[np.ndarray, "m 8"]]:
    """Mean and variance of mu, and the variances of y about mu, given tau.

    y_j | mu, tau ~ N(mu, sigma_j^2 + tau^2).
    """
    variance = STANDARD_ERRORS**2 + tau[:, None] ** 2
    variance_mu = 1 / (1 / _PRIOR_SD**2 + np.sum(1 / variance, axis=1))
    return variance_mu * np.sum(EFFECTS / variance, axis=1), variance_mu, variance


def _log_marginal(tau: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
    """log p(tau) + log p(y | tau), with mu and theta integrated out.

    By the matrix determinant lemma and the Woodbury identity.
    """
    mean_mu, variance_mu, variance = _mu_given_tau(tau)
    log_det = np.sum(np.log(variance), axis=1) + np.log(_PRIOR_SD**2 / variance_mu)
    quadratic = np.sum(EFFECTS**2 / variance, axis=1) - mean_mu**2 / variance_mu
    log_prior = math.log(2 / (math.pi * _PRIOR_SCALE)) - np.log1p((tau / _PRIOR_SCALE) ** 2)
    return log_prior - 0.5 * (log_det + quadratic + len(EFFECTS) * LOG_2PI)


def _given_tau(tau: Float[np.ndarray, "m"]) -> tuple[Values, Values]:
    """Conditional means and variances of all values given tau: name -> `[m, ...]`."""
    mean_mu, variance_mu, variance = _mu_given_tau(tau)
    mu, t, noise = mean_mu[:, None], tau[:, None], STANDARD_ERRORS**2
    means = {
        "mu": mean_mu,
        "tau": tau,
        "theta": (EFFECTS * t**2 + mu * noise) / variance,
        "theta_trans": t * (EFFECTS - mu) / variance,
    }
    variances = {
        "mu": variance_mu,
        "theta": t**2 * noise / variance + (noise / variance) ** 2 * variance_mu[:, None],
        "theta_trans": noise / variance + (t / variance) ** 2 * variance_mu[:, None],
    }
    return means, variances


def _draw(
    n: int, rng: np.random.Generator, log_weight: Float[np.ndarray, "m"], centered: bool
) -> Values:
    """tau by its distribution function on the grid, then mu given tau, then the schools."""
    cdf = np.cumsum(np.exp(log_weight - np.logaddexp.reduce(log_weight)))
    # A node stands for the interval around it, so that the function between two nodes belongs to
    # their midpoint.
    tau = np.exp(np.interp(rng.random(n), cdf, _LOG_TAU + (_LOG_TAU[1] - _LOG_TAU[0]) / 2))
    mean_mu, variance_mu, variance = _mu_given_tau(tau)
    mu = mean_mu + np.sqrt(variance_mu) * rng.standard_normal(n)
    noise = STANDARD_ERRORS / np.sqrt(variance) * rng.standard_normal((n, 8))
    theta_trans = tau[:, None] * (EFFECTS - mu[:, None]) / variance + noise
    values = {"mu": mu, "tau": tau, "theta": mu[:, None] + tau[:, None] * theta_trans}
    return values if centered else {**values, "theta_trans": theta_trans}
