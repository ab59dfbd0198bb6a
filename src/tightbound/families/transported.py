"""A product of factors on their native values, as a law on R^dim: what certificates can judge."""

from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from .._types import Array, PyTree
from .base import AbstractFamily
from .exponential.product import Product


@runtime_checkable
class ToNamedValues(Protocol):
    """What a target's layout can do: R^dim to named values and back."""

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates."""
        ...

    def constrain_with_log_det(self, z: Float[Array, "dim"]) -> tuple[PyTree, Float[Array, ""]]:
        """Values at z and the log-Jacobian, nats."""
        ...

    def unconstrain(self, values: PyTree) -> Float[Array, "dim"]:
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
    layout: ToNamedValues
    space: ClassVar[str] = "unconstrained"

    @property
    def dim(self) -> int:
        return self.layout.dim

    # A constant of most families, and here a property of the factors: read alike from an instance.
    @property
    def reparameterised(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the draws of all factors are smooth in their parameters."""
        return self.product.reparameterised

    def retract(self, step: "Transported") -> "Transported":
        """The product's own retraction."""
        return Transported(self.product.retract(step.product), self.layout)

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        return self.layout.unconstrain(self.product.values(self.product._sample(key)))

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        values, log_det = self.layout.constrain_with_log_det(z)
        return self.product._log_prob(jnp.asarray(self.product.flat(values))) + log_det
