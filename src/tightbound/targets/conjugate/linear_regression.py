"""Linear regression whose coefficients each have a precision of their own."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._types import Array, PyTree, Scalar, Validated
from ...families.exponential.gamma import Gamma
from ...families.exponential.normal import MultivariateNormal
from ...families.exponential.product import Product
from ...results import TargetError
from ..layout import Layout
from ..support import ArrayLike
from .base import AbstractCollapsedTarget, broadcast, check_rows, layout_of


class LinearRegressionARD(AbstractCollapsedTarget):
    """y ~ N(X beta, 1/tau), beta_j ~ N(0, 1/alpha_j): automatic relevance determination.

        alpha_j ~ Gamma,   tau ~ Gamma;   factors: beta (one multivariate normal), alpha, tau

    Coefficients that the data do not need are shrunk to zero. Not for heavy-tailed noise, nor for
    more than some thousand columns (beta has a full covariance).

    Arguments:
        X: design, `[N, p]`; include a column of ones for an intercept.
        y: responses, `[N]`.
        alpha: prior of each coefficient's precision.
        tau: prior of the noise's precision.

    Source: Tipping 2001; Bishop 2006, section 10.3 (there with one alpha).
    """

    X: Float[Array, "rows p"]
    y: Float[Array, "rows"]
    alpha_prior: Gamma
    tau_prior: Gamma
    family: Product
    layout: Layout

    def __init__(
        self,
        X: Validated[ArrayLike, "check_rows"],
        y: Validated[ArrayLike, "check_rows"],
        *,
        alpha: Gamma | None = None,
        tau: Gamma | None = None,
    ):
        check_rows("LinearRegressionARD", X=X, y=y)
        self.X, self.y = np.asarray(X, np.float64), np.asarray(y, np.float64)
        if self.X.ndim != 2 or self.y.ndim != 1:
            raise TargetError(
                f"LinearRegressionARD: `X` must be [N, p] and `y` [N], got {self.X.shape} and"
                f" {self.y.shape}."
            )
        columns = self.X.shape[1]
        self.alpha_prior = Gamma(1e-3, 1e-3) if alpha is None else alpha
        self.tau_prior = Gamma(1e-3, 1e-3) if tau is None else tau
        self.family = Product(
            beta=MultivariateNormal(np.zeros(columns), np.eye(columns)),
            alpha=broadcast(Gamma(1.0, 1.0), (columns,)),
            tau=Gamma(1.0, float(np.var(self.y)) + 1e-300),
        )
        self.layout = layout_of(self.family)

    @property
    def data_rows(self) -> PyTree:
        return {"X": self.X, "y": self.y}

    def expected_log_joint(
        self, moments: PyTree, rows: PyTree = None, scale: Scalar = 1.0
    ) -> Float[Array, ""]:
        data = self.data_rows if rows is None else rows
        beta, alpha, tau = moments["beta"], moments["alpha"], moments["tau"]
        X, y = data["X"], data["y"]
        # E |y - X beta|^2, from p and p x p numbers of the data: N rows times a p x p moment would
        # be the slow way
        squares = jnp.sum(y**2) - 2.0 * (y @ X) @ beta.value + jnp.sum((X.T @ X) * beta.outer)
        likelihood = 0.5 * (len(y) * (tau.log - math.log(2 * math.pi)) - tau.value * squares)
        shrinkage = 0.5 * jnp.sum(
            alpha.log - math.log(2 * math.pi) - alpha.value * jnp.diagonal(beta.outer)
        )
        priors = self.alpha_prior.expected_log_prob(alpha) + self.tau_prior.expected_log_prob(tau)
        return scale * likelihood + shrinkage + priors
