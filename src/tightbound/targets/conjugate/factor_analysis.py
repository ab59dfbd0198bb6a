"""Factor analysis and probabilistic principal components."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._numerics import host_rng
from ..._types import Array, Key, PyTree, Scalar, Validated
from ...families.exponential.gamma import Gamma
from ...families.exponential.normal import MultivariateNormal, Normal
from ...families.exponential.product import Product
from ...results import TargetError
from ..layout import Layout
from ..support import ArrayLike
from .base import AbstractCollapsedTarget, broadcast, check_rows, layout_of

_LOG_2PI = math.log(2 * math.pi)  # of Gaussian densities


class FactorAnalysis(AbstractCollapsedTarget):
    """y_n = mu + W x_n + noise, x_n ~ N(0, I_k): k directions explain d columns.

        w_jk ~ N(0, 1/alpha_k),   mu_j ~ N(0, 1/mean_precision),   alpha_k ~ Gamma,   tau ~ Gamma
        (one, or one per column)

    `isotropic=True` is probabilistic PCA (one noise precision), else factor analysis (one for each
    column). The precisions alpha switch off directions that the data do not need (Bishop 1999). W
    is known only up to a rotation of the directions: read W W' or the noise, not single entries.
    Not for missing entries.

    Arguments:
        y: data, `[N, d]`; columns on one scale.
        directions: k, below d.
        isotropic: one noise precision for all columns.
        alpha: prior of the precisions of W's columns.
        tau: prior of the noise precision(s).
        mean_precision: of the prior of mu.

    Source: Tipping & Bishop 1999; Bishop 1999, "Variational principal components", section 3.
    """

    y: Float[Array, "rows columns"]
    family: Product
    layout: Layout
    alpha_prior: Gamma
    tau_prior: Gamma
    mean_prior: Normal
    isotropic: bool = eqx.field(static=True)

    def __init__(
        self,
        y: Validated[ArrayLike, "check_rows"],
        directions: int,
        *,
        isotropic: bool = True,
        alpha: Gamma | None = None,
        tau: Gamma | None = None,
        mean_precision: float = 1e-3,
    ):
        count = check_rows("FactorAnalysis", y=y)
        self.y, self.isotropic = np.asarray(y, np.float64), bool(isotropic)
        if self.y.ndim != 2:
            raise TargetError(f"FactorAnalysis: `y` must be [N, d], got {self.y.shape}.")
        columns = self.y.shape[1]
        if not isinstance(directions, (int, np.integer)) or not 1 <= directions < max(columns, 2):
            raise TargetError(
                f"FactorAnalysis: `directions` must be in 1, ..., d - 1 = {columns - 1}, got"
                f" {directions!r}."
            )
        self.alpha_prior = Gamma(1e-3, 1e-3) if alpha is None else alpha
        self.tau_prior = Gamma(1e-3, 1e-3) if tau is None else tau
        self.mean_prior = Normal(0.0, float(mean_precision))
        # 1e-300: constant data have no variance, and a rate must be positive
        spread = float(np.var(self.y, axis=0).mean()) + 1e-300
        tau_start = (
            Gamma(1.0, spread) if self.isotropic else broadcast(Gamma(1.0, spread), (columns,))
        )
        self.family = Product(
            W=MultivariateNormal(np.zeros((columns, directions)), np.eye(directions)),
            mu=Normal(self.y.mean(axis=0), 1.0 / spread),
            alpha=broadcast(Gamma(1.0, 1.0), (int(directions),)),
            tau=tau_start,
            x=MultivariateNormal(np.zeros((count, directions)), np.eye(directions)),
            local=("x",),
        )
        self.layout = layout_of(self.family)

    @property
    def data_rows(self) -> Float[Array, "rows columns"]:
        return self.y

    def expected_log_joint(
        self, moments: PyTree, rows: PyTree = None, scale: Scalar = 1.0
    ) -> Float[Array, ""]:
        y = self.y if rows is None else rows
        W, mu, x, alpha = moments["W"], moments["mu"], moments["x"], moments["alpha"]
        tau_log, tau = (jnp.broadcast_to(part, mu.value.shape) for part in moments["tau"])
        centred = y - mu.value[None, :]
        # E (y - mu - w'x)^2 by column: the square of y - mu has the variance of mu as well
        squares = jnp.sum(centred**2, axis=0) + len(y) * (mu.square - mu.value**2)
        squares += jnp.einsum("jkl,nkl->j", W.outer, x.outer) - 2.0 * jnp.einsum(
            "nj,jk,nk->j", centred, W.value, x.value
        )
        likelihood = 0.5 * jnp.sum(len(y) * (tau_log - _LOG_2PI) - tau * squares)
        of_x = -0.5 * (jnp.sum(jnp.einsum("nkk->n", x.outer)) + x.value.size * _LOG_2PI)
        of_w = 0.5 * W.value.shape[0] * jnp.sum(alpha.log - _LOG_2PI)
        of_w -= 0.5 * jnp.sum(alpha.value * jnp.einsum("jkk->k", W.outer))
        priors = self.alpha_prior.expected_log_prob(alpha) + self.tau_prior.expected_log_prob(
            moments["tau"]
        )
        return scale * (likelihood + of_x) + of_w + priors + self.mean_prior.expected_log_prob(mu)

    def start(self, key: Key) -> Product:
        """Loadings along the principal components, whose sign and order nothing tells apart."""
        centred = self.y - self.y.mean(axis=0)
        scores, sizes, axes = np.linalg.svd(centred, full_matrices=False)
        directions = self.family["alpha"].plate[0]
        loadings = np.zeros((self.y.shape[1], directions))
        kept = min(directions, len(sizes))
        loadings[:, :kept] = (axes[:kept] * sizes[:kept, None]).T / np.sqrt(len(self.y))
        # A column of zeros, where there are fewer components than directions, would never move
        loadings += (
            1e-3
            * np.abs(loadings).max()
            * host_rng(key, "loadings").standard_normal(loadings.shape)
        )
        spread = float(np.var(self.y, axis=0).mean()) + 1e-300
        scale = np.eye(directions) * (10.0 / spread)
        x = np.zeros((len(self.y), directions))
        # Loadings and scores both: with either at zero nothing moves
        x[:, :kept] = scores[:, :kept] * np.sqrt(len(self.y))
        start = self.family.with_factor("W", MultivariateNormal(loadings, scale))
        return start.with_factor("x", MultivariateNormal(x, 10.0 * np.eye(directions)))
