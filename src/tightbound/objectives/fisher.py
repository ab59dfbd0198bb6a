"""The Fisher divergence: closeness of scores, which needs no normalising constant of anything."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Float

from .._types import Array, Scalar
from ..families.base import AbstractFamily
from ..targets.base import AbstractTarget
from .base import AbstractObjective, Draws, Source
from .closed_forms import gaussian_pair


class Fisher(AbstractObjective):
    """loss = E_q |grad log p - grad log q|^2: zero where q is the posterior; no nats, but 1 / z^2.

    It compares slopes and not masses, so it is blind to the weights of separated modes, and it
    depends on the units of the coordinates: scale them alike. Gradients in q need second
    derivatives of log p. For a Gaussian q `tb.solvers.BatchAndMatch` minimises its affine-invariant
    form in closed form.

    Source: Hyvärinen 2005, eq. 2 (with the expectation under q); Cai et al. 2024, eq. 1.
    """

    drawn_from: ClassVar[Source] = Source.q
    needs: ClassVar[tuple[str, ...]] = ("log_q", "score_p", "score_q")

    def loss(self, draws: Draws) -> Float[Array, ""]:
        assert draws.score_p is not None
        assert draws.score_q is not None
        return draws.average(jnp.sum((draws.score_p - draws.score_q) ** 2, axis=-1))

    def exact(self, target: AbstractTarget, q: AbstractFamily) -> Scalar | None:
        pair = gaussian_pair(target, q)
        if pair is None:
            return None
        posterior, q, _ = pair
        # The difference of the scores is linear in z, bend z + slope. Of a z ~ q its mean square is
        # that of bend times a root of q's covariance, plus the square of its value at q's mean.
        precision = jnp.linalg.inv(jnp.asarray(posterior.cov))
        bend = jnp.linalg.inv(jnp.asarray(q.cov)) - precision
        slope = precision @ (q.mean - posterior.mean)
        return jnp.sum((bend @ q.root) ** 2) + jnp.sum(slope**2)


__all__ = ["Fisher"]
