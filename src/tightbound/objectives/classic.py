"""The lower bounds on the evidence that variational inference started from."""

import math
from typing import ClassVar

import equinox as eqx
import jax

from ..families.base import AbstractFamily, Nats
from ..families.gaussian import Gaussian, kl
from ..targets.base import AbstractTarget
from .base import AbstractObjective, Draws, KnownGaussian, Source


class ELBO(AbstractObjective):
    """KL(q || posterior) up to a constant: loss = -E_q[log p - log q] = KL(q || posterior) - log Z,
    nats.

    Easy to optimise and never above the evidence. Not for judging tails: it forgives a q that is
    too narrow, and with several modes it is content with one.

    Source: Blei, Kucukelbir & McAuliffe 2017, eq. 13.
    """

    drawn_from: ClassVar[Source] = Source.q

    def loss(self, draws: Draws) -> jax.Array:
        return -draws.average(draws.log_w)

    def exact(self, target: AbstractTarget, q: AbstractFamily) -> Nats | None:
        if not (isinstance(target, KnownGaussian) and isinstance(q, Gaussian)):
            return None
        return kl(q, target.gaussian) - target.log_evidence


class IWELBO(AbstractObjective):
    """The importance-weighted bound: loss = -E log (1/k) sum of w_i over k draws of q, w = p / q,
    nats.

    k = 1 is the ELBO; the bound rises to log Z with k. Use it to bound the evidence, or to fit a q
    that will be corrected by importance weights. Not for summaries read from q itself: with growing
    k the optimum is a q that is too wide, and the signal-to-noise ratio of pathwise gradients falls
    like 1 / sqrt(k) (Rainforth et al. 2018).

    The draws are taken in groups of k, in order.

    Source: Burda, Grosse & Salakhutdinov 2016, eq. 8.

    Attributes:
        k: draws per term of the bound.
    """

    k: int = eqx.field(static=True)
    drawn_from: ClassVar[Source] = Source.q

    def __check_init__(self):
        if self.k < 1:
            raise ValueError(f"IWELBO: `k` must be at least 1, got {self.k}.")

    @property
    def group(self) -> int:
        return self.k

    def loss(self, draws: Draws) -> jax.Array:
        terms = jax.nn.logsumexp(
            grouped(draws.log_w, self.k, f"IWELBO({self.k})"), axis=1
        ) - math.log(self.k)
        return -draws.average(terms)


def grouped(log_w: jax.Array, k: int, what: str) -> jax.Array:
    """Consecutive groups of k draws, `[n / k, k]`."""
    if log_w.shape[0] % k:
        raise ValueError(
            f"{what}: the number of draws must be a multiple of {k}, got {log_w.shape[0]}."
        )
    return log_w.reshape((-1, k))


__all__ = ["ELBO", "IWELBO", "grouped"]
