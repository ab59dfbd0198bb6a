"""Heads for angles: von Mises in natural parameters (convex), and a mixture of them (not convex)."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import numpy as np

from ..._types import Array
from ...families.exponential.von_mises import draw_centred, log_partition
from ...families.head import AbstractHead, wrap

_TINY = 1e-12


class VonMises(AbstractHead):
    """One angle u in [-pi, pi): q(u.

    Eta) = exp(eta_1 cos u + eta_2 sin u - A(eta)), A = log 2 pi I_0(|eta|).

    Its direction is atan2(eta_2, eta_1), its concentration |eta|. eta is a natural parameter
    without any constraint, and the gradient of the loss is bounded by 2, which is what the theorem
    of global convergence asks for. Not for several directions at once: VonMisesMixture, or a
    periodic Spline.

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

    def log_prob(self, eta: Array, u: Array) -> Array:
        return eta[0] * jnp.cos(u[0]) + eta[1] * jnp.sin(u[0]) - log_partition(eta[0], eta[1])

    def sample(self, eta: Array, key: Array) -> Array:
        concentration = jnp.maximum(jnp.sqrt(jnp.sum(eta**2)), 1e-6)
        return wrap(draw_centred(key, concentration) + jnp.arctan2(eta[1], eta[0]))[None]

    def moments(self, eta: Array) -> tuple[Array, Array]:
        """Direction and circular sd sqrt(-2 log R), R = I_1 / I_0 the mean resultant length."""
        length = jnp.sqrt(jnp.maximum(jnp.sum(eta**2), _TINY))
        resultant = jnp.clip(jsp.i1e(length) / jsp.i0e(length), 1e-30, 1.0 - 1e-15)
        return jnp.arctan2(eta[1], eta[0])[None], jnp.sqrt(-2 * jnp.log(resultant))[None]


class VonMisesMixture(AbstractHead):
    """One angle, a mixture of von Mises distributions: sum_k w_k q(u; eta_k).

    Not convex: seeds may disagree.

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

    def log_prob(self, eta: Array, u: Array) -> Array:
        logits, etas = self._parts(eta)
        each = jax.vmap(VonMises().log_prob, (0, None))(etas, u)
        return jsp.logsumexp(jax.nn.log_softmax(logits) + each)

    def sample(self, eta: Array, key: Array) -> Array:
        logits, etas = self._parts(eta)
        choose, draw = jr.split(key)
        return VonMises().sample(etas[jr.categorical(choose, logits)], draw)

    def start(self) -> np.ndarray:
        """Weak components spread evenly over the circle: equal ones could never part."""
        angles = 2 * np.pi * np.arange(self.components) / self.components
        return np.concatenate(
            [np.zeros(self.components), np.stack([np.cos(angles), np.sin(angles)], axis=1).ravel()]
        )

    def _parts(self, eta: Array) -> tuple[Array, Array]:
        return eta[: self.components], eta[self.components :].reshape((self.components, 2))


__all__ = ["VonMises", "VonMisesMixture"]
