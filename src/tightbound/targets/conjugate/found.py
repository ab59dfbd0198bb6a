"""The conjugate form of a target: its own, or the one that is found in a NumPyro model."""

from typing import Any

from ..base import Conjugate, require


def as_conjugate(target: Any) -> Any:
    """`target` itself where it has the ability, else the conjugate form of its NumPyro model; PairingError where neither."""
    require("CoordinateAscent", target, Conjugate)
    return target


__all__ = ["as_conjugate"]
