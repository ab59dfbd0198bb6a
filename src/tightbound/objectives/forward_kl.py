"""Expected forward KL: what amortised inference minimises."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from .base import AbstractObjective, Draws, Source


class ForwardKL(AbstractObjective):
    """E_p(x) KL(p(z | x) || q(z | x)), up to the posterior's mean entropy: -E_p(z,x) log q(z | x).

    Minimised by simulations alone: no likelihood, no prior density, no reparameterisation, and
    nuisance unknowns drop out. It covers mass where the ELBO seeks a mode. If -log q is convex in
    what the network returns (the convex tier of `tb.amortised.heads`), the objective is convex in
    the network's function, and wide networks reach its minimum from any start
    (`docs/forward-kl.md`, with the conditions). The price is the average over p(x): at one observed
    x the answer is only as good as the network and the simulations around it. Also known as neural
    posterior estimation (NPE), or the sleep phase of wake-sleep.

    Source: McNamara, Loper & Regier 2024, equation 2.
    """

    drawn_from: ClassVar[Source] = Source.joint
    needs: ClassVar[tuple[str, ...]] = ("log_q",)

    def loss(self, draws: Draws) -> jax.Array:
        return -jnp.mean(draws.log_q)


class SoftmaxWeighted(AbstractObjective):
    """-sum_k w_k log(p/q)_k, w = softmax(log p/q) over K draws, the gradient also through w.

    Not a bound: a competitor only.

    What the public code of McNamara, Loper & Regier 2024 calls the ELBO. For K = 1 it is the ELBO.
    As K grows it tends to -log Z - KL(p || q), which is *smaller* for a worse q, so its minimum is
    not the posterior. Built to run the published comparison as it was run; use ELBO or IWELBO.

    Attributes:
        k: draws per term.
    """

    k: int = eqx.field(default=100, static=True)
    drawn_from: ClassVar[Source] = Source.q

    def __check_init__(self):
        if self.k < 1:
            raise ValueError(f"SoftmaxWeighted: `k` must be at least 1, got {self.k}.")

    @property
    def group(self) -> int:
        return self.k

    def loss(self, draws: Draws) -> jax.Array:
        log_w = draws.log_w.reshape((-1, self.k))
        return -jnp.mean(jnp.sum(jax.nn.softmax(log_w, axis=1) * log_w, axis=1))


__all__ = ["ForwardKL", "SoftmaxWeighted"]
