"""What is known of a target in the zoo, and the densities that several of them use."""

import dataclasses
import math
from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real

from ..._numerics import host_rng
from ..._types import Array, Key
from ...results import TargetError
from ..base import Density

LOG_2PI = math.log(2.0 * math.pi)

Values: TypeAlias = dict[str, Float[np.ndarray, "..."]]
"""By name of a value: its mean, its sd, or draws of it."""


@dataclasses.dataclass(frozen=True)
class Known:
    """A target and the truth about it, by formula or quadrature.

    Attributes:
        name: the target with its arguments.
        target: what to fit.
        mean: value name -> posterior mean, for everything that `target.constrain` returns; NaN
            where there is none.
        sd: value name -> posterior standard deviation; infinite or NaN where there is none.
        log_evidence: log of the integral of exp(target.log_density) over R^d, nats.
        cov: covariance of the values, flattened in the order of `jax.tree.leaves`; None where it is
            not written down.
        draw: `draw(n, rng) -> value name -> [n, ...]`, independent exact draws; None where there
            are none.
    """

    name: str
    target: Density
    mean: Values
    sd: Values
    log_evidence: float
    cov: Float[np.ndarray, "p p"] | None = None
    draw: Callable[[int, np.random.Generator], Values] | None = None

    def sample(self, n: int, key: Key) -> Values:
        """`n` exact draws of the values: value name -> `[n, ...]`.

        Raises:
            TargetError: when this target has no exact sampler.
        """
        if self.draw is None:
            raise TargetError(
                f"{self.name} has no exact sampler; draw from it with tb.solvers.NUTS()."
            )
        return self.draw(n, host_rng(key, "zoo"))


def normal(
    x: Real[Array, "..."] | float, mean: Real[Array, "..."] | float, sd: Real[Array, "..."] | float
) -> Float[Array, "..."]:
    """Log density of a normal distribution, elementwise, nats."""
    return -0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd) - 0.5 * LOG_2PI


def moments_on_grid(
    log_weight: Float[np.ndarray, "m"], means: Values, variances: Values | None = None
) -> tuple[Values, Values]:
    """Mean and sd of values whose conditional moments are known at the nodes of a quadrature.

    By the laws of total expectation and variance, with weights exp(log_weight), normalised here.

    Arguments:
        log_weight: log of the unnormalised weights of the nodes.
        means: name -> conditional mean at each node, `[m, ...]`.
        variances: name -> conditional variance at each node, `[m, ...]`; zero where a name is
            missing.
    """
    # Less the largest: a log density that is known up to a constant may overflow
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = {name: np.tensordot(weight, x, 1) for name, x in means.items()}
    spread = {
        name: (x - mean[name]) ** 2 + (variances or {}).get(name, 0.0) for name, x in means.items()
    }
    return mean, {
        name: np.asarray(np.sqrt(np.tensordot(weight, x, 1))) for name, x in spread.items()
    }
