"""A head: distributions on R^dim indexed by eta, the vector that a network returns for one x."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._types import Array


class AbstractHead(eqx.Module):
    """Distributions q(u; eta) on R^dim, for `eta [size]` anywhere in R^size; u is standardised.

    Implementing one: `dim`, `size`, `log_prob` (normalised, nats) and `sample`, each for one eta.
    Where eta leaves the domain of the parameters, `log_prob` and `sample` use its nearest member,
    and `loss` goes on convexly instead, so that gradients never die there.

    `dim`: number of coordinates of u. `size`: number of parameters, the length of eta. `convex`:
    whether `loss` is convex in eta for every u. `reparameterised`: whether `sample` is smooth in
    eta.
    """

    if TYPE_CHECKING:  # fields or properties, which type checkers would put into every constructor
        dim: ClassVar[int]
        size: ClassVar[int]
    else:
        dim: eqx.AbstractVar[int]
        size: eqx.AbstractVar[int]
    convex: ClassVar[bool] = False
    reparameterised: ClassVar[bool] = False

    @abc.abstractmethod
    def log_prob(self, eta: Array, u: Array) -> Array:
        """log q(u; eta), one point `[dim]`, nats."""

    @abc.abstractmethod
    def sample(self, eta: Array, key: Array) -> Array:
        """One draw `[dim]`."""

    @property
    def circular(self) -> tuple[bool, ...]:
        """Which coordinates are angles in [-pi, pi], which are not standardised."""
        return (False,) * self.dim

    def loss(self, eta: Array, u: Array) -> Array:
        """-log q(u; eta), with a convex continuation where eta leaves the domain.

        What training minimises.
        """
        return -self.log_prob(eta, u)

    def residual(self, eta: Array, u: Array) -> Array:
        """r = d loss / d eta `[size]`; for natural parameters grad A(eta) - T(u).

        E[r | x] is zero at the optimum.
        """
        return jax.grad(self.loss)(eta, u)

    def start(self) -> np.ndarray:
        """The eta `[size]` where training starts: about the standardised prior."""
        return np.zeros(self.size)

    def linear_start(
        self, slope: np.ndarray, mean: np.ndarray, cov: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(W `[size, p]`, b `[size]`) such that eta = W x + b says u ~ N(slope x + mean, cov), as
        nearly as it can.

        What a pilot regression of u `[dim]` on x `[p]` knows. By default nothing of it: W is zero.
        """
        return np.zeros((self.size, slope.shape[1])), self.start()

    def moments(self, eta: Array) -> tuple[Array, Array] | None:
        """Means and sds `[dim]` (of an angle its direction and circular sd) where they are closed,
        else None.
        """
        return None


def wrap(angle: Any) -> Any:
    """The same direction in [-pi, pi)."""
    return jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi


__all__ = ["AbstractHead", "wrap"]
