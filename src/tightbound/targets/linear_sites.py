"""Sites along lines: each sees z through one direction, as in generalised linear models."""

from collections.abc import Callable
from typing import TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from .._numerics import to_device, x64
from .._types import Array, PyTree, Scalar, Validated
from ..results import TargetError
from .checked_arrays import finite_array, root_of, vector_of
from .sites import GaussianSites, log_normal
from .support import ArrayLike
from .tracing import host_unless_traced

SiteFunction: TypeAlias = Callable[[jax.Array, jax.Array], Scalar]
"""`log_site(s, y_i)`, nats: the log likelihood of one datum at s = a_i' z, under JAX."""

# Gauss-Hermite nodes of a tilted integral, and how often they are moved to where its mass is: the
# first pass sits on the cavity, the later ones on the tilted distribution itself.
_NODES = 48
_PASSES = 3


class AlongLines(GaussianSites):
    """Sites that see z `[d]` through one direction each, a_i' z: what linear models share."""

    directions: eqx.AbstractVar[Float[Array, "rows dim"]]
    prior_mean: eqx.AbstractVar[Float[Array, "dim"]]
    prior_root: eqx.AbstractVar[Float[Array, "dim dim"]]

    @property
    def dim(self) -> int:
        return self.directions.shape[1]

    @property
    def num_sites(self) -> int:
        return self.directions.shape[0]

    @property
    def multiplicities(self) -> Float[np.ndarray, "rows"]:
        return np.ones(self.num_sites)

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return tuple(f"z[{i}]" for i in range(self.dim))

    def constrain(self, z: Float[Array, "dim"]) -> PyTree:
        return {"z": z}

    def unconstrain(self, values: PyTree) -> Float[Array, "dim"]:
        return values["z"]

    def prior(self) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
        root = np.asarray(self.prior_root)
        return np.asarray(self.prior_mean), root @ root.T


