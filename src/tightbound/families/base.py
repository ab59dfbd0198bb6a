"""Question 1: which family?

A class is a family, an instance is a member q, its array leaves are lambda.
"""

import abc
import functools
from collections.abc import Callable
from typing import ClassVar, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, Shaped

from .._numerics import as_key, host_algebra, host_rng, scoped, to_device, to_host
from .._types import Array, CovarianceStructure, Key, PyTree, Scalar, Self, Validated
from ..results import PairingError

MOMENT_DRAWS = 4000
"""Draws for the moments of a q without closed forms: an error of 1.6 % of an sd in the means."""

HOST_NUMBERS = 4_000_000
"""Entries of the roots of many Gaussians held at once on the host: 32 MB."""

P = ParamSpec("P")
T = TypeVar("T")


def on_one_thread(method: Callable[P, T]) -> Callable[P, T]:
    """Run a method of NumPy algebra in `host_algebra()`.

    A product of matrices has other last bits with another number of BLAS threads. A fit runs on
    one; what a user calls on its q must not depend on the machine's cores either.
    """

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with host_algebra():
            return method(*args, **kwargs)

    return wrapper


class AbstractFamily(eqx.Module):
    """A family of distributions over R^dim (or over native values); an instance is one member, q.

    Implementing a family: fields (the array leaves are what an optimiser moves), `dim`, `_sample`
    and `_log_prob`, each for ONE point; batching, keys, precision and shape errors live here.
    Override `draw` when the host can draw without compiling anything (`on_one_thread` where it
    multiplies matrices), `entropy` when it has a closed form.

    `space` says where q lives: "unconstrained" (R^dim of the target's `density`) or "native" (the
    target's values). `reparameterised` says whether `_sample` is a differentiable function of the
    leaves, `smooth_draws_no` why not where that needs a word, and `has_density` whether there is a
    `log_prob` at all: a sampler's draws have none, and are checked as chains. `conditional` says
    whether q is a posterior only for given data x (an amortised family).

    Optional, for families that can: `noise_dim` and `_from_noise` (antithetic and quasi-random
    draws), `retract` and `monitored` (steps and errors in posterior sds, so that a stochastic
    solver needs no tuning).
    """

    space: ClassVar[str] = "unconstrained"
    reparameterised: ClassVar[bool] = True
    smooth_draws_no: ClassVar[str] = ""
    has_density: ClassVar[bool] = True
    conditional: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Number of coordinates of one draw."""

    def parts(self) -> tuple["AbstractFamily", ...]:
        """The components of a mixture; of everything else the member itself."""
        return (self,)

    @property
    def covariance_structure(self) -> CovarianceStructure:
        """How a Gaussian stores its covariance; "none" for every family that is no Gaussian."""
        return "none"

    @abc.abstractmethod
    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        """One draw. `x` is what a conditional (amortised) family conditions on."""

    @abc.abstractmethod
    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        """Log density of one point, normalised, in nats."""

    def _log_prob_to_train(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        """What forward KL maximises: `_log_prob`, continued where it is not defined.

        A family whose parameters may leave their domain in training gives a concave continuation
        there, so that the gradient leads back.
        """
        return self._log_prob(z, x)

    @property
    def noise_dim(self) -> int | None:
        """How many standard normals `_from_noise` turns into one draw.

        None for families that draw in another way.
        """
        return None

    def _from_noise(self, noise: Float[Array, "noise"], x: PyTree = None) -> Float[Array, "dim"]:
        """One draw as a smooth function of `noise_dim` standard normals."""
        raise PairingError(
            f"{type(self).__name__} is not a function of standard normal noise, which antithetic"
            ' and sobol draws need; use noise="independent".'
        )

    def retract(self, step: PyTree) -> Self:
        """The member that a small `step` leads to; zeros mean no move.

        `step` has the structure of q, and None in the place of leaves that do not move. By default
        it is added to the leaves. A family that knows its own scale reads the step in that scale,
        so that equal steps are equal in posterior sds whatever the units and the correlations of
        the target.
        """
        return eqx.apply_updates(self, step)

    def penalty(self) -> Scalar:
        """Nats that a search on fixed draws is charged for q's shape, lest it fit their noise."""
        return 0.0

    def monitored(self) -> tuple[Float[Array, "groups m"], Float[Array, "groups m"]]:
        """The values by which a stochastic search sees whether it has arrived, and their units.

        A change by one unit matters like one posterior sd. By default all leaves, in units of one;
        a family that can reports what is identified (means and sds) in place of parameters that may
        rotate or swap.
        """
        flat, _ = ravel_pytree(eqx.filter(self, eqx.is_inexact_array))
        return flat[None, :], jnp.ones_like(flat)[None, :]

    @scoped
    def sample(
        self, key: Key, x: PyTree = None, *, shape: tuple[int, ...] = ()
    ) -> Float[Array, "*shape dim"]:
        """Draws `[*shape, dim]`, a single point by default.

        A NumPy array, or a JAX one while it is traced.

        Raises:
            TypeError: when `key` is not an int, a typed JAX key or a legacy one.
        """
        q, key = to_device(self, self.dtype), as_key(key)
        if shape == ():
            return _off_device(q._sample(key, x))
        keys = jr.split(key, int(np.prod(shape)))
        return _off_device(jax.vmap(lambda k: q._sample(k, x))(keys).reshape((*shape, self.dim)))

    @scoped
    def log_prob(
        self, z: Validated[Float[Array, "*batch dim"], "log_prob"], x: PyTree = None
    ) -> Float[Array, "*batch"]:
        """Log density in nats at `z [*batch, dim]`: one number for each point.

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

    def draw(self, n: int, key: Key) -> tuple[Float[np.ndarray, "n dim"], Float[np.ndarray, "n"]]:
        """`n` draws on the host and their log densities: what checks and summaries use."""
        z, log_q = _draw_compiled(self, as_key(key), n)
        return np.asarray(z), np.asarray(log_q)

    def log_prob_on_host(self, z: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n"]:
        """Log densities, NumPy in and out; override it where the host needs no compilation."""
        return np.asarray(_log_prob_compiled(self, z))

    def entropy(self) -> Scalar | None:
        """Differential entropy in nats where it has a closed form, else None."""
        return None

    @property
    def dtype(self) -> np.dtype:
        """Floating dtype of lambda: float64 unless a fit was asked for float32."""
        leaves = [leaf for leaf in jax.tree.leaves(self) if eqx.is_inexact_array(leaf)]
        return np.dtype(leaves[0].dtype) if leaves else np.dtype(np.float64)

    def on_host(self) -> Self:
        """The same member with NumPy leaves, which no precision flag can narrow."""
        return to_host(self)


def _off_device(value: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """A NumPy array, whose float64 no JAX flag narrows; what is being traced is left alone."""
    return value if isinstance(value, jax.core.Tracer) else np.asarray(value)


@scoped
def _log_prob_compiled(q: AbstractFamily, z: Float[np.ndarray, "n dim"]) -> Float[Array, "n"]:
    return _log_prob_jitted(to_device(q, q.dtype), jnp.asarray(z, q.dtype))


@scoped
def _draw_compiled(
    q: AbstractFamily, key: jax.Array, n: int
) -> tuple[Float[Array, "n dim"], Float[Array, "n"]]:
    return _draw_jitted(to_device(q, q.dtype), key, n)


# Functions of the module and not methods: equinox then compiles once for all members of a family,
# however many q's a session makes.
@eqx.filter_jit
def _log_prob_jitted(q: AbstractFamily, z: Float[Array, "n dim"]) -> Float[Array, "n"]:
    return jax.vmap(q._log_prob)(z)


@eqx.filter_jit
def _draw_jitted(
    q: AbstractFamily, key: jax.Array, n: int
) -> tuple[Float[Array, "n dim"], Float[Array, "n"]]:
    def one(k: jax.Array) -> tuple[Float[Array, "dim"], Float[Array, ""]]:
        z = q._sample(k)
        return z, q._log_prob(z)

    return jax.vmap(one)(jr.split(key, n))


def standard_normals(n: int, dim: int, key: Key, stream: str) -> Float[np.ndarray, "n dim"]:
    """Antithetic standard normal draws on the host: row i + n/2 is minus row i (n even)."""
    half = host_rng(key, stream).standard_normal((-(-n // 2), dim))
    return np.concatenate([half, -half])[:n]


__all__ = ["HOST_NUMBERS", "AbstractFamily", "on_one_thread", "standard_normals"]
