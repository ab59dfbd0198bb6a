"""Gaussian targets and their neighbours: any condition number, two modes, heavy tails."""

import math

import jax.numpy as jnp
import jax.scipy.special as jsp
import numpy as np
from scipy.special import gammaln

from ..log_density import from_log_density
from .known import LOG_2PI, Known


def gaussian(dim: int = 2, *, condition: float = 1.0, seed: int = 0) -> Known:
    """A normalised Gaussian with a random mean and random principal axes.

    The eigenvalues of the covariance run geometrically from condition^-1/2 to condition^1/2.

    Arguments:
        dim: d.
        condition: largest over smallest eigenvalue of the covariance.
        seed: of the mean and the axes.
    """
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal(dim)
    axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    # Of the principal axes: roots of the eigenvalues, hence the fourth roots of the condition
    sds = np.geomspace(condition**-0.25, condition**0.25, dim)
    cov = (axes * sds**2) @ axes.T
    whiten = (axes / sds).T
    log_norm = -np.log(sds).sum() - 0.5 * dim * LOG_2PI

    def log_density(params):
        return log_norm - 0.5 * jnp.sum((whiten @ (params["x"] - mean)) ** 2)

    return Known(
        name=f"gaussian({dim}, condition={condition:g}, seed={seed})",
        target=from_log_density(log_density, {"x": np.zeros(dim)}),
        mean={"x": mean},
        sd={"x": np.sqrt(np.diag(cov))},
        log_evidence=0.0,
        cov=cov,
        draw=lambda n, rng: {"x": mean + (rng.standard_normal((n, dim)) * sds) @ axes.T},
    )


def two_modes(dim: int = 2, *, separation: float = 6.0, weight: float = 0.5) -> Known:
    """A normalised mixture of two unit Gaussians, `separation` apart along the first axis.

    Arguments:
        dim: d.
        separation: distance of the modes, in their standard deviations; below 2 they are one mode.
        weight: of the mode on the positive side.
    """
    centre = np.zeros(dim)
    centre[0] = separation / 2
    log_weights = np.log([1 - weight, weight])
    mean, cov = (2 * weight - 1) * centre, np.eye(dim)
    cov[0, 0] += weight * (1 - weight) * separation**2

    def log_density(params):
        squares = jnp.stack(
            [jnp.sum((params["x"] + centre) ** 2), jnp.sum((params["x"] - centre) ** 2)]
        )
        return jsp.logsumexp(log_weights - 0.5 * squares) - 0.5 * dim * LOG_2PI

    def draw(n, rng):
        side = np.where(rng.random((n, 1)) < weight, 1.0, -1.0)
        return {"x": side * centre + rng.standard_normal((n, dim))}

    return Known(
        name=f"two_modes({dim}, separation={separation:g}, weight={weight:g})",
        target=from_log_density(log_density, {"x": np.zeros(dim)}),
        mean={"x": mean},
        sd={"x": np.sqrt(np.diag(cov))},
        log_evidence=0.0,
        cov=cov,
        draw=draw,
    )


def student_t(dim: int = 2, *, df: float = 5.0) -> Known:
    """A normalised multivariate Student-t distribution with location 0 and unit scale.

    Its mean exists for df > 1, its variance df / (df - 2) for df > 2.

    Arguments:
        dim: d.
        df: degrees of freedom.
    """
    log_norm = gammaln((df + dim) / 2) - gammaln(df / 2) - 0.5 * dim * math.log(df * math.pi)
    variance = df / (df - 2) if df > 2 else math.inf
    moments_exist = df > 1

    def log_density(params):
        return log_norm - 0.5 * (df + dim) * jnp.log1p(jnp.sum(params["x"] ** 2) / df)

    def draw(n, rng):
        return {"x": rng.standard_normal((n, dim)) / np.sqrt(rng.chisquare(df, (n, 1)) / df)}

    return Known(
        name=f"student_t({dim}, df={df:g})",
        target=from_log_density(log_density, {"x": np.zeros(dim)}),
        mean={"x": np.full(dim, 0.0 if moments_exist else math.nan)},
        sd={"x": np.full(dim, math.sqrt(variance) if moments_exist else math.nan)},
        log_evidence=0.0,
        cov=variance * np.eye(dim) if df > 2 else None,
        draw=draw,
    )
