"""Relaxed discrete draws (Gumbel-softmax, concrete): a smooth stand-in, and a biased one."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Float

from .._types import Array, PyTree
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective, Draws
from ..results import PairingError
from .base import AbstractEstimator, Evaluable
from .draws import check_scores, log_p_of
from .finite import Coordinates, coordinates


class Relaxed(AbstractEstimator[Evaluable]):
    """BIASED: differentiates through y = softmax((log probs + Gumbel noise) / temperature).

    These relaxed draws stand in the place of one-hot ones. The loss is that of z = sum_s y_s
    point_s and of log q = sum_s y_s log prob_s, so log p must accept values between the discrete
    ones, and be smooth there: z in [0, 1] for a Bernoulli, a point of the simplex for a one-hot
    Categorical. It minimises another objective than the one that is named; the bias vanishes with
    the temperature, while the noise grows. `straight_through` evaluates at the discrete draw and
    differentiates at the relaxed one: biased as well. Use it where there are too many latents for
    Enumerate and Score is too noisy, and judge the fit by the certificate, not by its loss.

    Source: Jang, Gu & Poole 2017, eqs. 1-2; Maddison, Mnih & Teh 2017, section 3.

    Attributes:
        n: draws per step, each one gradient of the log density.
        temperature: positive; .5 is a common compromise.
        straight_through: discrete forward, relaxed backward.
    """

    n: int = eqx.field(default=8, static=True)
    temperature: float = eqx.field(default=0.5, static=True)
    straight_through: bool = eqx.field(default=False, static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = ()

    def __check_init__(self):
        if self.n < 1:
            raise ValueError(f"Relaxed: `n` must be at least 1, got {self.n}.")
        if not self.temperature > 0:
            raise ValueError(f"Relaxed: `temperature` must be positive, got {self.temperature}.")

    def _check_draws(self, q: AbstractFamily, objective: AbstractObjective | None) -> None:
        if not coordinates(q):
            raise PairingError(
                f"Relaxed softens draws from a finite support, which {type(q).__name__} is not"
                " known to have; use Pathwise where draws are smooth in the parameters, else"
                " Score."
            )
        if any(part.labels for part in coordinates(q)):
            raise PairingError(
                "Relaxed mixes the values of a draw, and a Categorical factor's are labels, with"
                " nothing in between; use Score or Enumerate, or a family of one-hot vectors with"
                " its own `coordinates`."
            )
        check_scores("Relaxed", objective, "ELBO()")
        group = 1 if objective is None else objective.group
        if self.n % group:
            raise PairingError(
                f"{type(objective).__name__} takes draws in groups of {group}, so Relaxed needs a"
                f" multiple of {group} draws, got n={self.n}."
            )

    def surrogate(
        self,
        objective: AbstractObjective,
        target: Evaluable,
        q: AbstractFamily,
        state: PyTree,
        key: jax.Array,
    ) -> tuple[Float[Array, ""], PyTree]:
        z, log_q = jax.vmap(lambda k: self._draw(coordinates(q), k))(jr.split(key, self.n))
        log_p = jnp.asarray(jax.vmap(log_p_of(target, q))(z))
        return objective.loss(Draws(log_p, log_q)), state

    def _draw(
        self, parts: tuple[Coordinates, ...], key: jax.Array
    ) -> tuple[Float[Array, "dim"], Float[Array, ""]]:
        """One relaxed draw and its log q."""
        z, log_q = [], jnp.zeros(())
        for part, k in zip(parts, jr.split(key, len(parts)), strict=True):
            noisy = part.log_probs + jr.gumbel(k, part.log_probs.shape, part.log_probs.dtype)
            share = jax.nn.softmax(noisy / self.temperature, axis=1)
            if self.straight_through:
                # The value of the discrete draw with the gradient of the relaxed one.
                hard = jax.nn.one_hot(jnp.argmax(noisy, axis=1), share.shape[1], dtype=share.dtype)
                share = share + jax.lax.stop_gradient(hard - share)
            z.append((share @ part.points).ravel())
            log_q = log_q + jnp.sum(share * part.log_probs)
        return jnp.concatenate(z), log_q

    def evaluations_per_step(self, target: Evaluable) -> float:
        return float(self.n)


__all__ = ["Relaxed"]
