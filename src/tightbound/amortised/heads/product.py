"""Independent heads side by side: an angle beside numbers on the line, say."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from ..._types import Array
from ...families.head import AbstractHead


class Product(AbstractHead):
    """q(u; eta) = prod_i q_i(u_i; eta_i) over blocks of coordinates; convex where every factor is.

    The blocks are independent given x, so correlations between them are lost.

    Attributes:
        factors: the heads.
        places: for each factor the coordinates that it speaks of; together 0, ..., dim - 1.
    """

    factors: tuple[AbstractHead, ...]
    places: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    def __check_init__(self):
        counted = sorted(i for place in self.places for i in place)
        if [len(place) for place in self.places] != [
            f.dim for f in self.factors
        ] or counted != list(range(self.dim)):
            raise ValueError(
                "Product head: `places` must give each factor as many coordinates as it has, each"
                " exactly once."
            )

    # Properties where every other head has class variables: what the factors say.
    @property
    def convex(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(f.convex for f in self.factors)

    @property
    def reparameterised(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(f.reparameterised for f in self.factors)

    @property
    def dim(self) -> int:
        return sum(f.dim for f in self.factors)

    @property
    def size(self) -> int:
        return sum(f.size for f in self.factors)

    @property
    def circular(self) -> tuple[bool, ...]:
        flags = [False] * self.dim
        for factor, place in zip(self.factors, self.places, strict=True):
            for i, flag in zip(place, factor.circular, strict=True):
                flags[i] = flag
        return tuple(flags)

    def log_prob(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        return jnp.sum(jnp.stack([f.log_prob(e, u[np.array(p)]) for f, e, p in self._each(eta)]))

    def loss(self, eta: Float[Array, "size"], u: Float[Array, "dim"]) -> Float[Array, ""]:
        return jnp.sum(jnp.stack([f.loss(e, u[np.array(p)]) for f, e, p in self._each(eta)]))

    def sample(self, eta: Float[Array, "size"], key: jax.Array) -> Float[Array, "dim"]:
        keys = jr.split(key, len(self.factors))
        return self._scattered(
            [f.sample(e, k) for (f, e, _), k in zip(self._each(eta), keys, strict=True)]
        )

    def moments(
        self, eta: Float[Array, "size"]
    ) -> tuple[Float[Array, "dim"], Float[Array, "dim"]] | None:
        found = [f.moments(e) for f, e, _ in self._each(eta)]
        if any(m is None for m in found):
            return None
        means, sds = zip(*[m for m in found if m is not None], strict=True)
        return self._scattered(means), self._scattered(sds)

    def start(self) -> Float[np.ndarray, "size"]:
        return np.concatenate([f.start() for f in self.factors])

    def linear_start(
        self,
        slope: Float[np.ndarray, "dim p"],
        mean: Float[np.ndarray, "dim"],
        cov: Float[np.ndarray, "dim dim"],
    ) -> tuple[Float[np.ndarray, "size p"], Float[np.ndarray, "size"]]:
        parts = []
        for factor, place in zip(self.factors, self.places, strict=True):
            i = list(place)
            parts.append(factor.linear_start(slope[i], mean[i], cov[np.ix_(i, i)]))
        return np.concatenate([w for w, _ in parts]), np.concatenate([b for _, b in parts])

    def _each(
        self, eta: Float[Array, "size"]
    ) -> list[tuple[AbstractHead, Float[Array, "own"], tuple[int, ...]]]:
        """Each factor with its own eta and its places."""
        ends = np.cumsum([f.size for f in self.factors])[:-1].tolist()
        return list(zip(self.factors, jnp.split(eta, ends), self.places, strict=True))

    def _scattered(self, pieces: Sequence[Float[Array, "own"]]) -> Float[Array, "dim"]:
        """What the factors say of their coordinates, in the order of all coordinates."""
        order = np.argsort([i for place in self.places for i in place])
        return jnp.concatenate(pieces)[order]


__all__ = ["Product"]
