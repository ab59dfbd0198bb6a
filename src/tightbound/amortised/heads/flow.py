"""A normalising flow whose condition is what the network returns.

Needs FlowJAX (the extra `flows`).
"""

import contextlib
from collections.abc import Iterator
from typing import ClassVar, Protocol, cast, runtime_checkable

import equinox as eqx
import jax
from jaxtyping import Float

from ..._types import Array
from ...families.head import AbstractHead
from ...results import MissingExtraError


@runtime_checkable
class ConditionalDistribution(Protocol):
    """What this head asks of a FlowJAX distribution."""

    def log_prob(
        self, x: Float[Array, "dim"], condition: Float[Array, "eta"] | None = None
    ) -> Float[Array, ""]:
        """Log density at one point, given the condition."""
        ...

    def sample(
        self, key: jax.Array, *, condition: Float[Array, "eta"] | None = None
    ) -> Float[Array, "dim"]:
        """One draw, given the condition."""
        ...


class Flow(AbstractHead):
    """u = T(eps; eta), eps ~ N(0, I), T a stack of autoregressive rational-quadratic splines.

    T has weights of its own beside eta. The most flexible head, for shapes that a Mixture of a few
    Gaussians cannot follow. Not convex, and slower: a step costs several times a Gaussian's. Needs
    `pip install 'tightbound[flows]'`. Make one with `Flow.spline`.

    Source: Durkan et al. 2019 (neural spline flows), as FlowJAX implements them.

    Attributes:
        flow: a FlowJAX distribution of shape `(dim,)` with `cond_shape` `(size,)`.
        dim: d.
        size: length of the condition.
    """

    flow: ConditionalDistribution
    # Fields in the place of properties: equinox allows it, pyright has no way to say so.
    dim: int = eqx.field(static=True)  # pyright: ignore[reportIncompatibleMethodOverride]
    size: int = eqx.field(static=True)  # pyright: ignore[reportIncompatibleMethodOverride]
    reparameterised: ClassVar[bool] = True

    @staticmethod
    def spline(
        dim: int,
        key: jax.Array,
        *,
        size: int = 16,
        layers: int = 4,
        knots: int = 8,
        width: int = 32,
    ) -> "Flow":
        """A masked autoregressive flow with splines on [-5, 5] (prior sds), linear beyond.

        Arguments:
            dim: number of coordinates.
            key: of the start of its weights.
            size: how many numbers the network passes on to it.
            layers: of the flow.
            knots: of each spline.
            width: of the networks inside the flow.

        Raises:
            MissingExtraError: FlowJAX is not installed.
        """
        try:
            from flowjax.bijections import RationalQuadraticSpline
            from flowjax.distributions import StandardNormal
            from flowjax.flows import masked_autoregressive_flow
        except ImportError:
            raise MissingExtraError("flowjax", "flows", "A flow") from None
        with their_promotion():
            transformer = RationalQuadraticSpline(knots=knots, interval=5)
            flow = masked_autoregressive_flow(
                key,
                base_dist=StandardNormal((dim,)),
                transformer=transformer,
                cond_dim=size,
                flow_layers=layers,
                nn_width=width,
            )
        return Flow(flow, dim, size)

    def log_prob(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        with their_promotion():
            return self._flow().log_prob(u, eta)

    def sample(self, eta: Float[Array, "size"], key: jax.Array) -> Float[Array, "dim"]:
        with their_promotion():
            return self._flow().sample(key, condition=eta)

    def _flow(self) -> ConditionalDistribution:
        """The flow with its constrained weights computed, which FlowJAX stores unconstrained."""
        import paramax

        # `unwrap` returns the same class, but has no types.
        return cast(ConditionalDistribution, paramax.unwrap(self.flow))


@contextlib.contextmanager
def their_promotion() -> Iterator[None]:
    """FlowJAX relies on NumPy's promotion of ranks and types."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


__all__ = ["Flow", "their_promotion"]
