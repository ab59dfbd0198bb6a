"""Families of finite support as independent parts, each with its list of points: what Enumerate and Relaxed ask for."""

import functools
from typing import Any

import equinox as eqx
import jax


class Coordinates(eqx.Module):
    """`m` independent parts of a draw with the same points, in the order in which they stand in the draw.

    Attributes:
        points: `[s, e]`, the s values that a part can take, each e numbers of the draw (one, or s for a one-hot
            vector).
        log_probs: `[m, s]`, normalised, differentiable in q's leaves.
    """

    points: jax.Array
    log_probs: jax.Array


@functools.singledispatch
def coordinates(q: Any) -> tuple[Coordinates, ...]:
    """The parts of q, in order; empty for a family that has none registered here.

    A family adds its own with `coordinates.register`; together the parts make up a draw.
    """
    return ()


__all__ = ["Coordinates", "coordinates"]
