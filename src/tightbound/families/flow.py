"""A normalising flow by FlowJAX, around a Gaussian. The only file that imports FlowJAX."""

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from .._numerics import standard_promotion, x64
from .._types import Array, PyTree
from ..results import MissingExtraError
from .base import AbstractFamily
from .gaussian import Gaussian


@runtime_checkable
class _Bijection(Protocol):
    """What this file asks of FlowJAX's bijections."""

    def transform_and_log_det(self, x: Float[Array, "dim"]) -> tuple[Array, Array]: ...

    def inverse_and_log_det(self, y: Float[Array, "dim"]) -> tuple[Array, Array]: ...


_FromWeights = Callable[[jax.Array], _Bijection]


class Flow(AbstractFamily):
    """z = base.mean + root B(e), e ~ N(0, I): B a stack of spline coupling layers (FlowJAX).

    The splines are rational quadratic. The last layer of each conditioner starts at zero, and so B
    at the identity: `Flow.around(q)` is exactly the Gaussian q. For posteriors that bend in many
    directions at once, in two to some fifty dimensions, after everything simpler has failed: it
    takes tens of thousands of gradients and seconds of compilation. Not for one dimension (Warped),
    nor for separated modes.

    Source: Durkan, Bekasov, Murray & Papamakarios 2019 (neural spline flows); Dinh, Sohl-Dickstein
    & Bengio 2017 (coupling).

    Attributes:
        base: the Gaussian beneath.
        weights: of all conditioners; zeros of the last layers are the identity.
        layers: coupling layers.
        width: hidden units of each conditioner.
        knots: of each spline, which bends [-5, 5] and leaves the rest alone.
    """

    base: Gaussian
    weights: Float[Array, "weights"]
    layers: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    knots: int = eqx.field(static=True)

    @staticmethod
    def full(dim: int, *, layers: int = 4, width: int = 32, knots: int = 8) -> "Flow":
        """Around the standard normal of `dim` dimensions."""
        return Flow.around(Gaussian.full(dim), layers=layers, width=width, knots=knots)

    @staticmethod
    def around(base: Gaussian, *, layers: int = 4, width: int = 32, knots: int = 8) -> "Flow":
        """Exactly the given Gaussian, ready to be bent.

        Raises:
            ValueError: in one dimension.
            MissingExtraError: FlowJAX is not installed.
        """
        if base.dim < 2:
            raise ValueError(
                "Flow: coupling layers need at least two dimensions; use tb.families.Warped for"
                " one."
            )
        return Flow(base, _made(base.dim, layers, width, knots)[0], layers, width, knots)

    @property
    def dim(self) -> int:
        return self.base.dim

    @property
    def noise_dim(self) -> int:
        return self.base.dim

    def retract(self, step: "Flow") -> "Flow":
        """The Gaussian in its own scale; the weights by the step."""
        return Flow(
            self.base.retract(step.base),
            self.weights + step.weights,
            self.layers,
            self.width,
            self.knots,
        )

    def monitored(self) -> tuple[Float[Array, "groups m"], Float[Array, "groups m"]]:
        """Means and sds of 256 draws on fixed noise, in units of the sds.

        The weights themselves mean nothing: many of them give the same law.
        """
        noise = jnp.asarray(_watched(self.dim), self.dtype)
        z = jax.vmap(self._from_noise)(jnp.concatenate([noise, -noise]))
        sd = z.std(axis=0)
        return jnp.stack([z.mean(axis=0), sd]), jnp.stack([sd, sd])

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        return self._from_noise(jr.normal(key, (self.dim,), self.dtype))

    def _from_noise(self, noise: Float[Array, "dim"], x: PyTree = None) -> Float[Array, "dim"]:
        with standard_promotion():
            white = self._bijection().transform_and_log_det(noise)[0]
        return self.base.unwhiten(white)

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        with standard_promotion():
            noise, log_det = self._bijection().inverse_and_log_det(self.base.whiten(z))
        normal = -0.5 * noise @ noise - 0.5 * self.dim * np.log(2 * np.pi)
        return normal + log_det - self.base.scale.half_log_det()

    def _bijection(self) -> _Bijection:
        build = _made(self.dim, self.layers, self.width, self.knots)[1]
        return build(jnp.asarray(self.weights))


@functools.lru_cache(maxsize=32)
def _made(
    dim: int, layers: int, width: int, knots: int
) -> tuple[Float[np.ndarray, "weights"], _FromWeights]:
    """`_make` in a thread of its own, once for each size.

    The first call may come from a function that JAX is tracing. Traces belong to a thread: in
    another one, numbers are made and not tracers that outlive their trace in the cache.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(_make, dim, layers, width, knots).result()


def _make(
    dim: int, layers: int, width: int, knots: int
) -> tuple[Float[np.ndarray, "weights"], _FromWeights]:
    """Weights of the identity, and what makes a bijection of weights."""
    try:
        from flowjax.bijections import RationalQuadraticSpline
        from flowjax.distributions import Normal
        from flowjax.flows import coupling_flow
    except ImportError as error:
        raise MissingExtraError("flowjax", "flows", "tb.families.Flow") from error
    with x64(), standard_promotion():
        made = coupling_flow(
            jr.key(0),
            base_dist=Normal(jnp.zeros(dim)),
            transformer=RationalQuadraticSpline(knots=knots, interval=5),
            flow_layers=layers,
            nn_width=width,
            nn_activation=jnp.tanh,
            invert=False,
        ).bijection
        made = eqx.tree_at(_last_layer, made, replace_fn=jnp.zeros_like)
        arrays, static = eqx.partition(made, eqx.is_inexact_array)
        flat, unravel = ravel_pytree(arrays)

    def from_weights(weights: Float[jax.Array, "weights"]) -> _Bijection:
        # `combine` gives back what was taken apart, which is such a bijection.
        return cast(_Bijection, eqx.combine(unravel(weights), static))

    return np.asarray(flat), from_weights


def _last_layer(bijection: PyTree) -> tuple[PyTree, PyTree]:
    """Weight and bias of the last layer of all conditioners, which FlowJAX keeps stacked."""
    one_layer = bijection.bijection  # of the Scan
    last = one_layer.bijections[0].conditioner.layers[-1]
    return last.weight, last.bias


@functools.lru_cache(maxsize=32)
def _watched(dim: int) -> Float[np.ndarray, "draws dim"]:
    """Half of the noise that `monitored` draws on; the other half mirrors it."""
    return np.random.default_rng(0).standard_normal((128, dim))


__all__ = ["Flow"]
