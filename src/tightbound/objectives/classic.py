"""The lower bounds on the evidence that variational inference started from."""

import math
from typing import ClassVar

import equinox as eqx
import jax
from jaxtyping import Float

from .._types import Array, Scalar
from ..families.base import AbstractFamily
from ..families.gaussian import kl
from ..targets.base import AbstractTarget
from .base import AbstractObjective, Draws, Source
from .closed_forms import gaussian_pair


class ELBO(AbstractObjective):
    """loss = -E_q[log p - log q] = KL(q || posterior) - log Z, nats.

    Easy to optimise, and its negative is never above the log evidence. Not for judging tails: a q
    that is too narrow loses little in it, and where the posterior has several modes a q on one of
    them is an optimum.

    Source: Blei, Kucukelbir & McAuliffe 2017, eq. 13.
    """

    is_elbo: ClassVar[bool] = True
    drawn_from: ClassVar[Source] = Source.q

    def loss(self, draws: Draws) -> Float[Array, ""]:
        return -draws.average(draws.log_w)

    def exact(self, target: AbstractTarget, q: AbstractFamily) -> Scalar | None:
        pair = gaussian_pair(target, q)
        if pair is None:
            return None
        posterior, q, log_evidence = pair
        return kl(q, posterior) - log_evidence


class IWELBO(AbstractObjective):
    """The importance-weighted bound: loss = -E log (1/k) sum of w_i, nats.

    The sum is over k draws of q, w = p / q. k = 1 is the ELBO; the bound rises to log Z with k. Use
    it to bound the evidence, or to fit a q that will be corrected by importance weights. Not for
    summaries read from q itself: with growing k the optimum is a q that is too wide, and the
    signal-to-noise ratio of pathwise gradients falls like 1 / sqrt(k) (Rainforth et al. 2018).

    The draws are taken in groups of k, in order.

    Source: Burda, Grosse & Salakhutdinov 2016, eq. 8.

    Attributes:
        k: draws per term of the bound.
    """

    k: int = eqx.field(static=True)
    drawn_from: ClassVar[Source] = Source.q

    def __check_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"IWELBO: `k` must be at least 1, got {self.k}.")

    @property
    def group(self) -> int:
        return self.k

    def loss(self, draws: Draws) -> Float[Array, ""]:
        groups = grouped(draws.log_w, self.k, f"IWELBO({self.k})")
        return -draws.average(jax.nn.logsumexp(groups, axis=1) - math.log(self.k))


def grouped(log_w: Float[Array, "n"], k: int, what: str) -> Float[Array, "terms k"]:
    """Consecutive groups of k draws.

    Raises:
        ValueError: when the number of draws is no multiple of k; `what` says who needs it.
    """
    if log_w.shape[0] % k:
        raise ValueError(
            f"{what}: the number of draws must be a multiple of {k}, got {log_w.shape[0]}."
        )
    return log_w.reshape((-1, k))


__all__ = ["ELBO", "IWELBO", "grouped"]
