"""The von Mises distribution: angles."""

import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import numpy.typing as npt
from jaxtyping import Bool, Float

from ..._types import Array, Validated
from .base import AbstractExponentialFamily, StatisticsType, Support
from .parameters import check_positive, plated
from .roots import falling_root

_LOG_2PI = math.log(2 * math.pi)
_TINY = 1e-12  # of k^2: below it the expansion of A at zero is exact to rounding


class CosAndSin(NamedTuple):
    """E cos z and E sin z, or the natural parameters that go with them."""

    cos: Float[Array, "*plate"]
    sin: Float[Array, "*plate"]


class VonMises(AbstractExponentialFamily):
    """The von Mises distribution, on (-pi, pi]: one angle with one mode.

    Not for axes (z and z + pi alike).

        q(z) = exp(k cos(z - mean)) / (2 pi I_0(k)),   t = (cos z, sin z)
        eta = k (cos mean, sin mean),  h = 1,  A = log 2 pi I_0(|eta|)

    Draws by rejection (Best & Fisher 1979), which jumps where the parameters move: no pathwise
    gradients. Mean to natural: Newton's method for I_1(k) / I_0(k) = |m|.

    Attributes:
        mean: the mean direction, radians.
        concentration: k, positive.
    """

    mean: Float[Array, "*plate"]
    concentration: Float[Array, "*plate"]
    reparameterised: ClassVar[bool] = False
    smooth_draws_no: ClassVar[str] = (
        "draws are accepted or rejected, and which of them jumps where the parameters move"
    )
    ranks: ClassVar[dict[str, int]] = {"mean": 0, "concentration": 0}
    statistic_ranks: ClassVar[tuple[int, ...]] = (0, 0)
    statistics_type: ClassVar[StatisticsType] = CosAndSin
    positive: ClassVar[tuple[str, ...]] = ("concentration",)
    support: ClassVar[Support] = "circular"

    def __init__(
        self,
        mean: Validated[npt.ArrayLike, "plated"],
        concentration: Validated[npt.ArrayLike, "plated"],
    ):
        self.mean, self.concentration = plated(
            "VonMises", mean=(mean, 0), concentration=(concentration, 0)
        )
        check_positive("VonMises", concentration=self.concentration)

    @property
    def _event(self) -> tuple[int, ...]:
        return ()

    def _natural(self) -> CosAndSin:
        return CosAndSin(
            self.concentration * jnp.cos(self.mean), self.concentration * jnp.sin(self.mean)
        )

    @classmethod
    def _of_natural(cls, eta: CosAndSin) -> "VonMises":
        return cls(jnp.arctan2(eta.sin, eta.cos), _length(eta))

    @classmethod
    def _of_mean(cls, mean: CosAndSin) -> "VonMises":
        length = _length(mean)
        start = length * (2.0 - length**2) / (1.0 - length**2)  # Banerjee et al. 2005, eq. 4.4
        log_k = falling_root(
            lambda u: length - jsp.i1e(jnp.exp(u)) / jsp.i0e(jnp.exp(u)), jnp.log(start)
        )
        return cls(jnp.arctan2(mean.sin, mean.cos), jnp.exp(log_k))

    @classmethod
    def _log_partition(cls, eta: CosAndSin) -> Float[Array, ""]:
        return log_partition(eta.cos, eta.sin)

    def _statistics(self, value: Float[Array, ""]) -> CosAndSin:
        return CosAndSin(jnp.cos(value), jnp.sin(value))

    def _inside(self, value: Float[Array, ""]) -> tuple[Float[Array, ""], Bool[Array, ""]]:
        return value, jnp.abs(value) <= jnp.pi

    def _draw(self, key: jax.Array) -> Float[Array, ""]:
        angle = self.mean + draw_centred(key, self.concentration)
        return jnp.arctan2(jnp.sin(angle), jnp.cos(angle))


def log_partition(cos: Float[Array, ""], sin: Float[Array, ""]) -> Float[Array, ""]:
    """A = log 2 pi I_0(k), k the length of the natural parameters: smooth at zero, no overflow."""
    square = cos**2 + sin**2
    # At zero k has no derivative; A = log 2 pi + k^2 / 4 to this order.
    k = jnp.sqrt(jnp.maximum(square, _TINY))
    return _LOG_2PI + jnp.where(square > _TINY, jnp.log(jsp.i0e(k)) + k, 0.25 * square)


def _length(pair: CosAndSin) -> Float[Array, ""]:
    """The length of a vector of two, with a finite gradient at zero."""
    square = pair[0] ** 2 + pair[1] ** 2
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(square.dtype).tiny))


def draw_centred(key: jax.Array, k: Float[Array, ""]) -> Float[jax.Array, ""]:
    """A draw with mean direction 0, by rejection from a wrapped Cauchy distribution.

    Source: Best & Fisher 1979, section 2.
    """
    tau = 1.0 + jnp.sqrt(1.0 + 4.0 * k**2)
    # r - 1 in place of r: for small and for large k the textbook form cancels
    rho = (tau - jnp.sqrt(2.0 * tau)) / (2.0 * k)
    r = jnp.where(k > 1e-5, (1.0 + rho**2) / (2.0 * rho), 1.0 / k + k)

    def propose(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        key, _, _ = state
        key, first, second, third = jr.split(key, 4)
        dtype = jnp.result_type(k)
        z = jnp.cos(jnp.pi * jr.uniform(first, dtype=dtype))
        f = (1.0 + r * z) / (r + z)
        c = k * (r - f)
        u = jr.uniform(second, dtype=dtype, minval=jnp.finfo(dtype).tiny)
        accepted = (c * (2.0 - c) - u > 0) | (jnp.log(c / u) + 1.0 - c >= 0)
        sign = jnp.where(jr.bernoulli(third), 1.0, -1.0)
        return key, sign.astype(dtype) * jnp.arccos(jnp.clip(f, -1.0, 1.0)), accepted

    start: tuple[Array, Array, Array] = (key, jnp.zeros_like(k), jnp.asarray(False))
    return jnp.asarray(jax.lax.while_loop(lambda state: ~state[2], propose, start)[1])


__all__ = ["CosAndSin", "VonMises", "draw_centred", "log_partition"]
