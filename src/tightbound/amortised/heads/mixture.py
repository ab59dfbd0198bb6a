"""A mixture of Gaussians (a mixture density network).

Several modes, without the promise of convexity.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import numpy as np

from ..._types import Array
from ...families.head import AbstractHead
from .gaussian import Gaussian


class Mixture(AbstractHead):
    """u ~ sum_k w_k N_k, each component in the coordinates of the Gaussian head.

    Not convex: seeds may disagree.

    For several modes or skewed shapes in a few dimensions. The convex tier's promise is lost: check
    that seeds agree.

    Source: Bishop 1994 (mixture density networks).

    Attributes:
        dim: d.
        components: K, at least 2.
        structure: of each component: "full" or "diagonal".
    """

    dim: int = eqx.field(static=True)
    components: int = eqx.field(static=True, default=8)
    structure: str = eqx.field(static=True, default="full")

    def __check_init__(self):
        if self.components < 2:
            raise ValueError(
                f"Mixture head: `components` must be at least 2, got {self.components}; use"
                " Gaussian."
            )
        if self.structure == "mean":
            raise ValueError("Mixture head: `structure` must be 'full' or 'diagonal'.")

    @property
    def component(self) -> Gaussian:
        return Gaussian(self.dim, self.structure)

    @property
    def size(self) -> int:
        return self.components * (1 + self.component.size)

    def log_prob(self, eta: Array, u: Array) -> Array:
        logits, etas = self._parts(eta)
        return jsp.logsumexp(
            jax.nn.log_softmax(logits) + jax.vmap(self.component.log_prob, (0, None))(etas, u)
        )

    def loss(self, eta: Array, u: Array) -> Array:
        """With each component's continuation below its floor, so that no gradient dies there."""
        logits, etas = self._parts(eta)
        return -jsp.logsumexp(
            jax.nn.log_softmax(logits) - jax.vmap(self.component.loss, (0, None))(etas, u)
        )

    def sample(self, eta: Array, key: Array) -> Array:
        logits, etas = self._parts(eta)
        choose, draw = jr.split(key)
        return self.component.sample(etas[jr.categorical(choose, logits)], draw)

    def moments(self, eta: Array) -> tuple[Array, Array]:
        logits, etas = self._parts(eta)
        weights = jax.nn.softmax(logits)
        means, sds = jax.vmap(self.component.moments)(etas)
        mean = weights @ means
        return mean, jnp.sqrt(weights @ (sds**2 + means**2) - mean**2)

    def start(self) -> np.ndarray:
        """Components of the prior's width, off its centre by half an sd in directions of their own."""
        etas = np.tile(self.component.start(), (self.components, 1))
        etas[:, : self.dim] += self._offsets()
        return np.concatenate([np.zeros(self.components), etas.ravel()])

    def linear_start(
        self, slope: np.ndarray, mean: np.ndarray, cov: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = self.component.linear_start(slope, mean, cov)
        biases = np.tile(bias, (self.components, 1))
        biases[:, : self.dim] += self._offsets()
        weights = np.concatenate(
            [np.zeros((self.components, slope.shape[1])), np.tile(weight, (self.components, 1))]
        )
        return weights, np.concatenate([np.zeros(self.components), biases.ravel()])

    def _offsets(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((self.components, self.dim)) * 0.5

    def _parts(self, eta: Array) -> tuple[Array, Array]:
        return eta[: self.components], eta[self.components :].reshape(
            (self.components, self.component.size)
        )


__all__ = ["Mixture"]
