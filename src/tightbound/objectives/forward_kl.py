"""Expected forward KL: what amortised inference minimises."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float

from .._types import Array
from .base import AbstractObjective, Draws, Source


class ForwardKL(AbstractObjective):
    """E_p(x) KL(p(z | x) || q(z | x)), up to the posterior's mean entropy: -E_p(z,x) log q(z | x).

    Minimised by simulations alone: no likelihood, no prior density, no reparameterisation, and
    nuisance unknowns drop out. It covers mass where the ELBO seeks a mode. If -log q is convex in
    what the network returns (the convex heads of `tb.amortised.heads`), the objective is convex in
    the network's function, and wide networks reach its minimum from any start
    (`docs/forward-kl.md`, with the conditions). The price is the average over p(x): at one observed
    x the answer is only as good as the network and the simulations around it. Also known as neural
    posterior estimation (NPE), or the sleep phase of wake-sleep.

    Source: McNamara, Loper & Regier 2024, equation 2.
    """

    drawn_from: ClassVar[Source] = Source.joint
    needs: ClassVar[tuple[str, ...]] = ("log_q",)

    def loss(self, draws: Draws) -> Float[Array, ""]:
        return -jnp.mean(draws.log_q)


class SoftmaxWeighted(AbstractObjective):
    """loss = -sum of w_i log(p/q)_i over k draws, w = softmax(log p/q). For comparisons only.

    The gradient goes through w, too. This is what the public code of McNamara, Loper & Regier 2024
    calls the ELBO, and it is here to repeat their comparison as they ran it. For k = 1 it is the
    ELBO. With growing k it tends to -log Z - KL(p || q), which is *smaller* for a worse q: it is no
    bound, and its minimum is not the posterior. Use ELBO or IWELBO.

    Attributes:
        k: draws per term.
    """

    k: int = eqx.field(default=100, static=True)
    drawn_from: ClassVar[Source] = Source.q

    def __check_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"SoftmaxWeighted: `k` must be at least 1, got {self.k}.")

    @property
    def group(self) -> int:
        return self.k

    def loss(self, draws: Draws) -> Float[Array, ""]:
        log_w = draws.log_w.reshape((-1, self.k))
        return -jnp.mean(jnp.sum(jax.nn.softmax(log_w, axis=1) * log_w, axis=1))


__all__ = ["ForwardKL", "SoftmaxWeighted"]
