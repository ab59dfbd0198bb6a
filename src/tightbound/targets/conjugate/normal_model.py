"""A normal sample with unknown mean and precision."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._types import Array, PyTree, Scalar, Validated
from ...families.exponential.gamma import Gamma
from ...families.exponential.normal import Normal
from ...families.exponential.product import Product
from ..layout import Layout
from ..support import ArrayLike
from .base import AbstractCollapsedTarget, check_rows, layout_of


class NormalSample(AbstractCollapsedTarget):
    """x_n ~ N(mu, 1/tau) with independent priors mu ~ Normal and tau ~ Gamma.

    Their joint posterior has no closed form. Not for outliers: a Student-t likelihood
    (tb.from_log_density) is.

    Arguments:
        x: data, `[N]`.
        mean: prior of mu, a tb.families.Normal.
        precision: prior of tau, a tb.families.Gamma.

    Source: Bishop 2006, section 10.1.3, with independent priors; Blei et al. 2017, section 2.4.
    """

    x: Float[Array, "rows"]
    mean_prior: Normal
    precision_prior: Gamma
    family: Product
    layout: Layout

    def __init__(
        self,
        x: Validated[ArrayLike, "check_rows"],
        *,
        mean: Normal | None = None,
        precision: Gamma | None = None,
    ):
        check_rows("NormalSample", x=x)
        self.x = np.asarray(x, np.float64).reshape(-1)
        self.mean_prior = Normal(0.0, 1e-6) if mean is None else mean
        self.precision_prior = Gamma(1e-3, 1e-3) if precision is None else precision
        # 1e-300: constant data have no variance, and a rate must be positive
        spread = float(np.var(self.x)) + 1e-300
        self.family = Product(
            mu=Normal(np.asarray(self.x.mean()), 1.0 / spread), tau=Gamma(1.0, spread)
        )
        self.layout = layout_of(self.family)

    @property
    def data_rows(self) -> Float[Array, "rows"]:
        return self.x

    def expected_log_joint(
        self, moments: PyTree, rows: PyTree = None, scale: Scalar = 1.0
    ) -> Float[Array, ""]:
        x, mu, tau = self.x if rows is None else rows, moments["mu"], moments["tau"]
        squares = jnp.sum(x**2) - 2.0 * mu.value * jnp.sum(x) + len(x) * mu.square
        likelihood = 0.5 * (len(x) * (tau.log - math.log(2 * math.pi)) - tau.value * squares)
        return (
            scale * likelihood
            + self.mean_prior.expected_log_prob(mu)
            + self.precision_prior.expected_log_prob(tau)
        )
