"""One angle, of any shape: a von Mises distribution bent by a spline of the circle.

Needs FlowJAX (the extra `flows`).
"""

import math
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._types import Array
from ...families.head import AbstractHead
from ...results import MissingExtraError
from .circular import VonMises
from .flow import their_promotion

if TYPE_CHECKING:
    from flowjax.bijections import RationalQuadraticSpline

_SMALLEST = 1e-3  # width and height of a bin as a share of the circle, and slope at a knot


class CircularFlow(AbstractHead):
    """One angle u in [-pi, pi): T(u) ~ von Mises(eta_1, eta_2), T a monotone map of the circle.

    T is a rational-quadratic spline, and

        log q(u; eta) = log vonMises(T(u); eta_1, eta_2) + log T'(u)

    It keeps pi in its place and has one slope there from both sides, so the density is continuous
    round the circle. With the spline at its start, T(u) = u, this is the von Mises distribution;
    bent, it follows skewed, flat and many-peaked shapes. Minus its log density is not convex in
    eta, so that networks from several seeds may differ. For a few separate peaks VonMisesMixture is
    simpler; for convexity Spline(1, periodic=True). Needs `pip install 'tightbound[flows]'`.

    Source: Rezende et al. 2020 (circular splines); Durkan et al. 2019, equations 4 and 5; the
    spline is FlowJAX's.

    Attributes:
        bins: of the spline, at least 2.
    """

    bins: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        if self.bins < 2:
            raise ValueError(
                f"CircularFlow: `bins` must be at least 2, got {self.bins}; use VonMises."
            )
        _spline_class()

    @property
    def dim(self) -> int:
        return 1

    @property
    def size(self) -> int:
        return 2 + 3 * self.bins

    @property
    def circular(self) -> tuple[bool, ...]:
        return (True,)

    def log_prob(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        with their_promotion():
            v, log_slope = self._bend(eta).transform_and_log_det(u[0])
        return VonMises().log_prob(eta[:2], v[None].astype(eta.dtype)) + log_slope.astype(eta.dtype)

    def sample(self, eta: Float[Array, "size"], key: jax.Array) -> Float[Array, "dim"]:
        v = VonMises().sample(eta[:2], key)
        with their_promotion():
            u, _ = self._bend(eta).inverse_and_log_det(v[0])
        return u[None].astype(eta.dtype)

    def _bend(self, eta: Float[Array, "size"]) -> "RationalQuadraticSpline":
        """T, with its knots at the running sums of softmax widths and heights.

        Slopes are softplus of what eta holds, one and the same at both ends.
        """
        widths, heights, slopes = jnp.split(eta[2:], 3)
        # Shifted so that a slope is 1 where eta is 0: the spline then starts at T(u) = u.
        slopes = _SMALLEST + jax.nn.softplus(slopes + math.log(math.expm1(1 - _SMALLEST)))
        template = _spline_class()(knots=self.bins - 1, interval=math.pi)
        parts = (_knots(widths), _knots(heights), jnp.concatenate([slopes, slopes[:1]]))
        return eqx.tree_at(lambda t: (t.x_pos, t.y_pos, t.derivatives), template, parts)


def _knots(logits: Float[Array, "bins"]) -> Float[Array, "knots"]:
    """Increasing positions from -pi to pi, one more than there are bins."""
    shares = _SMALLEST + (1 - _SMALLEST * logits.shape[0]) * jax.nn.softmax(logits)
    # The ends are pi to the last digit: the sum of all shares would round.
    inner = 2 * jnp.pi * jnp.cumsum(shares)[:-1] - jnp.pi
    ends = jnp.full((1,), np.pi, logits.dtype)
    return jnp.concatenate([-ends, inner, ends])


def _spline_class() -> "type[RationalQuadraticSpline]":
    try:
        from flowjax.bijections import RationalQuadraticSpline
    except ImportError:
        raise MissingExtraError("flowjax", "flows", "A flow") from None
    return RationalQuadraticSpline


__all__ = ["CircularFlow"]
