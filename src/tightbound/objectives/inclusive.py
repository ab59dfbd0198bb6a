"""KL(posterior || q), the divergence that covers mass, estimated from draws of q."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from .._types import Array, Scalar
from ..families.base import AbstractFamily
from ..families.gaussian import kl
from ..targets.base import AbstractTarget
from .base import AbstractObjective, Draws, Source
from .closed_forms import gaussian_pair


class WakePhase(AbstractObjective):
    """The forward KL for one data set: loss = E_p[log w] = log Z + KL(posterior || q), nats.

    w = p / q at draws of q. Expectations under the posterior are self-normalised importance sums,
    loss = (sum of w_i log w_i) / (sum of w_i), so the loss and its gradients have a bias of order
    1/n; it is an upper bound on the evidence in the limit only. With `Score(n, baseline="none")`
    the gradient is -sum of (w_i / sum of w - 1/n) grad log q(z_i): the wake phase of reweighted
    wake-sleep, less its mean. Its optimum matches the posterior's moments where q is an exponential
    family. Not where q is far off, because a few weights then decide: start from an ELBO fit.
    ForwardKL is the amortised one, from draws of the model.

    Source: Bornschein & Bengio 2015, eq. 10; Naesseth, Lindsten & Blei 2020, eq. 3.
    """

    drawn_from: ClassVar[Source] = Source.q
    averages: ClassVar[bool] = False

    def loss(self, draws: Draws) -> Float[Array, ""]:
        log_share = draws.log_w if draws.log_weights is None else draws.log_w + draws.log_weights
        return jnp.sum(jax.nn.softmax(log_share) * draws.log_w)

    def exact(self, target: AbstractTarget, q: AbstractFamily) -> Scalar | None:
        pair = gaussian_pair(target, q)
        if pair is None:
            return None
        posterior, q, log_evidence = pair
        return kl(posterior, q) + log_evidence


__all__ = ["WakePhase"]
