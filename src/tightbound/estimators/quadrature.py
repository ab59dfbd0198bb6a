"""Deterministic expectations under a Gaussian q.

Tensor rules in low dimension, 1-D rules along projections in any.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._types import PyTree
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..objectives.fisher import Fisher
from ..results import PairingError
from ..targets.sites import LinearSites
from .base import AbstractEstimator
from .draws import evaluate
from .gauss_hermite import tensor_rule

_MOST_POINTS = 50_000


class Quadrature(AbstractEstimator):
    """E_q f by Gauss-Hermite: k nodes per standard normal that a draw is made of, no randomness at
    all.

    Exact where f is a polynomial of degree up to 2k - 1 in each of them, so the gradient has
    neither noise nor bias there; elsewhere the error falls geometrically with k for smooth
    densities, and features narrower than the gap between nodes are missed. Points are k to the
    power of the dimension (times the draws in a group): for dimensions up to about four. On
    `tb.targets.LinearSites` the ELBO needs expectations of one-dimensional projections alone, and
    any dimension will do: k nodes for each site. For search by natural gradients use GaussHermite,
    which judges its own nodes.

    Source: Golub & Welsch 1969; Opper & Archambeau 2009, section 3 (projections).

    Attributes:
        k: nodes per dimension.
    """

    k: int = eqx.field(default=20, static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = (ELBO, Fisher)
    needs_reparameterised: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def __check_init__(self):
        if self.k < 1:
            raise ValueError(f"Quadrature: `k` must be at least 1, got {self.k}.")

    def check(self, target: Any, q: Any, objective: AbstractObjective | None) -> None:
        AbstractEstimator.check(self, target, q, objective)
        if q.noise_dim is None:
            raise PairingError(
                "Quadrature needs draws that are a function of standard normals, which"
                f" {type(q).__name__}'s are not; use Pathwise or Score."
            )
        if self._along_projections(target, q, objective):
            return
        points = float(self.k) ** (q.noise_dim * (1 if objective is None else objective.group))
        if points > _MOST_POINTS:
            raise PairingError(
                f"Quadrature({self.k}) in {q.noise_dim} dimensions would take {points:.3g} points,"
                " more than "
                f'{_MOST_POINTS:,}; pass a smaller `k`, use Pathwise(n, noise="sobol"), or write'
                " the target as "
                "tb.targets.LinearSites, on which it needs one-dimensional rules alone."
            )

    def _along_projections(self, target: Any, q: Any, objective: AbstractObjective | None) -> bool:
        gaussian = hasattr(q, "scale") and q.entropy() is not None
        return (
            isinstance(target, LinearSites)
            and gaussian
            and (objective is None or isinstance(objective, ELBO))
        )

    def surrogate(
        self, objective: AbstractObjective, target: Any, q: Any, state: PyTree, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        if self._along_projections(target, q, objective):
            return -(expected_log_density(target, q, self.k) + q.entropy()), state
        rule = tensor_rule(self.k, q.noise_dim * objective.group, 0.0)
        z = jax.vmap(q._from_noise)(jnp.asarray(rule.nodes, q.dtype).reshape((-1, q.noise_dim)))
        draws = evaluate(objective, target, q, z)
        log_weights = jnp.asarray(np.log(rule.weights), q.dtype)
        return (
            objective.loss(
                eqx.tree_at(
                    lambda d: d.log_weights, draws, log_weights, is_leaf=lambda x: x is None
                )
            ),
            state,
        )

    def evaluations_per_step(self, target: Any) -> float:
        return float(self.k) if isinstance(target, LinearSites) else float(self.k) ** target.dim


def expected_log_density(target: LinearSites, q: Any, k: int) -> jax.Array:
    """E_q[log p] for a Gaussian q: the prior in closed form, each site by k nodes along its own
    direction, nats.

    With s_i = a_i' z ~ N(a_i' mean, |root' a_i|^2). Cost: sites x (k + d^2), or d r for a low-rank
    scale.
    """
    rule = tensor_rule(k, 1, 0.0)
    directions, root = jnp.asarray(target.directions), jnp.asarray(target.prior_root)
    centre = directions @ q.mean
    width = jnp.sqrt(jnp.sum(jax.vmap(q.scale.whiten_score)(directions) ** 2, axis=1))

    def site(centre: jax.Array, width: jax.Array, datum: Any) -> jax.Array:
        along = jax.vmap(lambda u: target.log_site_along(centre + width * u, datum))
        return jnp.asarray(rule.weights) @ along(jnp.asarray(rule.nodes[:, 0]))

    sites = jnp.sum(jax.vmap(site)(centre, width, jnp.asarray(target.data)))
    solve = jax.scipy.linalg.solve_triangular
    shift = solve(root, q.mean - jnp.asarray(target.prior_mean), lower=True)
    # rows r_j with sum |root_q' r_j|^2 = tr(S0^-1 S)
    inverse = solve(root, jnp.eye(q.dim, dtype=root.dtype), lower=True)
    trace = jnp.sum(jax.vmap(q.scale.whiten_score)(inverse) ** 2)
    log_det = jnp.sum(jnp.log(jnp.diagonal(root)))
    return sites - 0.5 * (q.dim * np.log(2 * np.pi) + jnp.sum(shift**2) + trace) - log_det


__all__ = ["Quadrature", "expected_log_density"]
