"""Measure-valued gradients (weak derivatives).

Differences of the loss between two draws, with no gradient of log p.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._types import PyTree
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO, IWELBO
from ..objectives.fisher import Fisher
from ..objectives.renyi import VRIWAE
from ..results import PairingError
from .base import AbstractEstimator, frozen
from .draws import Noise, check_draws, check_noise, evaluate, noise_of, prepare_points
from .score import direct
from .weak_derivatives import AbstractWeakDerivative, weak_derivatives

_AWAY = 2**20  # keys of the pairs, apart from those of the draws


class MeasureValued(AbstractEstimator):
    """grad_theta_j = c_j (E_plus f - E_minus f): coordinate j is drawn from the two parts of its
    density's derivative.

    The other coordinates are those of one draw from q, the same on both sides. It needs values of
    log p alone, and its noise is small where f varies little between the two draws: a strong choice
    for few parameters and a density that is not smooth. Each parameter costs two values per draw,
    so not for more than some dozens. For families of independent coordinates: a diagonal Gaussian
    (Weibull pair for the mean, double-sided Maxwell against Gaussian for the sd), and Products of
    Normal, Exponential, Poisson and Bernoulli factors; others register their `weak_derivatives`.

    Source: Mohamed et al. 2020, section 6 and table 1; Pflug 1989.

    Attributes:
        n: pairs of draws per parameter and step.
        coupled: whether the two sides share their randomness. Mostly it helps; for the mean of a
            Gaussian and an f that is even about it, independent sides have less noise.
        noise: "independent", "antithetic" or "sobol".
    """

    n: int = eqx.field(default=4, static=True)
    coupled: bool = eqx.field(default=True, static=True)
    noise: Noise = eqx.field(default="independent", static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = (ELBO, IWELBO, VRIWAE, Fisher)

    def __check_init__(self):
        check_noise(self.noise, self.n, "MeasureValued")

    def _check_draws(self, q: Any, objective: AbstractObjective | None) -> None:
        check_draws(self.noise, self.n, "MeasureValued", q, objective)
        if not weak_derivatives(q):
            raise PairingError(
                f"MeasureValued: no decomposition of the derivative is known for {_named(q)}; use a"
                " family of independent coordinates such as Gaussian.diagonal(dim), or Score."
            )
        if objective is not None and not objective.averages:
            raise PairingError(
                "MeasureValued takes differences of the losses of single groups of draws, and"
                f" {type(objective).__name__} is no average of such; use Score, or VRIWAE in its"
                " place."
            )

    def prepare(self, target: Any, q: Any, key: Any) -> PyTree:
        return prepare_points(self.noise, self.n, (q.noise_dim or 0) + _normals(q), key)

    def surrogate(
        self, objective: AbstractObjective, target: Any, q: Any, state: PyTree, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        held, group = frozen(q), objective.group
        z, normals, keys = self._draws(held, state, group, key)
        pairs = self._pairs(held, normals, keys)[:, :, ::group]
        rises = group * self._rises(objective, target, held, z.reshape((-1, group, q.dim)), pairs)
        moving = direct(objective, evaluate(objective, target, q, z))
        for derivative, rise in zip(weak_derivatives(q), rises, strict=True):
            moving = moving + _with_gradient(derivative, q, held, rise)
        loss = jax.lax.stop_gradient(objective.loss(evaluate(objective, target, held, z)))
        return loss + moving - jax.lax.stop_gradient(moving), state

    def evaluations_per_step(self, target: Any) -> float:
        # two parameters per coordinate, two values for each
        return float(self.n * (1 + 4 * target.dim))

    def _draws(
        self, q: Any, points: Any, group: int, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draws from q `[n, dim]`, normals for the pairs `[n, m]`, and keys `[n]` for what is not
        made of normals.
        """
        first, second = jr.split(key)
        keys = jr.split(first, self.n)
        if q.noise_dim is None:
            fresh = jax.vmap(lambda k: jr.fold_in(k, _AWAY))(keys)
            return (
                jax.vmap(q._sample)(keys),
                jr.normal(second, (self.n, _normals(q)), q.dtype),
                fresh,
            )
        noise = noise_of(
            self.noise, points, self.n, group, q.noise_dim + _normals(q), q.dtype, second
        )
        return jax.vmap(q._from_noise)(noise[:, : q.noise_dim]), noise[:, q.noise_dim :], keys

    def _pairs(self, q: Any, normals: jax.Array, keys: jax.Array) -> jax.Array:
        """Draws from both parts of each of the D derivatives: `[D, 2, n, dim]`."""
        pairs, start = [], 0
        for i, derivative in enumerate(weak_derivatives(q)):
            own = normals[:, start : start + q.dim * derivative.normals].reshape(
                (self.n, q.dim, derivative.normals)
            )
            start += q.dim * derivative.normals
            fresh = jax.vmap(lambda k, i=i: jr.fold_in(k, i))(keys)
            pairs.append(
                jnp.stack(
                    jax.vmap(lambda e, k, d=derivative: d.pair(q, e, k, self.coupled))(own, fresh)
                )
            )
        return jnp.stack(pairs)

    def _rises(
        self, objective: Any, target: Any, q: Any, groups: jax.Array, pairs: jax.Array
    ) -> jax.Array:
        """Mean over the groups `[T, k, dim]` of f_plus - f_minus, `[D, dim]`: the first draw of a
        group is replaced.

        The draws of a group are alike, so the derivatives through each of them are equal on
        average.
        """

        def loss(group: jax.Array, values: jax.Array, j: jax.Array) -> jax.Array:
            return objective.loss(evaluate(objective, target, q, group.at[0, j].set(values[j])))

        over_groups = jax.vmap(loss, (0, 0, None))
        over_coordinates = jax.vmap(over_groups, (None, None, 0))
        losses = jax.vmap(jax.vmap(over_coordinates, (None, 0, None)), (None, 0, None))(
            groups, pairs, jnp.arange(q.dim)
        )
        return jnp.mean(losses[:, 0] - losses[:, 1], axis=-1)


def _with_gradient(
    derivative: AbstractWeakDerivative, q: Any, held: Any, rise: jax.Array
) -> jax.Array:
    """A scalar whose gradient in q is that of theta, times c (f_plus - f_minus)."""
    return jnp.sum(
        jax.lax.stop_gradient(derivative.constant(held) * rise) * derivative.parameter(q)
    )


def _normals(q: Any) -> int:
    """Standard normals that the pairs of one draw are made of, beside those of the draw itself."""
    return q.dim * sum(d.normals for d in weak_derivatives(q))


def _named(q: Any) -> str:
    scale = getattr(q, "scale", None)
    return type(q).__name__ + (
        f" with the scale {type(scale).__name__}" if scale is not None else ""
    )


__all__ = ["MeasureValued"]
