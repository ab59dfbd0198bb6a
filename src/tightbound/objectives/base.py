"""Question 2: how is closeness measured? An objective is a pure function of what draws carry."""

import abc
import enum
import math
from typing import TYPE_CHECKING, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float

from .._types import Array, Scalar
from ..families.base import AbstractFamily
from ..targets.base import AbstractTarget


class Source(enum.Enum):
    """Whose draws an objective is an expectation under; the value is how a sentence names it."""

    q = "q"
    joint = "the joint distribution of parameters and data"
    tilted = "the tilted distributions of the sites"


class Draws(eqx.Module):
    """What a batch of `n` draws carries; an objective states which fields it needs.

    Fields that nobody asked for are None.

    Attributes:
        log_p: log density of the target, nats.
        log_q: log density of q, nats.
        score_p: gradient of log p in z.
        score_q: gradient of log q in z.
        log_weights: those of a quadrature rule or of an enumeration, one for each group of draws,
            their exponentials summing to 1; None where all groups count alike.
    """

    log_p: Float[Array, "n"] | None
    log_q: Float[Array, "n"]
    score_p: Float[Array, "n dim"] | None = None
    score_q: Float[Array, "n dim"] | None = None
    log_weights: Float[Array, "terms"] | None = None

    def average(self, terms: Float[Array, "terms"]) -> Float[Array, ""]:
        """The mean of one number for each group of draws, weighted where the draws are."""
        return (
            jnp.mean(terms)
            if self.log_weights is None
            else jnp.sum(jnp.exp(self.log_weights) * terms)
        )

    def log_average(self, log_terms: Float[Array, "terms"]) -> Float[Array, ""]:
        """The log of the average of exp(log_terms), safe for any finite input."""
        if self.log_weights is None:
            return jax.nn.logsumexp(log_terms) - math.log(log_terms.shape[0])
        return jax.nn.logsumexp(log_terms + self.log_weights)

    @property
    def log_w(self) -> Float[Array, "n"]:
        """Log importance weights log p - log q."""
        assert self.log_p is not None
        return self.log_p - self.log_q


class AbstractObjective(eqx.Module):
    """A measure of closeness between q and the target: a loss over draws in nats, to be minimised.

    `drawn_from`: the distribution that the expectation is under. `is_elbo`: whether it is the ELBO
    itself, which solvers with an exact or deterministic rule maximise. `needs`: the fields of Draws
    that `loss` reads. `averages`: whether the loss of many draws is the average of the losses of
    their groups, hence an expectation that can be estimated without bias; where it is a function of
    averages (a logarithm, a ratio) it has a bias of order 1/n.

    Adding c to log_q moves `loss` by a fixed multiple of c: 1 for bounds on the evidence, 0 for
    what is free of scale.
    """

    # Equinox refuses to make an objective whose class has no `drawn_from`, and names the omission.
    # Type checkers take AbstractClassVar for a variable of the instance, which no variable of a
    # class may override; so they are shown a plain ClassVar.
    if TYPE_CHECKING:
        drawn_from: ClassVar[Source]
    else:
        drawn_from: eqx.AbstractClassVar[Source]
    needs: ClassVar[tuple[str, ...]] = ("log_p", "log_q")
    averages: ClassVar[bool] = True
    is_elbo: ClassVar[bool] = False

    @property
    def group(self) -> int:
        """How many draws one term of the loss is a function of.

        The number of draws is a multiple of it.
        """
        return 1

    @abc.abstractmethod
    def loss(self, draws: Draws) -> Float[Array, ""]:
        """The loss estimated from the draws, differentiable in everything that `draws` holds."""

    def exact(self, target: AbstractTarget, q: AbstractFamily) -> Scalar | None:
        """The loss without Monte Carlo error; None where there is no closed form.

        By default None. Some objectives have one for a Gaussian q and a Gaussian target; the
        batteries test estimators against it.
        """
        return None
