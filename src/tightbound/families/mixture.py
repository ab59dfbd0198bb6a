"""A mixture of members of any families: for posteriors with several modes."""

from collections.abc import Iterable
from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import numpy as np
from jaxtyping import Float

from .._numerics import host_rng
from .._types import Array, Key, PyTree, Validated
from .base import AbstractFamily, on_one_thread


class Mixture(AbstractFamily):
    """q(z) = sum_k w_k q_k(z), w = softmax(logits).

    Use it where searches from several starts end on several optima. Draws are not a smooth function
    of the weights, so pathwise estimators refuse it (use Score, or the mixture rung of the
    default). Not for one curved mode: a NestedGaussian or a Flow says more with fewer parameters.

    Arguments:
        components: members of one dimension, of any families.
        logits: log weights up to a constant, one for each component; equal weights by default.

    Raises:
        ValueError: no components, components of different dimensions, or another number of logits.
    """

    components: tuple[AbstractFamily, ...]
    logits: Float[Array, "components"]
    reparameterised: ClassVar[bool] = False

    def __init__(
        self,
        components: Iterable[AbstractFamily],
        logits: Validated[Float[Array, "components"] | None, "this function"] = None,
    ):
        self.components = tuple(components)
        if not self.components:
            raise ValueError(
                "Mixture: `components` is empty; pass at least one member of a family."
            )
        if len({q.dim for q in self.components}) > 1:
            raise ValueError(
                f"Mixture: `components` differ in dimension: {[q.dim for q in self.components]}."
            )
        self.logits = np.zeros(len(self.components)) if logits is None else logits
        if np.shape(self.logits) != (len(self.components),):
            raise ValueError(
                f"Mixture: `logits` must have shape [{len(self.components)}], got"
                f" {np.shape(self.logits)}."
            )

    def parts(self) -> tuple[AbstractFamily, ...]:
        return tuple(self.components)

    @property
    def dim(self) -> int:
        return self.components[0].dim

    @property
    def weights(self) -> Float[np.ndarray, "components"]:
        """The mixture weights, on the host."""
        shifted = np.exp(np.asarray(self.logits) - np.max(self.logits))
        return shifted / shifted.sum()

    def _sample(self, key: jax.Array, x: PyTree = None) -> Float[Array, "dim"]:
        choose, *keys = jr.split(key, 1 + len(self.components))
        draws = jnp.stack([q._sample(k, x) for q, k in zip(self.components, keys, strict=True)])
        return draws[jr.categorical(choose, jnp.asarray(self.logits))]

    def _log_prob(self, z: Float[Array, "dim"], x: PyTree = None) -> Float[Array, ""]:
        each = jnp.stack([q._log_prob(z, x) for q in self.components])
        return jsp.logsumexp(each + jax.nn.log_softmax(jnp.asarray(self.logits)))

    @on_one_thread
    def log_prob_on_host(self, z: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n"]:
        shifted = np.asarray(self.logits) - np.max(self.logits)
        # Not the log of `weights`, of which one may underflow
        log_weights = shifted - np.log(np.exp(shifted).sum())
        each = np.stack([q.log_prob_on_host(z) for q in self.components], axis=1) + log_weights
        return np.logaddexp.reduce(each, axis=1)

    @on_one_thread
    def draw(self, n: int, key: Key) -> tuple[Float[np.ndarray, "n dim"], Float[np.ndarray, "n"]]:
        """Each component gives its share of the draws, to the nearest draw; shuffled."""
        rng = host_rng(key, "mixture")
        # Shares are rounded as sums, and with a common offset: so many draws in all, and each
        # component's number is right on average over keys.
        counts = np.diff(
            np.round(
                np.concatenate([[0.0], np.cumsum(self.weights)]) * n + rng.uniform(-0.5, 0.5)
            ).clip(0, n)
        )
        counts[-1] += n - counts.sum()
        seeds = rng.integers(2**31, size=len(self.components))
        parts = [
            q.draw(int(c), int(s))[0]
            for q, c, s in zip(self.components, counts, seeds, strict=True)
            if c > 0
        ]
        z = rng.permutation(np.concatenate(parts))
        return z, self.log_prob_on_host(z)
