"""Conjugate models: posterior and evidence in closed form. All are sums over rows of data."""

import math

import jax.numpy as jnp
import jax.scipy.special as jsp
import numpy as np
from jaxtyping import Float, Real
from scipy.special import betaln, gammaln

from ..._types import Array
from ..rows import from_rows
from .known import LOG_2PI, Known, normal


def beta_bernoulli(
    y: Real[Array, "rows"] | None = None, *, a: float = 2.0, b: float = 3.0
) -> Known:
    """theta ~ Beta(a, b), y_i ~ Bernoulli(theta); the posterior is Beta(a + sum y, b + N - sum y).

    log evidence = log B(a + sum y, b + N - sum y) - log B(a, b).

    Arguments:
        y: zeros and ones; ten of them by default.
        a: prior successes.
        b: prior failures.
    """
    y = np.asarray([1, 1, 0, 1, 1, 0, 1, 1, 1, 0] if y is None else y)
    a_n, b_n = a + y.sum(), b + (1 - y).sum()
    variance = a_n * b_n / ((a_n + b_n) ** 2 * (a_n + b_n + 1))

    def log_prior(params):
        return (
            (a - 1) * jnp.log(params["theta"])
            + (b - 1) * jnp.log1p(-params["theta"])
            - betaln(a, b)
        )

    def log_likelihood(params, rows):
        return jnp.where(rows["y"] == 1, jnp.log(params["theta"]), jnp.log1p(-params["theta"]))

    return Known(
        name=f"beta_bernoulli(N={len(y)}, a={a:g}, b={b:g})",
        target=from_rows(
            log_prior, log_likelihood, {"y": y}, {"theta": 0.5}, support={"theta": "unit_interval"}
        ),
        mean={"theta": np.array(a_n / (a_n + b_n))},
        sd={"theta": np.array(math.sqrt(variance))},
        log_evidence=float(betaln(a_n, b_n) - betaln(a, b)),
        cov=np.array([[variance]]),
        draw=lambda n, rng: {"theta": rng.beta(a_n, b_n, n)},
    )


def gamma_poisson(
    y: Real[Array, "rows"] | None = None, *, shape: float = 2.0, rate: float = 0.5
) -> Known:
    """lam ~ Gamma(shape, rate), y_i ~ Poisson(lam).

    The posterior is Gamma(shape + sum y, rate + N).

    Arguments:
        y: counts; eight of them by default.
        shape: of the prior.
        rate: of the prior.
    """
    y = np.asarray([3, 5, 2, 4, 6, 1, 3, 4] if y is None else y)
    shape_n, rate_n = shape + y.sum(), rate + len(y)
    # Taken on the host: what does not depend on parameters need not be compiled
    log_prior_norm = shape * math.log(rate) - gammaln(shape)

    def log_prior(params):
        return log_prior_norm + (shape - 1) * jnp.log(params["lam"]) - rate * params["lam"]

    def log_likelihood(params, rows):
        return rows["y"] * jnp.log(params["lam"]) - params["lam"] - jsp.gammaln(rows["y"] + 1.0)

    return Known(
        name=f"gamma_poisson(N={len(y)}, shape={shape:g}, rate={rate:g})",
        target=from_rows(
            log_prior, log_likelihood, {"y": y}, {"lam": 1.0}, support={"lam": "positive"}
        ),
        mean={"lam": np.array(shape_n / rate_n)},
        sd={"lam": np.array(math.sqrt(shape_n) / rate_n)},
        log_evidence=float(
            log_prior_norm + gammaln(shape_n) - shape_n * math.log(rate_n) - gammaln(y + 1).sum()
        ),
        cov=np.array([[shape_n / rate_n**2]]),
        draw=lambda n, rng: {"lam": rng.gamma(shape_n, 1 / rate_n, n)},
    )


def normal_normal(
    x: Real[Array, "rows"] | None = None, *, noise: float = 1.0, prior_sd: float = 2.0
) -> Known:
    """mu ~ N(0, prior_sd^2), x_i ~ N(mu, noise^2).

    Arguments:
        x: observations; six of them by default.
        noise: their known standard deviation.
        prior_sd: of mu.
    """
    x = np.asarray([1.2, 0.4, 2.1, 1.7, 0.9, 1.4] if x is None else x)
    variance = 1 / (1 / prior_sd**2 + len(x) / noise**2)
    mean = variance * x.sum() / noise**2
    return Known(
        name=f"normal_normal(N={len(x)}, noise={noise:g}, prior_sd={prior_sd:g})",
        target=from_rows(
            lambda params: normal(params["mu"], 0.0, prior_sd),
            lambda params, rows: normal(rows["x"], params["mu"], noise),
            {"x": x},
            {"mu": 0.0},
        ),
        mean={"mu": np.array(mean)},
        sd={"mu": np.array(math.sqrt(variance))},
        log_evidence=_log_normal(x, noise**2 * np.eye(len(x)) + prior_sd**2),
        cov=np.array([[variance]]),
        draw=lambda n, rng: {"mu": mean + math.sqrt(variance) * rng.standard_normal(n)},
    )


def linear_regression(
    num_rows: int = 50, dim: int = 3, *, noise: float = 0.7, prior_sd: float = 2.0, seed: int = 0
) -> Known:
    """beta ~ N(0, prior_sd^2 I), y ~ N(X beta, noise^2 I) on simulated data; a Gaussian posterior.

    Precision P = I / prior_sd^2 + X'X / noise^2, mean P^-1 X'y / noise^2, evidence N(y; 0, noise^2
    I + prior_sd^2 X X'). Source: Bishop (2006), Pattern Recognition and Machine Learning, eqs.
    3.53-3.54.

    Arguments:
        num_rows: N.
        dim: columns of X, the first of them ones.
        noise: the known sd of y about X beta.
        prior_sd: of each coefficient.
        seed: of the data.
    """
    rng = np.random.default_rng(seed)
    design = np.column_stack([np.ones(num_rows), rng.standard_normal((num_rows, dim - 1))])
    y = design @ rng.standard_normal(dim) + noise * rng.standard_normal(num_rows)
    cov = np.linalg.inv(np.eye(dim) / prior_sd**2 + design.T @ design / noise**2)
    mean = cov @ design.T @ y / noise**2
    return Known(
        name=(
            f"linear_regression({num_rows}, {dim}, noise={noise:g}, prior_sd={prior_sd:g},"
            f" seed={seed})"
        ),
        target=from_rows(
            lambda params: jnp.sum(normal(params["beta"], 0.0, prior_sd)),
            lambda params, rows: normal(rows["y"], rows["X"] @ params["beta"], noise),
            {"X": design, "y": y},
            {"beta": np.zeros(dim)},
        ),
        mean={"beta": mean},
        sd={"beta": np.sqrt(np.diag(cov))},
        log_evidence=_log_normal(y, noise**2 * np.eye(num_rows) + prior_sd**2 * design @ design.T),
        cov=cov,
        draw=lambda n, rng: {"beta": rng.multivariate_normal(mean, cov, n)},
    )


def _log_normal(x: Real[np.ndarray, "rows"], cov: Float[np.ndarray, "rows rows"]) -> float:
    """log N(x; 0, cov), nats."""
    return float(
        -0.5 * (x @ np.linalg.solve(cov, x) + np.linalg.slogdet(cov)[1] + len(x) * LOG_2PI)
    )
