"""Groups whose means come from one population."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ..._types import Array, PyTree, Scalar, Validated
from ...families.exponential.gamma import Gamma
from ...families.exponential.normal import Normal
from ...families.exponential.product import Product
from ..layout import Layout
from ..support import ArrayLike
from .base import AbstractCollapsedTarget, broadcast, check_categories, check_rows, layout_of

_LOG_2PI = math.log(2 * math.pi)  # of Gaussian densities


class HierarchicalNormal(AbstractCollapsedTarget):
    """y_i ~ N(theta_group(i), 1/tau), theta_j ~ N(mu, 1/lam): partial pooling of J groups.

        mu ~ Normal,   lam ~ Gamma (between groups),   tau ~ Gamma (within groups)

    Mean field ignores that theta and mu, lam move together, so their sds come out too small where
    groups are few or have few observations: the certificate says by how much. tb.fit of the same
    model by tb.from_log_density does not.

    Arguments:
        y: observations, `[N]`.
        group: the group of each, whole numbers in 0, ..., J - 1, `[N]`.
        groups: J; one more than the largest group by default. A group without observations keeps
            the population's law.
        mu: prior of the population mean.
        lam: prior of the precision between groups.
        tau: prior of the precision within groups.

    Source: Gelman et al. 2013, section 11.6; Blei et al. 2017, section 2.4 for the updates'
    derivation.
    """

    y: Float[Array, "rows"]
    group: Int[Array, "rows"]
    family: Product
    layout: Layout
    mu_prior: Normal
    lam_prior: Gamma
    tau_prior: Gamma

    def __init__(
        self,
        y: Validated[ArrayLike, "check_rows"],
        group: Validated[ArrayLike, "check_categories"],
        *,
        groups: int | None = None,
        mu: Normal | None = None,
        lam: Gamma | None = None,
        tau: Gamma | None = None,
    ):
        check_rows("HierarchicalNormal", y=y, group=group)
        self.y = np.asarray(y, np.float64)
        count = int(np.max(group)) + 1 if groups is None else int(groups)
        self.group = check_categories("HierarchicalNormal", "group", group, count)
        # 1e-300: constant data have no variance, and a rate must be positive
        spread = float(np.var(self.y)) + 1e-300
        self.mu_prior = Normal(0.0, 1e-6) if mu is None else mu
        self.lam_prior = Gamma(1e-2, 1e-2) if lam is None else lam
        self.tau_prior = Gamma(1e-2, 1e-2) if tau is None else tau
        self.family = Product(
            theta=broadcast(Normal(self.y.mean(), 1.0 / spread), (count,)),
            mu=Normal(np.asarray(self.y.mean()), 1.0 / spread),
            lam=Gamma(1.0, spread),
            tau=Gamma(1.0, spread),
        )
        self.layout = layout_of(self.family)

    @property
    def data_rows(self) -> PyTree:
        return {"y": self.y, "group": self.group}

    def expected_log_joint(
        self, moments: PyTree, rows: PyTree = None, scale: Scalar = 1.0
    ) -> Float[Array, ""]:
        data = self.data_rows if rows is None else rows
        theta, mu, lam, tau = (moments[name] for name in ("theta", "mu", "lam", "tau"))
        y, group = data["y"], data["group"]
        squares = jnp.sum(y**2 - 2.0 * y * theta.value[group] + theta.square[group])
        within = 0.5 * (len(y) * (tau.log - _LOG_2PI) - tau.value * squares)
        # E (theta_j - mu)^2: the factors are independent, so the cross term is a product of means
        spread = jnp.sum(theta.square - 2.0 * theta.value * mu.value + mu.square)
        between = 0.5 * (len(theta.value) * (lam.log - _LOG_2PI) - lam.value * spread)
        priors = (
            self.mu_prior.expected_log_prob(mu)
            + self.lam_prior.expected_log_prob(lam)
            + self.tau_prior.expected_log_prob(tau)
        )
        return scale * within + between + priors