@final
class LinearSites(AlongLines):
    """log p(z) = log N(z; m0, S0) + sum_i log_site(a_i' z, y_i), for expectation propagation.

    Generalised linear models. Tilted moments are one-dimensional and come from Gauss-Hermite nodes,
    centred first on the cavity, then on the tilted distribution (exact for Gaussian sites). Not for
    sites much narrower than their cavity, nor multimodal ones.

    Arguments:
        directions: a_i, `[n, d]`.
        log_site: `log_site(s, y_i) -> scalar`, nats, of s = a_i' z; traceable by JAX.
        data: y, an array with leading axis n.
        prior_mean: scalar or `[d]`.
        prior_var: positive scalar, or a covariance `[d, d]`.

    Raises:
        TargetError: shapes that disagree, values that are not finite, or a prior variance that is
            not positive.
    """

    directions: Float[Array, "rows dim"]
    log_site_along: SiteFunction = eqx.field(static=True)
    data: Shaped[Array, "rows *datum"]
    prior_mean: Float[Array, "dim"]
    prior_root: Float[Array, "dim dim"]

    def __init__(
        self,
        directions: Validated[ArrayLike, "finite_array"],
        log_site: SiteFunction,
        data: Validated[ArrayLike, "finite_array"],
        prior_mean: Validated[ArrayLike, "vector_of"] = 0.0,
        prior_var: Validated[ArrayLike, "root_of"] = 100.0,
    ):
        self.directions = finite_array(directions, "LinearSites", "directions")
        if self.directions.ndim != 2 or 0 in self.directions.shape:
            raise TargetError(
                "LinearSites: `directions` must be [n, d], one row per site; got"
                f" {self.directions.shape}."
            )
        self.data = finite_array(data, "LinearSites", "data")
        n, dim = self.directions.shape
        if self.data.shape[:1] != (n,):
            raise TargetError(
                f"LinearSites: `data` must have leading axis {n} as `directions`, got"
                f" {self.data.shape}."
            )
        self.log_site_along = log_site
        self.prior_mean = vector_of(prior_mean, dim, "LinearSites", "prior_mean")
        self.prior_root = root_of(prior_var, dim, "LinearSites", "prior_var")

    @host_unless_traced
    def log_site(self, i: Int[Array, ""] | int, z: Float[Array, "dim"]) -> Float[Array, ""]:
        along = jnp.asarray(self.directions)[i] @ z
        return jnp.asarray(self.log_site_along(along, jnp.asarray(self.data)[i]))

    @host_unless_traced
    def log_density(self, z: Float[Array, "dim"]) -> Float[Array, ""]:
        sites = jax.vmap(self.log_site_along)(
            jnp.asarray(self.directions) @ z, jnp.asarray(self.data)
        )
        return log_normal(z, self.prior_mean, self.prior_root) + jnp.sum(sites)

    def tilt(
        self,
        index: Int[np.ndarray, "k"],
        means: Float[np.ndarray, "k dim"],
        covs: Float[np.ndarray, "k dim dim"],
    ) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k dim"], Float[np.ndarray, "k dim dim"]]:
        a = np.asarray(self.directions)[index]
        mean, variance = np.einsum("kd,kd->k", a, means), np.einsum("kd,kde,ke->k", a, covs, a)
        log_z, centre, spread = self._on_nodes(index, (mean, variance), (mean, np.sqrt(variance)))
        for _ in range(_PASSES - 1):
            # A spread that rounds to zero would put all nodes of the next pass on one point
            width = np.sqrt(np.maximum(spread, 1e-12 * variance))
            log_z, centre, spread = self._on_nodes(index, (mean, variance), (centre, width))
        slope, bend = (centre - mean) / variance, (1.0 - spread / variance) / variance
        return log_z, slope[:, None] * a, bend[:, None, None] * a[:, :, None] * a[:, None, :]

    def _on_nodes(
        self,
        index: Int[np.ndarray, "k"],
        cavity: tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]],
        at: tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]],
    ) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
        """log Z_i, mean and variance of the tilted distributions of s = a_i' z.

        Arguments:
            index: the sites.
            cavity: mean and variance of s under each cavity.
            at: centre and width of the nodes.
        """
        (mean, variance), (centre, width) = cavity, at
        nodes, log_weights = _hermite()
        s = centre[:, None] + width[:, None] * nodes
        # The nodes' own N(centre, width^2) divided out, the cavity put in
        log_ratio = 0.5 * nodes**2 + np.log(width / np.sqrt(variance))[:, None]
        log_ratio = log_ratio - 0.5 * (s - mean[:, None]) ** 2 / variance[:, None] + log_weights
        log_terms = self._along(index, s) + log_ratio
        top = np.max(log_terms, axis=1)
        terms = np.exp(log_terms - top[:, None])
        total = terms.sum(axis=1)
        tilted = (terms * s).sum(axis=1) / total
        spread = (terms * (s - tilted[:, None]) ** 2).sum(axis=1) / total
        return top + np.log(total), tilted, spread

    def _along(
        self, index: Int[np.ndarray, "k"], s: Float[np.ndarray, "k nodes"]
    ) -> Float[np.ndarray, "k nodes"]:
        """log_site of each of the given sites at its own row of `s`."""
        with x64():
            return np.asarray(
                _along(
                    self.log_site_along,
                    jnp.asarray(to_device(self.data)),
                    jnp.asarray(index),
                    jnp.asarray(s),
                )
            )


@eqx.filter_jit
def _along(
    log_site: SiteFunction,
    data: Shaped[jax.Array, "rows *datum"],
    index: Int[jax.Array, "k"],
    s: Float[jax.Array, "k nodes"],
) -> Float[jax.Array, "k nodes"]:
    def of_site(
        row: Float[jax.Array, "nodes"], y: Shaped[jax.Array, "*datum"]
    ) -> Float[jax.Array, "nodes"]:
        return jax.vmap(lambda one: jnp.asarray(log_site(one, y)))(row)

    return jax.vmap(of_site)(s, data[index])


def _hermite() -> tuple[Float[np.ndarray, "nodes"], Float[np.ndarray, "nodes"]]:
    """Nodes and log weights for expectations under N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return nodes, np.log(weights / weights.sum())


__all__ = ["AlongLines", "LinearSites"]
