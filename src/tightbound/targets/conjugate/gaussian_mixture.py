"""A mixture of Gaussians with unknown weights, means and precisions."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._numerics import host_rng
from ..._types import Array, Key, PyTree, Scalar, Validated
from ...families.exponential.discrete import Categorical
from ...families.exponential.product import Product
from ...families.exponential.simplex import Dirichlet
from ...families.exponential.wishart import NormalWishart
from ...results import TargetError
from ..layout import Layout
from ..support import ArrayLike
from .base import AbstractCollapsedTarget, broadcast, check_rows, layout_of


class GaussianMixture(AbstractCollapsedTarget):
    """x_n ~ sum_k weights_k N(mean_k, precision_k^-1), with conjugate priors.

        weights ~ Dirichlet,   (mean_k, precision_k) ~ NormalWishart,   z_n ~ Categorical(weights),
        x_n ~ N(component z_n)

    Components that the data do not need keep their prior and small weights. Not for rows with
    missing entries; and its posterior has K! modes, equal but for the names of the components, of
    which coordinate ascent finds one.

    Arguments:
        x: data, `[N, d]` (or `[N]`).
        components: K.
        weight_prior: concentration of each weight; 1/K by default.
        mean_prior: `[d]`; the mean of the data by default.
        mean_strength: kappa of the prior; 1 by default.
        df: degrees of freedom of the prior; d by default.
        inverse_scale: of the prior, `[d, d]`; the covariance of the data by default.

    Source: Bishop 2006, section 10.2.
    """

    x: Float[Array, "rows dim"]
    family: Product
    layout: Layout
    weight_prior: Dirichlet
    component_prior: NormalWishart
    components: int = eqx.field(static=True)

    def __init__(
        self,
        x: Validated[ArrayLike, "check_rows"],
        components: Validated[int, "__init__"],
        *,
        weight_prior: Validated[ArrayLike | None, "Dirichlet"] = None,
        mean_prior: Validated[ArrayLike | None, "NormalWishart"] = None,
        mean_strength: float = 1.0,
        df: float | None = None,
        inverse_scale: Validated[ArrayLike | None, "NormalWishart"] = None,
    ):
        check_rows("GaussianMixture", x=x)
        data = np.asarray(x, np.float64)
        self.x = data[:, None] if data.ndim == 1 else data
        if not isinstance(components, (int, np.integer)) or components < 1:
            raise TargetError(
                "GaussianMixture: `components` must be an integer of at least 1, got"
                f" {components!r}."
            )
        self.components, dim = int(components), self.x.shape[1]
        concentration = np.full(
            self.components, 1.0 / components if weight_prior is None else weight_prior
        )
        spread = (
            np.atleast_2d(np.cov(self.x.T))
            if inverse_scale is None
            else np.asarray(inverse_scale, np.float64)
        )
        centre = self.x.mean(axis=0) if mean_prior is None else np.asarray(mean_prior, np.float64)
        self.weight_prior = Dirichlet(concentration)
        self.component_prior = NormalWishart(
            centre, mean_strength, float(dim if df is None else df), spread
        )
        self.family = self._factors(np.zeros((len(self.x), self.components)))
        self.layout = layout_of(self.family)

    @property
    def data_rows(self) -> Float[Array, "rows dim"]:
        return self.x

    def expected_log_joint(
        self, moments: PyTree, rows: PyTree = None, scale: Scalar = 1.0
    ) -> Float[Array, ""]:
        x = self.x if rows is None else rows
        components, weights = moments["components"], moments["weights"]
        prior = self.weight_prior.expected_log_prob(
            weights
        ) + self.component_prior.expected_log_prob(components)
        return prior + scale * jnp.sum(
            moments["z"].probs * self._log_likelihood(x, components, weights)
        )

    def _log_likelihood(
        self, x: Float[Array, "rows dim"], components: PyTree, weights: PyTree
    ) -> Float[Array, "rows K"]:
        """E[log weight_k + log N(x_n; component k)], nats."""
        # (x - mean)' precision (x - mean), expanded into the moments of the Normal-Wishart
        quadratic = (
            jnp.einsum("nd,kde,ne->nk", x, components.precision, x)
            - 2.0 * x @ components.precision_mean.T
        )
        constant = weights.log + 0.5 * (
            components.log_det - components.quadratic - x.shape[1] * np.log(2 * np.pi)
        )
        return constant[None, :] - 0.5 * quadratic

    def start(
        self, key: Key, responsibilities: Validated[ArrayLike | None, "start"] = None
    ) -> Product:
        """The prior's factors with responsibilities of rows for components.

        Given `[N, K]`, or by distances to K points chosen apart (Arthur & Vassilvitskii 2007).
        """
        resp = (
            _spread_out(np.asarray(self.x), self.components, key)
            if responsibilities is None
            else np.asarray(responsibilities)
        )
        if resp.shape != (len(self.x), self.components):
            raise TargetError(
                f"GaussianMixture.start: `responsibilities` must be [{len(self.x)},"
                f" {self.components}], got {resp.shape}."
            )
        with np.errstate(divide="ignore"):
            # exp(-700) is the least power that a double holds, so that no logit is -inf
            return self._factors(np.maximum(np.log(resp), -700.0))

    def _factors(self, logits: Float[np.ndarray, "rows K"]) -> Product:
        return Product(
            weights=self.weight_prior,
            components=broadcast(self.component_prior, (self.components,)),
            z=Categorical(logits),
            local=("z",),
        )


def _spread_out(
    x: Float[np.ndarray, "rows dim"], count: int, key: Key
) -> Float[np.ndarray, "rows K"]:
    """One-hot responsibilities of the nearest of `count` rows that lie apart.

    Each is drawn with probabilities proportional to squared distances from those before it.
    """
    rng = host_rng(key, "mixture start")
    # In sds of the columns, so that the distances do not depend on their units
    u = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-300)
    chosen = [int(rng.integers(len(u)))]
    nearest = np.sum((u - u[chosen[0]]) ** 2, axis=1)
    for _ in range(count - 1):
        total = nearest.sum()
        chosen.append(
            int(rng.choice(len(u), p=nearest / total) if total > 0 else rng.integers(len(u)))
        )
        nearest = np.minimum(nearest, np.sum((u - u[chosen[-1]]) ** 2, axis=1))
    distances = np.sum((u[:, None] - u[None, chosen]) ** 2, axis=2)
    return np.eye(count)[distances.argmin(axis=1)]
