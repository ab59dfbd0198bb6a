"""Targets that a fit or its certificate may be fooled by, beside well-behaved ones, all with known
moments and evidence.

Most are in `tightbound.targets.zoo`; the ones below are for this benchmark alone.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln, logsumexp

from tightbound.targets import from_log_density, zoo
from tightbound.targets.zoo import Known
from tightbound.targets.zoo.known import LOG_2PI, moments_on_grid


def piled_at_zero(shape: float = 0.1) -> Known:
    """Gamma(shape, 1): a positive value whose density is infinite at zero."""
    return Known(
        name=f"piled_at_zero(shape={shape:g})",
        target=from_log_density(
            lambda p: (shape - 1) * jnp.log(p["x"]) - p["x"], {"x": 1.0}, support={"x": "positive"}
        ),
        mean={"x": np.array(shape)},
        sd={"x": np.array(math.sqrt(shape))},
        log_evidence=float(gammaln(shape)),
    )


def product(noise: float = 0.1, prior_sd: float = 3.0) -> Known:
    """Only the product of a and b is identified, a b = 1 +- noise: two thin hyperbolas.

    Given a, b is normal; the truth is a quadrature over a.
    """

    def log_density(p):
        return (
            -0.5 * ((p["a"] * p["b"] - 1.0) / noise) ** 2
            - 0.5 * (p["a"] ** 2 + p["b"] ** 2) / prior_sd**2
        )

    a = np.linspace(-40.0, 40.0, 400_001)
    precision = a**2 / noise**2 + prior_sd**-2
    centre = a / noise**2 / precision
    log_weight = (
        0.5 * (centre**2 * precision - noise**-2 - np.log(precision) + LOG_2PI)
        - 0.5 * a**2 / prior_sd**2
    )
    mean, sd = moments_on_grid(log_weight, {"a": a, "b": centre}, {"b": 1 / precision})
    return Known(
        name=f"product(noise={noise:g}, prior_sd={prior_sd:g})",
        target=from_log_density(log_density, {"a": 1.0, "b": 1.0}),
        mean=mean,
        sd=sd,
        log_evidence=float(logsumexp(log_weight) + np.log(a[1] - a[0])),
    )


def ripples(height: float = 2.0, frequency: float = 20.0) -> Known:
    """exp(-x^2 / 2 + height sin(frequency x)): some twenty modes within three sds.

    The truth is a quadrature.
    """
    x = np.linspace(-12.0, 12.0, 100_001)
    log_weight = -0.5 * x**2 + height * np.sin(frequency * x)
    mean, sd = moments_on_grid(log_weight, {"x": x})
    return Known(
        name=f"ripples(height={height:g}, frequency={frequency:g})",
        target=from_log_density(
            lambda p: -0.5 * p["x"] ** 2 + height * jnp.sin(frequency * p["x"]), {"x": 0.0}
        ),
        mean=mean,
        sd=sd,
        log_evidence=float(logsumexp(log_weight) + np.log(x[1] - x[0])),
    )


def two_sizes(dim: int, centre: float, sds: tuple[float, float], weight: float) -> Known:
    """A normalised mixture of N(0, sds[0]^2 I) and, with `weight`, N(centre, sds[1]^2 I)."""

    def log_density(p):
        squares = jnp.stack(
            [jnp.sum(p["x"] ** 2) / sds[0] ** 2, jnp.sum((p["x"] - centre) ** 2) / sds[1] ** 2]
        )
        log_norm = np.log([1 - weight, weight]) - dim * np.log(sds) - 0.5 * dim * LOG_2PI
        return jnp.logaddexp(*(log_norm - 0.5 * squares))

    variance = (1 - weight) * sds[0] ** 2 + weight * sds[1] ** 2 + weight * (1 - weight) * centre**2
    return Known(
        name=f"two_sizes({dim}, centre={centre:g}, sds={sds}, weight={weight:g})",
        target=from_log_density(log_density, {"x": np.zeros(dim)}),
        mean={"x": np.full(dim, weight * centre)},
        sd={"x": np.full(dim, math.sqrt(variance))},
        log_evidence=0.0,
    )


SOUND: dict[str, Callable[[], Known]] = {
    "Gaussian in 20 dimensions, condition 1e6": lambda: zoo.gaussian(20, condition=1e6),
    "Beta": zoo.beta_bernoulli,
    "Gamma": zoo.gamma_poisson,
    "normal mean": zoo.normal_normal,
    "linear regression": zoo.linear_regression,
    "logistic regression": zoo.logistic_regression,
    "eight schools, non-centred": zoo.eight_schools,
}
FOOLS: dict[str, Callable[[], Known]] = {
    "eight schools, centred (a funnel)": lambda: zoo.eight_schools(centered=True),
    "two modes, 1 dimension": lambda: zoo.two_modes(1),
    "two modes, 2 dimensions": lambda: zoo.two_modes(2),
    "two modes, 10 dimensions": lambda: zoo.two_modes(10),
    "a mode with a tenth of the mass": lambda: zoo.two_modes(3, weight=0.1),
    "two modes 21 sds apart, a third of the mass": lambda: two_sizes(3, -6.0, (0.5, 0.5), 1 / 3),
    "a mode a tenth as wide, with 95 % of the mass": lambda: two_sizes(
        2, 6.0, (1.0, 0.1), 1 / (1 + math.exp(-3))
    ),
    "twenty modes within three sds": ripples,
    "Neal's funnel, 3 dimensions": lambda: zoo.funnel(3),
    "Neal's funnel, 10 dimensions": lambda: zoo.funnel(10),
    "banana": zoo.banana,
    "ring": zoo.ring,
    "only a product is identified": product,
    "t with 5 degrees of freedom": lambda: zoo.student_t(2, df=5.0),
    "t with 3": lambda: zoo.student_t(2, df=3.0),
    "t with 2.2": lambda: zoo.student_t(2, df=2.2),
    "Gamma(0.1): infinite density at zero": piled_at_zero,
}
# a needle that no search reaches, which shows the limit that the finding `optima` states
NEEDLE = "a needle (sd 0.001) 67 sds away, half of the mass"
LIMITS: dict[str, Callable[[], Known]] = {NEEDLE: lambda: two_sizes(5, 30.0, (1.0, 1e-3), 0.5)}

# the modes of those that have a few: where it is, and within which distance a search that ends has
# found it
MODES: dict[str, list[tuple[np.ndarray, float]]] = {
    "two modes, 1 dimension": [(np.array([side]), 1.0) for side in (-3.0, 3.0)],
    "two modes, 2 dimensions": [(np.array([side, 0.0]), 1.0) for side in (-3.0, 3.0)],
    "two modes, 10 dimensions": [(np.eye(10)[0] * side, 1.0) for side in (-3.0, 3.0)],
    "a mode with a tenth of the mass": [(np.eye(3)[0] * side, 1.0) for side in (-3.0, 3.0)],
    "two modes 21 sds apart, a third of the mass": [(np.zeros(3), 0.5), (np.full(3, -6.0), 0.5)],
    "a mode a tenth as wide, with 95 % of the mass": [(np.zeros(2), 1.0), (np.full(2, 6.0), 0.1)],
    NEEDLE: [(np.zeros(5), 1.0), (np.full(5, 30.0), 1e-3)],
}
