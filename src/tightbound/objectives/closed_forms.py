"""Closed forms between two Gaussians: what estimates of an objective are tested against."""

from typing import Protocol, cast, runtime_checkable

from .._types import Scalar
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..targets.base import AbstractTarget


@runtime_checkable
class KnownGaussian(Protocol):
    """A target with the density exp(log_evidence) N(z): what closed forms are taken against.

    `gaussian` is that normalised Gaussian; a target that merely knows its moments has no such
    attribute.
    """

    @property
    def gaussian(self) -> Gaussian: ...

    @property
    def log_evidence(self) -> Scalar: ...


def gaussian_pair(
    target: AbstractTarget, q: AbstractFamily
) -> tuple[Gaussian, Gaussian, Scalar] | None:
    """(posterior, q, log Z) where target and q are Gaussians with closed forms, else None."""
    if not isinstance(target, KnownGaussian) or q.covariance_structure == "none":
        return None
    # Only a Gaussian has a covariance structure other than "none".
    return target.gaussian, cast(Gaussian, q), target.log_evidence


__all__ = ["KnownGaussian", "gaussian_pair"]
