"""Question 2: how is closeness measured? An objective is a pure function of what draws carry."""

import abc
import enum
from typing import Any, ClassVar, Protocol, runtime_checkable

import equinox as eqx
import jax

from ..families.base import AbstractFamily, Nats
from ..targets.base import AbstractTarget


class Source(enum.Enum):
    """Whose draws an objective is an expectation under; the value is how a sentence names it."""

    q = "q"
    joint = "the joint distribution of parameters and data"
    tilted = "the tilted distributions of the sites"


class Draws(eqx.Module):
    """What a batch of K draws carries; an objective states which fields it needs.

    Shapes: `log_p`, `log_q` `[K]` in nats; `score_p`, `score_q` `[K, dim]` are gradients in z. Fields that nobody
    asked for are None.
    """

    log_p: jax.Array | None
    log_q: jax.Array
    score_p: jax.Array | None = None
    score_q: jax.Array | None = None

    @property
    def log_w(self) -> jax.Array:
        """Log importance weights log p - log q, `[K]`."""
        assert self.log_p is not None
        return self.log_p - self.log_q


@runtime_checkable
class KnownGaussian(Protocol):
    """A target whose density is exp(log_evidence) times a Gaussian's: what closed forms are taken against.

    `gaussian` is that normalised Gaussian (a tb.families.Gaussian); a target that merely knows its moments has no such
    attribute.
    """

    @property
    def gaussian(self) -> Any: ...

    @property
    def log_evidence(self) -> Any: ...


class AbstractObjective(eqx.Module):
    """A measure of closeness between q and the target, as a loss over draws (smaller is better, in nats).

    `drawn_from`: the distribution that the expectation is under. `needs`: the fields of Draws that `loss` reads.
    """

    drawn_from: eqx.AbstractClassVar[Source]
    needs: ClassVar[tuple[str, ...]] = ("log_p", "log_q")

    @property
    def group(self) -> int:
        """How many draws one term of the loss is a function of; the number of draws is a multiple of it."""
        return 1

    @abc.abstractmethod
    def loss(self, draws: Draws) -> jax.Array:
        """The loss estimated from K draws: a scalar in nats, differentiable in everything that `draws` holds."""

    def exact(self, target: AbstractTarget, q: AbstractFamily) -> Nats | None:
        """The loss without Monte Carlo error where it has a closed form (Gaussian q and target), else None.

        This is the oracle that the batteries test estimators against.
        """
        return None
