"""Heads for angles: von Mises in natural parameters (convex), and a mixture of them (not so)."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import numpy as np
from jaxtyping import Float

from ..._types import Array
from ...families.exponential.von_mises import draw_centred, log_partition
from ...families.head import AbstractHead, wrap

# Least square of a concentration: the root and the ratio of Bessel functions have a gradient there.
_TINY = 1e-12
# Mean resultant lengths: their logarithm and its root stay finite, with a gradient.
_LEAST_LENGTH, _MOST_LENGTH = 1e-30, 1.0 - 1e-15


class VonMises(AbstractHead):
    """One angle u in [-pi, pi): q(u; eta) = exp(eta_1 cos u + eta_2 sin u - A(eta)).

    A = log 2 pi I_0(|eta|). Its direction is atan2(eta_2, eta_1), its concentration |eta|. eta is a
    natural parameter without any constraint, and the gradient of the loss is bounded by 2, which is
    what the theorem of global convergence asks for. Not for several directions at once:
    VonMisesMixture, or a periodic Spline.

    Source: Mardia & Jupp 2000, section 3.5.4; used for amortised inference by McNamara, Loper &
    Regier 2024, section 5.1.
    """

    convex: ClassVar[bool] = True

    @property
    def dim(self) -> int:
        return 1

    @property
    def size(self) -> int:
        return 2

    @property
    def circular(self) -> tuple[bool, ...]:
        return (True,)

    def log_prob(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        return eta[0] * jnp.cos(u[0]) + eta[1] * jnp.sin(u[0]) - log_partition(eta[0], eta[1])

    def sample(self, eta: Float[Array, "size"], key: jax.Array) -> Float[Array, "dim"]:
        concentration = jnp.maximum(jnp.sqrt(jnp.sum(eta**2)), 1e-6)
        return wrap(draw_centred(key, concentration) + jnp.arctan2(eta[1], eta[0]))[None]

    def moments(self, eta: Float[Array, "size"]) -> tuple[Float[Array, "dim"], Float[Array, "dim"]]:
        """Direction and circular sd sqrt(-2 log R), R = I_1 / I_0 the mean resultant length."""
        # Exponentially scaled Bessel functions: the others overflow at a concentration of 700.
        length = jnp.sqrt(jnp.maximum(jnp.sum(eta**2), _TINY))
        resultant = jnp.clip(jsp.i1e(length) / jsp.i0e(length), _LEAST_LENGTH, _MOST_LENGTH)
        return jnp.arctan2(eta[1], eta[0])[None], jnp.sqrt(-2 * jnp.log(resultant))[None]


class VonMisesMixture(AbstractHead):
    """One angle, a mixture of von Mises distributions: sum_k w_k q(u; eta_k).

    Minus its log density is not convex in eta, so that networks from several seeds may differ.

    Attributes:
        components: K, at least 2.
    """

    components: int = eqx.field(static=True, default=4)

    def __check_init__(self):
        if self.components < 2:
            raise ValueError(
                f"VonMisesMixture: `components` must be at least 2, got {self.components}; use"
                " VonMises."
            )

    @property
    def dim(self) -> int:
        return 1

    @property
    def size(self) -> int:
        return 3 * self.components

    @property
    def circular(self) -> tuple[bool, ...]:
        return (True,)

    def log_prob(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        logits, etas = self._parts(eta)
        each = jax.vmap(VonMises().log_prob, (0, None))(etas, u)
        return jsp.logsumexp(jax.nn.log_softmax(logits) + each)

    def sample(self, eta: Float[Array, "size"], key: jax.Array) -> Float[Array, "dim"]:
        logits, etas = self._parts(eta)
        choose, draw = jr.split(key)
        return VonMises().sample(etas[jr.categorical(choose, logits)], draw)

    def start(self) -> Float[np.ndarray, "size"]:
        """Weak components spread evenly over the circle: equal ones could never part."""
        angles = 2 * np.pi * np.arange(self.components) / self.components
        return np.concatenate(
            [np.zeros(self.components), np.stack([np.cos(angles), np.sin(angles)], axis=1).ravel()]
        )

    def _parts(
        self, eta: Float[Array, "size"]
    ) -> tuple[Float[Array, "components"], Float[Array, "components 2"]]:
        """Logits of the weights, and the eta of each component."""
        return eta[: self.components], eta[self.components :].reshape((self.components, 2))


__all__ = ["VonMises", "VonMisesMixture"]
