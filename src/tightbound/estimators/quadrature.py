"""Deterministic expectations: tensor rules in few dimensions, projections in any."""

from typing import ClassVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._types import Array, PyTree, Validated
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..objectives.fisher import Fisher
from ..results import PairingError
from ..targets.base import AbstractTarget, Density
from ..targets.linear_sites import LinearSites
from .base import AbstractEstimator
from .draws import evaluate
from .gauss_hermite import tensor_rule

_MOST_POINTS = 50_000  # evaluated at each step, at once


class Quadrature(AbstractEstimator[Density]):
    """E_q f by Gauss-Hermite, k nodes per standard normal that a draw is made of.

    There is no randomness at all. Exact where f is a polynomial of degree up to 2k - 1 in each of
    them, so the gradient has neither noise nor bias there; elsewhere the error falls geometrically
    with k for smooth densities, and features narrower than the gap between nodes are missed. Points
    are k to the power of the dimension (times the draws in a group): for dimensions up to about
    four. On `tb.targets.LinearSites` the ELBO needs expectations of one-dimensional projections
    alone, and any dimension will do: k nodes for each site. For search by natural gradients use
    GaussHermite, which judges its own nodes.

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

    def check(
        self,
        target: Validated[AbstractTarget, "AbstractEstimator.check"],
        q: AbstractFamily,
        objective: AbstractObjective | None,
    ) -> None:
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
                f" more than {_MOST_POINTS:,}; pass a smaller `k`, use"
                ' Pathwise(n, noise="sobol"), or write the target as tb.targets.LinearSites, on'
                " which it needs one-dimensional rules alone."
            )

    def _along_projections(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> bool:
        """Whether the ELBO needs expectations of one-dimensional projections alone."""
        return (
            isinstance(target, LinearSites)
            and q.covariance_structure != "none"
            and (objective is None or objective.is_elbo)
        )

    def surrogate(
        self,
        objective: AbstractObjective,
        target: Density,
        q: AbstractFamily,
        state: PyTree,
        key: jax.Array,
    ) -> tuple[Float[Array, ""], PyTree]:
        if self._along_projections(target, q, objective):
            sites, gaussian = cast(LinearSites, target), cast(Gaussian, q)  # as was just asked
            return -(expected_log_density(sites, gaussian, self.k) + gaussian.entropy()), state
        assert q.noise_dim is not None  # `check` has refused such a q
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

    def evaluations_per_step(self, target: Density) -> float:
        return float(self.k) if isinstance(target, LinearSites) else float(self.k) ** target.dim


def expected_log_density(target: LinearSites, q: Gaussian, k: int) -> Float[Array, ""]:
    """E_q[log p] for a Gaussian q, nats.

    The prior in closed form, each site by k nodes along its own direction, with s_i = a_i' z ~
    N(a_i' mean, |root' a_i|^2). Cost: sites x (k + d^2), or d r for a low-rank scale.
    """
    rule = tensor_rule(k, 1, 0.0)
    directions, root = jnp.asarray(target.directions), jnp.asarray(target.prior_root)
    centre = directions @ jnp.asarray(q.mean)
    width = jnp.sqrt(jnp.sum(jax.vmap(q.scale.whiten_score)(directions) ** 2, axis=1))

    def site(centre: Float[Array, ""], width: Float[Array, ""], datum: PyTree) -> Float[Array, ""]:
        along = jax.vmap(lambda u: target.log_site_along(centre + width * u, datum))
        return jnp.asarray(rule.weights) @ along(jnp.asarray(rule.nodes[:, 0]))

    sites = jnp.sum(jax.vmap(site)(centre, width, jnp.asarray(target.data)))
    solve = jax.scipy.linalg.solve_triangular
    shift = solve(root, q.mean - jnp.asarray(target.prior_mean), lower=True)
    # Rows r_j with sum |root_q' r_j|^2 = tr(S0^-1 S)
    inverse = solve(root, jnp.eye(q.dim, dtype=root.dtype), lower=True)
    trace = jnp.sum(jax.vmap(q.scale.whiten_score)(inverse) ** 2)
    log_det = jnp.sum(jnp.log(jnp.diagonal(root)))
    return sites - 0.5 * (q.dim * np.log(2 * np.pi) + jnp.sum(shift**2) + trace) - log_det


__all__ = ["Quadrature", "expected_log_density"]
