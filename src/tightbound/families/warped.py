"""A Gaussian whose coordinates are bent one by one: skewed, or with tails of their own."""

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Float

from .._numerics import namespace
from .._types import Array, Key, PyTree, Scalar
from .base import AbstractFamily, on_one_thread
from .gaussian import Gaussian
from .scales import as_floating


class Warped(AbstractFamily):
    """A Gaussian N(m, C) whose coordinates are bent by the sinh-arcsinh warp, each by its own.

    z_j = m_j + s_j S_j((x_j - m_j) / s_j) for x ~ N(m, C) and s the sds, with

        S(u) = sinh((arcsinh u + skew) / tail) - sinh(skew / tail).

    skew > 0 leans to the right, tail < 1 makes tails heavier than a Gaussian's, tail > 1 lighter.
    skew = 0 and tail = 1 is the Gaussian itself: `Warped.around(q)` starts there exactly, and m
    stays the median. The dependence between coordinates is the Gaussian's (a Gaussian copula). For
    log scales of hierarchical models and volatilities, whose sd a Gaussian underestimates. Not for
    funnels, where the scale of one coordinate depends on another (NestedGaussian), nor for several
    modes.

    Source: Jones & Pewsey 2009, eq. 2.

    Attributes:
        base: the Gaussian beneath.
        skew: one number for each coordinate.
        log_tail: log of `tail`, one for each coordinate.
    """

    base: Gaussian
    skew: Float[Array, "dim"] = eqx.field(converter=as_floating)
    log_tail: Float[Array, "dim"] = eqx.field(converter=as_floating)

    def __check_init__(self) -> None:
        for name in ("skew", "log_tail"):
            if np.shape(getattr(self, name)) != (self.base.dim,):
                shape = np.shape(getattr(self, name))
                raise ValueError(
                    f"Warped: `{name}` must have shape [{self.base.dim}] as the base has, got"
                    f" {shape}."
                )

    @staticmethod
    def full(dim: int) -> "Warped":
        """The standard normal, with room for any correlation, skew and tails."""
        return Warped.around(Gaussian.full(dim))

    @staticmethod
    def diagonal(dim: int) -> "Warped":
        """The standard normal, with room for skew and tails of independent coordinates."""
        return Warped.around(Gaussian.diagonal(dim))

    @staticmethod
    def around(base: Gaussian) -> "Warped":
        """Exactly the given Gaussian, ready to be bent."""
        return Warped(base, np.zeros(base.dim), np.zeros(base.dim))

    @property
    def dim(self) -> int:
        return self.base.dim

    @property
    def noise_dim(self) -> int:
        return self.base.noise_dim

    def penalty(self) -> Scalar:
        """(|skew|^2 + |log tail|^2) / 40, nats.

        As much as a skew or a log tail of 4.5 costs half a nat: next to nothing where the posterior
        asks for a warp, and enough to hold one that fixed draws hardly decide.
        """
        return 0.025 * ((self.skew**2).sum() + (self.log_tail**2).sum())

    def retract(self, step: "Warped") -> "Warped":
        return Warped(
            self.base.retract(step.base), self.skew + step.skew, self.log_tail + step.log_tail
        )

    def monitored(self) -> tuple[Float[Array, "groups m"], Float[Array, "groups m"]]:
        """The base's means and sds in units of the sds, skews and log tails in units of 1."""
        xp, (values, units) = namespace(self.skew), self.base.monitored()
        own = xp.stack([self.skew, self.log_tail])
        return xp.concatenate([values, own]), xp.concatenate([units, xp.ones_like(own)])

    @on_one_thread
    def draw(self, n: int, key: Key) -> tuple[Float[np.ndarray, "n dim"], Float[np.ndarray, "n"]]:
        """`n` draws from mirrored pairs of the base, and log densities; nothing to compile."""
        q = self.on_host()
        x, log_base = q.base.draw(n, key)
        z, log_slope = q._bent(x)
        return np.asarray(z), log_base - np.asarray(log_slope)

    @on_one_thread
    def log_prob_on_host(self, z: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n"]:
        q = self.on_host()
        x, log_slope = q._unbent(z)
        return q.base.log_prob_on_host(np.asarray(x)) - np.asarray(log_slope)

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        return self._from_noise(jr.normal(key, (self.noise_dim,), self.dtype))

    def _from_noise(self, noise: Float[Array, "noise"], x: PyTree = None) -> Float[Array, "dim"]:
        return self._bent(self.base._from_noise(noise))[0]

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        inner, log_slope = self._unbent(z)
        return self.base._log_prob(inner) - log_slope

    def _bent(
        self, x: Float[Array, "*batch dim"]
    ) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        """z and log |dz/dx|."""
        xp, (centre, sd, tail) = namespace(x, self.skew), self._scales()
        u = (x - centre) / sd
        inside = (xp.arcsinh(u) + self.skew) / tail
        z = centre + sd * (xp.sinh(inside) - xp.sinh(self.skew / tail))
        return z, self._log_slope(inside, u).sum(-1)

    def _unbent(
        self, z: Float[Array, "*batch dim"]
    ) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        """x and log |dz/dx| there."""
        xp, (centre, sd, tail) = namespace(z, self.skew), self._scales()
        inside = xp.arcsinh((z - centre) / sd + xp.sinh(self.skew / tail))
        u = xp.sinh(inside * tail - self.skew)
        return centre + sd * u, self._log_slope(inside, u).sum(-1)

    def _log_slope(
        self, inside: Float[Array, "*batch dim"], u: Float[Array, "*batch dim"]
    ) -> Float[Array, "*batch dim"]:
        """log of cosh(inside) / (tail sqrt(1 + u^2)), safe for large |inside|."""
        xp = namespace(inside, self.skew)
        log_cosh = xp.logaddexp(inside, -inside) - np.log(2.0)
        return log_cosh - self.log_tail - 0.5 * xp.log1p(u**2)

    def _scales(self) -> tuple[Float[Array, "dim"], Float[Array, "dim"], Float[Array, "dim"]]:
        """m, s and tail."""
        return self.base.mean, self.base.scale.sd, namespace(self.log_tail).exp(self.log_tail)


__all__ = ["Warped"]
