"""A mixture of Gaussians (a mixture density network): several modes, and no convexity."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import numpy as np
from jaxtyping import Float

from ..._types import Array, Validated
from ...families.head import AbstractHead
from .gaussian import Gaussian, Structure

_APART = 0.5  # prior sds by which components start off the centre: equal ones could never part


class Mixture(AbstractHead):
    """u ~ sum_k w_k N_k, each component in the coordinates of the Gaussian head.

    For several modes or skewed shapes in a few dimensions. Minus its log density is not convex in
    eta, so that training may end at several optima: check that networks from several seeds agree.

    Source: Bishop 1994 (mixture density networks).

    Attributes:
        dim: d.
        components: K, at least 2.
        structure: of each component: "full" or "diagonal".
    """

    # A field in the place of a property: equinox allows it, pyright has no way to say so.
    dim: int = eqx.field(static=True)  # pyright: ignore[reportIncompatibleMethodOverride]
    components: int = eqx.field(static=True, default=8)
    structure: Validated[Structure, "__check_init__"] = eqx.field(static=True, default="full")

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

    def log_prob(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        logits, etas = self._parts(eta)
        return jsp.logsumexp(
            jax.nn.log_softmax(logits) + jax.vmap(self.component.log_prob, (0, None))(etas, u)
        )

    def loss(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        """With each component's continuation below its floor, so that no gradient dies there."""
        logits, etas = self._parts(eta)
        return -jsp.logsumexp(
            jax.nn.log_softmax(logits) - jax.vmap(self.component.loss, (0, None))(etas, u)
        )

    def sample(self, eta: Float[Array, "size"], key: jax.Array) -> Float[Array, "dim"]:
        logits, etas = self._parts(eta)
        choose, draw = jr.split(key)
        return self.component.sample(etas[jr.categorical(choose, logits)], draw)

    def moments(self, eta: Float[Array, "size"]) -> tuple[Float[Array, "dim"], Float[Array, "dim"]]:
        logits, etas = self._parts(eta)
        weights = jax.nn.softmax(logits)
        means, sds = jax.vmap(self.component.moments)(etas)
        mean = weights @ means
        return mean, jnp.sqrt(weights @ (sds**2 + means**2) - mean**2)

    def start(self) -> Float[np.ndarray, "size"]:
        """Components of the prior's width, each off its centre by half an sd or so."""
        etas = np.tile(self.component.start(), (self.components, 1))
        etas[:, : self.dim] += self._offsets()
        return np.concatenate([np.zeros(self.components), etas.ravel()])

    def linear_start(
        self,
        slope: Float[np.ndarray, "dim p"],
        mean: Float[np.ndarray, "dim"],
        cov: Float[np.ndarray, "dim dim"],
    ) -> tuple[Float[np.ndarray, "size p"], Float[np.ndarray, "size"]]:
        weight, bias = self.component.linear_start(slope, mean, cov)
        biases = np.tile(bias, (self.components, 1))
        biases[:, : self.dim] += self._offsets()
        weights = np.concatenate(
            [np.zeros((self.components, slope.shape[1])), np.tile(weight, (self.components, 1))]
        )
        return weights, np.concatenate([np.zeros(self.components), biases.ravel()])

    def _offsets(self) -> Float[np.ndarray, "components dim"]:
        # The same for every seed of a network: that the weights differ is enough.
        return np.random.default_rng(0).standard_normal((self.components, self.dim)) * _APART

    def _parts(
        self, eta: Float[Array, "size"]
    ) -> tuple[Float[Array, "components"], Float[Array, "components each"]]:
        """Logits of the weights, and the eta of each component."""
        return eta[: self.components], eta[self.components :].reshape(
            (self.components, self.component.size)
        )


__all__ = ["Mixture"]
