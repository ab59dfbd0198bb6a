"""A head: distributions on R^dim indexed by eta, the vector that a network returns for one x."""

import abc
from typing import TYPE_CHECKING, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._types import Array


class AbstractHead(eqx.Module):
    """Distributions q(u; eta) on R^dim, for eta anywhere in R^size; u is standardised.

    Implementing one: `dim`, `size`, `log_prob` (normalised, nats) and `sample`, each for one eta.
    Where eta leaves the domain of the parameters, `log_prob` and `sample` use its nearest member,
    and `loss` goes on convexly instead, so that gradients never die there.

    `dim`: number of coordinates of u. `size`: number of parameters, the length of eta. `convex`:
    whether `loss` is convex in eta for every u. `reparameterised`: whether `sample` is smooth in
    eta.
    """

    # Fields or properties, as a head likes: type checkers would put fields into every constructor.
    if TYPE_CHECKING:

        @property
        def dim(self) -> int: ...

        @property
        def size(self) -> int: ...

    else:
        dim: eqx.AbstractVar[int]
        size: eqx.AbstractVar[int]
    convex: ClassVar[bool] = False
    reparameterised: ClassVar[bool] = False

    @abc.abstractmethod
    def log_prob(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        """log q(u; eta) at one point, nats."""

    @abc.abstractmethod
    def sample(self, eta: Float[Array, "size"], key: jax.Array) -> Float[Array, "dim"]:
        """One draw."""

    @property
    def circular(self) -> tuple[bool, ...]:
        """Which coordinates are angles in [-pi, pi], which are not standardised."""
        return (False,) * self.dim

    def loss(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        """What training minimises: -log q(u; eta), and beyond the domain a convex continuation."""
        return -self.log_prob(eta, u)

    def residual(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, "size"]:
        """r = d loss / d eta, of which E[r | x] is zero at the optimum.

        For natural parameters it is grad A(eta) - T(u).
        """
        return jax.grad(self.loss)(eta, u)

    def start(self) -> Float[np.ndarray, "size"]:
        """The eta where training starts: about the standardised prior."""
        return np.zeros(self.size)

    def linear_start(
        self,
        slope: Float[np.ndarray, "dim p"],
        mean: Float[np.ndarray, "dim"],
        cov: Float[np.ndarray, "dim dim"],
    ) -> tuple[Float[np.ndarray, "size p"], Float[np.ndarray, "size"]]:
        """(W, b) such that eta = W x + b says u ~ N(slope x + mean, cov), as nearly as it can.

        That is what a pilot regression of u on x knows. By default W is zero: nothing of it.
        """
        return np.zeros((self.size, slope.shape[1])), self.start()

    def moments(
        self, eta: Float[Array, "size"]
    ) -> tuple[Float[Array, "dim"], Float[Array, "dim"]] | None:
        """Means and sds, of an angle its direction and circular sd; None without a closed form."""
        return None


def wrap(angle: Float[Array, "*shape"]) -> Float[jax.Array, "*shape"]:
    """The same direction in [-pi, pi)."""
    return jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi


__all__ = ["AbstractHead", "wrap"]
