"""Question 2: how is closeness measured? An objective is a pure function of what draws carry."""

import abc
import enum
import math
from typing import Any, ClassVar, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp

from ..families.base import AbstractFamily, Nats
from ..targets.base import AbstractTarget


class Source(enum.Enum):
    """Whose draws an objective is an expectation under; the value is how a sentence names it."""

    q = "q"
    joint = "the joint distribution of parameters and data"
    tilted = "the tilted distributions of the sites"


class Draws(eqx.Module):
    """What a batch of K draws carries; an objective states which fields it needs.

    Shapes: `log_p`, `log_q` `[K]` in nats; `score_p`, `score_q` `[K, dim]` are gradients in z.
    Fields that nobody asked for are None. `log_weights` `[terms]` are those of a quadrature rule or
    of an enumeration, one per group of draws, their exponentials summing to 1; None where all
    groups count alike.
    """

    log_p: jax.Array | None
    log_q: jax.Array
    score_p: jax.Array | None = None
    score_q: jax.Array | None = None
    log_weights: jax.Array | None = None

    def average(self, terms: jax.Array) -> jax.Array:
        """The mean of one number per group of draws, `[terms]`, weighted where the draws are."""
        return (
            jnp.mean(terms)
            if self.log_weights is None
            else jnp.sum(jnp.exp(self.log_weights) * terms)
        )

    def log_average(self, log_terms: jax.Array) -> jax.Array:
        """The log of the average of exp(log_terms), safe for any finite input."""
        if self.log_weights is None:
            return jax.nn.logsumexp(log_terms) - math.log(log_terms.shape[0])
        return jax.nn.logsumexp(log_terms + self.log_weights)

    @property
    def log_w(self) -> jax.Array:
        """Log importance weights log p - log q, `[K]`."""
        assert self.log_p is not None
        return self.log_p - self.log_q


@runtime_checkable
class KnownGaussian(Protocol):
    """A target whose density is exp(log_evidence) times a Gaussian's: what closed forms are taken
    against.

    `gaussian` is that normalised Gaussian (a tb.families.Gaussian); a target that merely knows its
    moments has no such attribute.
    """

    @property
    def gaussian(self) -> Any: ...

    @property
    def log_evidence(self) -> Any: ...


class AbstractObjective(eqx.Module):
    """A measure of closeness between q and the target, as a loss over draws (smaller is better, in
    nats).

    `drawn_from`: the distribution that the expectation is under. `needs`: the fields of Draws that
    `loss` reads. `averages`: whether the loss of many draws is the average of the losses of their
    groups, hence an expectation that can be estimated without bias; where it is a function of
    averages (a logarithm, a ratio) it has a bias of order 1/K.

    Adding c to log_q moves `loss` by a fixed multiple of c: 1 for bounds on the evidence, 0 for
    what is free of scale.
    """

    drawn_from: eqx.AbstractClassVar[Source]
    needs: ClassVar[tuple[str, ...]] = ("log_p", "log_q")
    averages: ClassVar[bool] = True

    @property
    def group(self) -> int:
        """How many draws one term of the loss is a function of.

        The number of draws is a multiple of it.
        """
        return 1

    @abc.abstractmethod
    def loss(self, draws: Draws) -> jax.Array:
        """The loss estimated from K draws.

        A scalar in nats, differentiable in everything that `draws` holds.
        """

    def exact(self, target: AbstractTarget, q: AbstractFamily) -> Nats | None:
        """The loss without Monte Carlo error where it has a closed form (Gaussian q and target),
        else None.

        This is the oracle that the batteries test estimators against.
        """
        return None
