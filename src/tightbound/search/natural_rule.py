"""The natural-gradient rule for Gaussians: its algebra, written once.

For an exponential-family q with base measure h the rule is
`eta <- (1 - rho) eta + rho d/dm E_q[log p - log h]` (Khan & Rue 2023, eq. 6). For a Gaussian it
reads `S^-1 <- (1 - rho) S^-1 - rho E_q[hess log p]`, `mean <- mean + rho S E_q[grad log p]`.
Everything is done in whitened coordinates u, z = mean + root u, in which a target that q matches
has curvature I. `xp` is numpy on the host and jax.numpy in compiled code.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from .._numerics import pytree
from .._types import Array, Flag, Scalar
from ..estimators.base import Moments
from ..results import Result

_TRUST = 4.0  # a precision may change by this factor in one step, up or down
_FAR = 0.3  # nats of spread over pairs, see `is_far`
# Of the design's own error: nearer to the optimum than that, further steps follow its noise.
_NEAR = 0.3
# Of `tol`, for the last move of the mean: what is left after it adds little to the error asked for.
_MOVE = 0.25
OF_PRECISIONS = 0.2  # of the relative error of precisions that counts, see `design_error`
_ENOUGH_PAIRS = 3  # times max(dim, 32): a design that shows how far q is


@pytree
@dataclasses.dataclass(frozen=True)
class NewtonModel:
    """The whitened quadratic model of the ELBO at q: curvature = V diag(eigenvalues) V'.

    Attributes:
        damped: |eigenvalues| kept within the trust factor of 1: what precisions are multiplied by.
        stiff: |eigenvalues| kept above a floor: what mean steps are divided by.
        gradient: in the eigenbasis.
    """

    eigenvalues: Float[Array, "*batch dim"]
    vectors: Float[Array, "*batch dim dim"]
    damped: Float[Array, "*batch dim"]
    stiff: Float[Array, "*batch dim"]
    gradient: Float[Array, "*batch dim"]


def newton_model(
    gradient: Float[Array, "dim"],
    curvature: Float[Array, "dim dim"],
    xp: ModuleType = np,
    floor: float = 1.0 / _TRUST,
) -> NewtonModel:
    """Diagonalise the curvature; directions of wrong sign or extreme size are damped."""
    eigenvalues, vectors = xp.linalg.eigh(curvature)
    size = xp.abs(eigenvalues)
    damped = xp.clip(size, 1.0 / _TRUST, _TRUST)
    return NewtonModel(eigenvalues, vectors, damped, xp.maximum(size, floor), vectors.T @ gradient)


Moved = tuple[Float[Array, "dim"], Float[Array, "dim dim"], Scalar]
"""(mean, root, change of log|root|)."""

Rule: TypeAlias = Callable[
    [
        Float[Array, "dim"],
        Float[Array, "dim dim"],
        NewtonModel,
        Scalar,
        ModuleType,
        Scalar,
    ],
    Moved,
]
"""`natural_step`, whose arguments are mean, root, model, rho, xp and reach."""


def natural_step(
    mean: Float[Array, "dim"],
    root: Float[Array, "dim dim"],
    model: NewtonModel,
    rho: Scalar,
    xp: ModuleType = np,
    reach: Scalar = 1.0,
) -> Moved:
    """One damped step of the rule; the mean moves at most 2 reach sqrt(dim) sds.

    The mean step is divided by the curvature: a damped Newton variant of the rule, equal to it at
    rho = 1.
    """
    shift = rho * model.gradient / model.stiff
    longest = 2.0 * reach * np.sqrt(shift.shape[0])
    shift = shift * xp.minimum(1.0, longest / (xp.linalg.norm(shift) + 1e-300))
    factor = 1.0 + rho * (model.damped - 1.0)
    new_root = root @ ((model.vectors / xp.sqrt(factor)[None, :]) @ model.vectors.T)
    return mean + root @ (model.vectors @ shift), new_root, -0.5 * xp.sum(xp.log(factor))


def natural_step_diagonal(
    mean: Float[Array, "dim"],
    root: Float[Array, "dim dim"],
    model: NewtonModel,
    rho: Scalar,
    xp: ModuleType = np,
    reach: Scalar = 1.0,
) -> Moved:
    """`natural_step` for a mean-field q.

    The mean takes the joint Newton step, each precision the diagonal of the curvature.
    """
    new_mean, _, _ = natural_step(mean, root, model, rho, xp, reach)
    diagonal = xp.sum(model.vectors**2 * model.eigenvalues, axis=1)
    factor = 1.0 + rho * (xp.clip(xp.abs(diagonal), 1.0 / _TRUST, _TRUST) - 1.0)
    return new_mean, root / xp.sqrt(factor)[None, :], -0.5 * xp.sum(xp.log(factor))


def distances(
    model: NewtonModel, curvature: Float[Array, "dim"], xp: ModuleType
) -> tuple[Scalar, Scalar]:
    """The whitened move that the model asks for, and the error of the curvature, both rms."""
    move = xp.sqrt(xp.mean((model.gradient / model.stiff) ** 2))
    return move, xp.sqrt(xp.mean((curvature - 1.0) ** 2))


def arrived(
    model: NewtonModel,
    curvature: Float[Array, "dim"],
    error: Scalar,
    tol: Scalar,
    xp: ModuleType = np,
) -> Flag:
    """Whether q is as near the optimum as the design can tell.

    The rms move must be below .3 of the design's `error` or a quarter of `tol`, the rms error of
    `curvature` (1 at the optimum) below .3 of `error` or `tol`, and all of it must be positive.
    """
    move, wrong = distances(model, curvature, xp)
    near = (move < xp.maximum(_NEAR * error, _MOVE * tol)) & (
        wrong < xp.maximum(_NEAR * error, tol)
    )
    return near & (xp.min(curvature) > 0)


def design_error(moments: Moments, model: NewtonModel, xp: ModuleType = np) -> Scalar:
    """Sampling error of the design: of the mean in posterior sds, or a fifth of the precisions'.

    A symmetric target has no error in the mean on antithetic draws, however wrong the sds are:
    hence the second. A fifth holds the relative error of the sds, half that of the precisions, to
    two and a half times `tol`. Of the mean it is the rms over directions.
    """
    spread = (moments.gradient_spread - moments.gradient[None, :]) @ (
        model.vectors / model.stiff[None, :]
    )
    of_mean = xp.sqrt(xp.mean(spread**2) / spread.shape[0])
    return xp.maximum(of_mean, OF_PRECISIONS * moments.curvature_stderr)


RUNNING, SETTLED, STALLED, NONFINITE, UNBOUNDED, OUTGROWN = range(6)
"""How a search stands on its design; OUTGROWN: a larger design left where the density is finite."""


@dataclasses.dataclass(frozen=True)
class Conduct:
    """How a search along the rule is conducted: the few things in which its users differ.

    Attributes:
        structure: of the covariance.
        floor: of the curvature that mean steps are divided by. A mean-field q whitens no
            correlation, so that its small eigenvalues are real and must not be lifted.
        least_gain: nats per step below which a search has settled.
        sufficient: share of the gain that the model promises which a step must bring.
        rounding: share of |ELBO| by which a step may fall: sums of many terms round.
        most_tries: proposals refused in a row after which the search ends.
        most_steps: on one design.
        stride: steps between two extrapolations; None makes none.
        lengthens: whether steps of full length that climb at once make the next ones longer.
        looks_first: whether a start may be the answer, without a step.
        move, wrong: fixed bounds on the whitened move and on the error of the curvature at which a
            search has settled; None bounds both by what the design can tell (`arrived`).
    """

    structure: Literal["full", "diagonal"] = "full"
    floor: float = 1.0 / _TRUST
    least_gain: float = 1e-4
    sufficient: float = 1e-4
    rounding: float = 1e-9
    most_tries: int = 12
    most_steps: int = 60
    stride: int | None = 4
    lengthens: bool = True
    looks_first: bool = False
    move: float | None = None
    wrong: float | None = None

    @property
    def rule(self) -> Rule:
        """`natural_step` for this structure."""
        return natural_step if self.structure == "full" else natural_step_diagonal

    def curvature(self, model: NewtonModel, xp: ModuleType) -> Float[Array, "dim"]:
        """What must be 1 at the optimum."""
        if self.structure == "full":
            return model.eigenvalues
        return xp.sum(model.vectors**2 * model.eigenvalues, axis=1)


FULL = Conduct()
DIAGONAL = Conduct("diagonal", floor=1e-6)


def conclusion(status: Int[Array, ""], error: Float[Array, ""], tol: float) -> Result | None:
    """How a search that has ended on its design ends; None: its error wants a larger design."""
    known = {
        NONFINITE: Result.nonfinite,
        UNBOUNDED: Result.unbounded,
        # What the smaller design found is kept.
        OUTGROWN: Result.noisy,
    }
    if int(status) in known:
        return known[int(status)]
    if error >= tol:
        return None
    return Result.converged if status == SETTLED else Result.stalled


def is_far(spread: Scalar | Float[Array, "lanes"], pairs: int, dim: int) -> Flag:
    """Whether log p - log q varies so much over the design that no Gaussian deserves a larger one.

    Half the square of the spread over pairs is about the KL that the even part of log p - log q
    amounts to, some .05 nats at the limit of .3; the odd part, skewness, comes on top. Beyond it
    the answer needs weights or a richer family, not digits. Only designs of some size can tell.
    """
    return (pairs >= _ENOUGH_PAIRS * max(dim, 32)) & (spread > _FAR)


__all__ = [
    "DIAGONAL",
    "FULL",
    "NONFINITE",
    "OF_PRECISIONS",
    "OUTGROWN",
    "RUNNING",
    "SETTLED",
    "STALLED",
    "UNBOUNDED",
    "Conduct",
    "Moved",
    "NewtonModel",
    "Rule",
    "arrived",
    "conclusion",
    "design_error",
    "distances",
    "is_far",
    "natural_step",
    "natural_step_diagonal",
    "newton_model",
]
