"""Question 1: which family?

A class is a family, an instance is a member q, its array leaves are lambda.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree

from .._numerics import as_key, host_rng, scoped, to_device, to_host
from .._types import Array, CovarianceStructure, Key, PyTree
from ..results import PairingError

Nats = Array | float | np.floating
"""One number of nats: a 0-d array under JAX, a NumPy or Python float on the host."""


class AbstractFamily(eqx.Module):
    """A family of distributions over R^dim (or over native values); an instance is one member, q.

    Implementing a family: fields (the array leaves are what an optimiser moves), `dim`, `_sample`
    and `_log_prob`, each for ONE point; batching, keys, precision and shape errors live here.
    Override `draw` when the host can draw without compiling anything, `entropy` when it has a
    closed form.

    `space` says where q lives: "unconstrained" (R^dim of the target's `density`) or "native" (the
    target's values). `reparameterised` says whether `_sample` is a differentiable function of the
    leaves, and `has_density` whether there is a `log_prob` at all: a sampler's draws have none, and
    are checked as chains. `conditional` says whether q is a posterior only for given data x (an
    amortised family).

    Optional, for families that can: `noise_dim` and `_from_noise` (antithetic and quasi-random
    draws), `retract` and `monitored` (steps and errors in posterior sds, so that a stochastic
    solver needs no tuning).
    """

    space: ClassVar[str] = "unconstrained"
    reparameterised: ClassVar[bool] = True
    has_density: ClassVar[bool] = True
    conditional: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Number of coordinates of one draw."""

    @property
    def covariance_structure(self) -> CovarianceStructure:
        """How a Gaussian stores its covariance; "none" for every family that is no Gaussian."""
        return "none"

    @abc.abstractmethod
    def _sample(self, key: jax.Array, x: PyTree = None) -> jax.Array:
        """One draw, `[dim]`. `x` is what a conditional (amortised) family conditions on."""

    @abc.abstractmethod
    def _log_prob(self, z: jax.Array, x: PyTree = None) -> jax.Array:
        """Log density of one point `[dim]`, normalised, in nats."""

    def _log_prob_to_train(self, z: jax.Array, x: PyTree = None) -> jax.Array:
        """`_log_prob`, or where the parameters may leave their domain a concave continuation.

        What forward KL maximises.
        """
        return self._log_prob(z, x)

    @property
    def noise_dim(self) -> int | None:
        """How many standard normals `_from_noise` turns into one draw.

        None for families that draw in another way.
        """
        return None

    def _from_noise(self, noise: Array, x: PyTree = None) -> Array:
        """One draw `[dim]` as a smooth function of standard normal noise `[noise_dim]`."""
        raise PairingError(
            f"{type(self).__name__} is not a function of standard normal noise, which antithetic"
            ' and sobol draws need; use noise="independent".'
        )

    def retract(self, step: Any) -> Any:
        """The member that a small `step` leads to.

        `step` has q's own structure, and zeros mean no move.

        By default the step is added to the leaves. A family that knows its own scale reads the step
        in that scale, so that equal steps are equal in posterior sds whatever the units and the
        correlations of the target.
        """
        return eqx.apply_updates(self, step)

    def monitored(self) -> tuple[Array, Array]:
        """What a stochastic search watches to see whether it has arrived: values and their units,
        both `[groups, m]`.

        A change by one unit matters like one posterior sd. By default all leaves, in units of one;
        a family that can reports what is identified (means and sds) in place of parameters that may
        rotate or swap.
        """
        flat, _ = ravel_pytree(eqx.filter(self, eqx.is_inexact_array))
        return flat[None, :], jnp.ones_like(flat)[None, :]

    @scoped
    def sample(self, key: Key, x: PyTree = None, *, shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `shape + [dim]`, a NumPy array (a JAX one while it is traced).

        A single point by default.

        Raises:
            TypeError: when `key` is not an int, a typed JAX key or a legacy one.
        """
        q, key = to_device(self, self.dtype), as_key(key)
        if shape == ():
            return _off_device(q._sample(key, x))
        keys = jr.split(key, int(np.prod(shape)))
        return _off_device(jax.vmap(lambda k: q._sample(k, x))(keys).reshape((*shape, self.dim)))

    @scoped
    def log_prob(self, z: Array, x: PyTree = None) -> Array:
        """Log density in nats at `z` of shape `[..., dim]`.

        One number per leading index, as `sample` returns them.

        Raises:
            ValueError: when the last axis of `z` is not `dim`.
        """
        q, z = to_device((self, z), self.dtype)
        if z.ndim == 0 or z.shape[-1] != self.dim:
            raise ValueError(
                f"log_prob: `z` must end in an axis of length {self.dim} (the dimension of q), got"
                f" {z.shape}."
            )
        if z.ndim == 1:
            return _off_device(q._log_prob(z, x))
        flat = z.reshape((-1, self.dim))
        return _off_device(
            jax.vmap(lambda point: q._log_prob(point, x))(flat).reshape(z.shape[:-1])
        )

    def draw(self, n: int, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """`n` draws on the host with their log densities: `[n, dim]`, `[n]`.

        What the checks and summaries use.
        """
        z, log_q = _draw_compiled(self, as_key(key), n)
        return np.asarray(z), np.asarray(log_q)

    def log_prob_on_host(self, z: np.ndarray) -> np.ndarray:
        """Log densities `[n]` at `z [n, dim]`, NumPy in and out.

        Override where the host needs no compilation.
        """
        return np.asarray(_log_prob_compiled(self, z))

    def entropy(self) -> Nats | None:
        """Differential entropy in nats where it has a closed form, else None."""
        return None

    @property
    def dtype(self) -> np.dtype:
        """Floating dtype of lambda: float64 unless a fit was asked for float32."""
        leaves = [leaf for leaf in jax.tree.leaves(self) if eqx.is_inexact_array(leaf)]
        return np.dtype(leaves[0].dtype) if leaves else np.dtype(np.float64)

    def on_host(self) -> Any:
        """The same member with NumPy leaves, which no precision flag can narrow."""
        return to_host(self)


@scoped
def _draw_compiled(q: AbstractFamily, key: jax.Array, n: int):
    return _draw_jitted(to_device(q, q.dtype), key, n)


def _off_device(value: Array) -> Array:
    """A NumPy array, whose float64 no JAX flag narrows; what is being traced is left alone."""
    return value if isinstance(value, jax.core.Tracer) else np.asarray(value)


@scoped
def _log_prob_compiled(q: AbstractFamily, z: np.ndarray):
    return _log_prob_jitted(to_device(q, q.dtype), jnp.asarray(z, q.dtype))


@eqx.filter_jit
def _log_prob_jitted(q, z):
    return jax.vmap(q._log_prob)(z)


@eqx.filter_jit
def _draw_jitted(q, key, n):
    def one(k):
        z = q._sample(k)
        return z, q._log_prob(z)

    return jax.vmap(one)(jr.split(key, n))


def standard_normals(n: int, dim: int, key: Key, stream: str) -> np.ndarray:
    """Antithetic standard normal draws `[n, dim]` on the host (n even).

    Each draw comes with its mirror image.
    """
    half = host_rng(key, stream).standard_normal((-(-n // 2), dim))
    return np.concatenate([half, -half])[:n]


__all__ = ["AbstractFamily", "Nats", "standard_normals"]
