"""Measure-valued gradients (weak derivatives): differences of the loss between two draws."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Float, Int
from jaxtyping import Key as KeyArray

from .._types import Array, Key
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO, IWELBO
from ..objectives.fisher import Fisher
from ..objectives.renyi import VRIWAE
from ..results import PairingError
from .base import AbstractEstimator, Evaluable, frozen
from .draws import Noise, Points, check_draws, check_noise, evaluate, noise_of, prepare_points
from .score import direct
from .weak_derivatives import AbstractWeakDerivative, weak_derivatives

# Added to the keys of the pairs: a number that no count of derivatives reaches, so that pairs share
# no key with the draws.
_AWAY = 2**20
# Values of log p a coordinate: two sides for each of its at most two parameters.
_VALUES_PER_COORDINATE = 4
_SCALES = {"full": "Full", "diagonal": "Diagonal", "low_rank": "LowRank"}  # as a user writes them


class MeasureValued(AbstractEstimator[Evaluable]):
    """grad_theta_j = c_j (E_plus f - E_minus f).

    Coordinate j is drawn from the positive and from the negative part of its density's derivative.
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

    def _check_draws(self, q: AbstractFamily, objective: AbstractObjective | None) -> None:
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

    def prepare(self, target: Evaluable, q: AbstractFamily, key: Key) -> Points:
        return prepare_points(self.noise, self.n, (q.noise_dim or 0) + _normals(q), key)

    def surrogate(
        self,
        objective: AbstractObjective,
        target: Evaluable,
        q: AbstractFamily,
        state: Points,
        key: jax.Array,
    ) -> tuple[Float[Array, ""], Points]:
        held, group = frozen(q), objective.group
        z, normals, keys = self._draws(held, state, group, key)
        # Only the first draw of each group is replaced, so that one pair a group is enough.
        pairs = self._pairs(held, normals, keys)[:, :, ::group]
        rises = group * self._rises(objective, target, held, z.reshape((-1, group, q.dim)), pairs)
        moving = direct(objective, evaluate(objective, target, q, z))
        for derivative, rise in zip(weak_derivatives(q), rises, strict=True):
            moving = moving + _with_gradient(derivative, q, held, rise)
        loss = jax.lax.stop_gradient(objective.loss(evaluate(objective, target, held, z)))
        return loss + moving - jax.lax.stop_gradient(moving), state

    def evaluations_per_step(self, target: Evaluable) -> float:
        return float(self.n * (1 + _VALUES_PER_COORDINATE * len(target.coordinate_names)))

    def _draws(
        self, q: AbstractFamily, points: Points, group: int, key: jax.Array
    ) -> tuple[Float[Array, "n dim"], Float[Array, "n normals"], KeyArray[jax.Array, "n"]]:
        """Draws from q, normals for the pairs, and keys for what is not made of normals."""
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

    def _pairs(
        self,
        q: AbstractFamily,
        normals: Float[Array, "n normals"],
        keys: KeyArray[jax.Array, "n"],
    ) -> Float[Array, "derivatives 2 n dim"]:
        """Draws from both parts of each of the derivatives."""
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
        self,
        objective: AbstractObjective,
        target: Evaluable,
        q: AbstractFamily,
        groups: Float[Array, "groups k dim"],
        pairs: Float[Array, "derivatives 2 groups dim"],
    ) -> Float[Array, "derivatives dim"]:
        """Mean over the groups of f_plus - f_minus, where the first draw of a group is replaced.

        The draws of a group are alike, so the derivatives through each of them are equal on
        average.
        """

        def loss(
            group: Float[jax.Array, "k dim"], values: Float[Array, "dim"], j: Int[jax.Array, ""]
        ) -> Float[Array, ""]:
            return objective.loss(evaluate(objective, target, q, group.at[0, j].set(values[j])))

        over_groups = jax.vmap(loss, (0, 0, None))
        over_coordinates = jax.vmap(over_groups, (None, None, 0))
        losses = jax.vmap(jax.vmap(over_coordinates, (None, 0, None)), (None, 0, None))(
            jnp.asarray(groups), pairs, jnp.arange(q.dim)
        )
        return jnp.mean(losses[:, 0] - losses[:, 1], axis=-1)


def _with_gradient(
    derivative: AbstractWeakDerivative,
    q: AbstractFamily,
    held: AbstractFamily,
    rise: Float[Array, "dim"],
) -> Float[Array, ""]:
    """A scalar whose gradient in q is that of theta, times c (f_plus - f_minus)."""
    return jnp.sum(
        jax.lax.stop_gradient(derivative.constant(held) * rise) * derivative.parameter(q)
    )


def _normals(q: AbstractFamily) -> int:
    """Standard normals that the pairs of one draw are made of, beside those of the draw itself."""
    return q.dim * sum(d.normals for d in weak_derivatives(q))


def _named(q: AbstractFamily) -> str:
    scale = _SCALES.get(q.covariance_structure)
    return type(q).__name__ + (f" with the scale {scale}" if scale is not None else "")


__all__ = ["MeasureValued"]
