"""A product of factors on their native values, seen from R^d.

So that weights and certificates can judge it.
"""

from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from .._types import Array, PyTree
from .base import AbstractFamily
from .exponential.product import Product


class Bijection(Protocol):
    """What a target's layout can do: R^dim to named values and back."""

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates."""
        ...

    def constrain_with_log_det(self, z: Array) -> Any:
        """Values at `z [dim]` and the log-Jacobian, nats."""
        ...

    def unconstrain(self, values: PyTree) -> Any:
        """The inverse."""
        ...


class Transported(AbstractFamily):
    """The law of z = unconstrain(values), values ~ a product on native values.

        log q(z) = log product(constrain(z)) + log|det d constrain / dz|

    Not for factors of whole numbers, which no bijection carries to R^d.

    Attributes:
        product: a Product whose factors are those of the layout.
        layout: the target's bijection.
    """

    product: Product
    layout: Any
    space: ClassVar[str] = "unconstrained"

    @property
    def dim(self) -> int:
        return self.layout.dim

    @property
    def reparameterised(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the draws of all factors are smooth in their parameters."""
        return self.product.reparameterised

    def retract(self, step: Any) -> "Transported":
        """The product's own retraction."""
        return Transported(self.product.retract(step.product), self.layout)

    def _sample(self, key: jax.Array, x: PyTree = None) -> jax.Array:
        return self.layout.unconstrain(self.product.values(self.product._sample(key)))

    def _log_prob(self, z: jax.Array, x: PyTree = None) -> jax.Array:
        values, log_det = self.layout.constrain_with_log_det(z)
        return self.product._log_prob(jnp.asarray(self.product.flat(values))) + log_det
