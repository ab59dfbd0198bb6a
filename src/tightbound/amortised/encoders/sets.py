"""Networks whose output does not depend on the order of the rows of x."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from ..._types import Array, PyTree
from ...families.encoder import AbstractEncoder, scaled, stack, the_array, through

# Added to the variances of the rows before their logarithm: standardised rows may all be equal.
_LEAST_VARIANCE = 1e-6
_SMALL = 0.1  # factor of the last layer's weights: q starts at about the prior


def _rows(x: PyTree, part: str) -> Float[jax.Array, "rows p"]:
    """x as rows of p numbers; a vector is rows of one number."""
    x = jnp.asarray(the_array(x, part))
    if x.ndim not in (1, 2):
        raise ValueError(f"{part} takes a set as an array [n] or [n, p], got shape {x.shape}.")
    return x[:, None] if x.ndim == 1 else x


class DeepSets(AbstractEncoder):
    """rho(mean of phi(x_i)), phi and rho networks.

    rho also gets the mean and the log sd of the rows themselves. For exchangeable rows: independent
    observations given the parameters. Cost n per set. Rows that must be compared with each other
    (which cluster is this?) are a SetTransformer's work.

    Source: Zaheer et al. 2017, theorem 2, with the mean in place of the sum, so that n does not set
    the scale.

    Attributes:
        each: layers of phi.
        together: layers of rho.
        last: to the output.
    """

    each: tuple[eqx.nn.Linear, ...]
    together: tuple[eqx.nn.Linear, ...]
    last: eqx.nn.Linear

    @staticmethod
    def make(
        features: int,
        size: int,
        key: jax.Array,
        *,
        width: int = 64,
        depth: int = 2,
        dtype: np.dtype | type = float,
    ) -> "DeepSets":
        """A random start for rows of `features` numbers."""
        first, second, last = jr.split(key, 3)
        return DeepSets(
            stack([features] + [width] * depth, first, dtype),
            stack([width + 2 * features] + [width] * depth, second, dtype),
            scaled(eqx.nn.Linear(width, size, dtype=dtype, key=last), _SMALL),
        )

    def __call__(self, x: PyTree) -> Float[Array, "size"]:
        rows = _rows(x, "DeepSets")
        pooled = jnp.mean(jax.vmap(lambda row: through(self.each, row, jax.nn.silu))(rows), axis=0)
        log_sd = 0.5 * jnp.log(jnp.var(rows, axis=0) + _LEAST_VARIANCE)
        return self.last(
            through(
                self.together,
                jnp.concatenate([pooled, jnp.mean(rows, axis=0), log_sd]),
                jax.nn.silu,
            )
        )


class _Attention(eqx.Module):
    """Multihead attention of queries on rows, then a ReLU layer, each added to its input."""

    attend: eqx.nn.MultiheadAttention
    forward: eqx.nn.Linear

    @staticmethod
    def make(width: int, heads: int, key: jax.Array, dtype: np.dtype | type) -> "_Attention":
        a, b = jr.split(key)
        # With biases, which every encoder needs (`AbstractEncoder`).
        attend = eqx.nn.MultiheadAttention(
            heads,
            width,
            use_query_bias=True,
            use_key_bias=True,
            use_value_bias=True,
            use_output_bias=True,
            dtype=dtype,
            key=a,
        )
        return _Attention(attend, eqx.nn.Linear(width, width, dtype=dtype, key=b))

    def __call__(
        self, queries: Float[jax.Array, "queries width"], rows: Float[jax.Array, "rows width"]
    ) -> Float[jax.Array, "queries width"]:
        h = queries + self.attend(queries, rows, rows)
        return h + jax.nn.relu(jax.vmap(self.forward)(h))


class _Induced(eqx.Module):
    """Attention of n rows on each other through m induced points: cost n m instead of n^2."""

    points: Float[Array, "m width"]
    inward: _Attention
    outward: _Attention

    def __call__(self, rows: Float[jax.Array, "rows width"]) -> Float[jax.Array, "rows width"]:
        return self.outward(rows, self.inward(jnp.asarray(self.points), rows))


class SetTransformer(AbstractEncoder):
    """Induced self-attention, pooling by attention on learned seeds, a linear output for each seed.

    For exchangeable rows that must be compared with each other: mixtures, clusters, outliers. Some
    ten times the cost of DeepSets; with m induced points it grows as n m.

    Source: Lee et al. 2019, equations 8-12 (ISAB and PMA), without layer normalisation, as in
    McNamara et al. 2024.

    Attributes:
        embed: rows to the width.
        blocks: induced self-attention.
        seeds: what the rows are pooled on.
        pool: attention of the seeds on the rows.
        last: from the seeds to the output.
    """

    embed: eqx.nn.Linear
    blocks: tuple[_Induced, ...]
    seeds: Float[Array, "seeds width"]
    pool: _Attention
    last: eqx.nn.Linear

    @staticmethod
    def make(
        features: int,
        size: int,
        key: jax.Array,
        *,
        width: int = 64,
        heads: int = 4,
        induced: int = 16,
        seeds: int = 4,
        depth: int = 2,
        dtype: np.dtype | type = float,
    ) -> "SetTransformer":
        """A random start for rows of `features` numbers; `width` a multiple of `heads`."""
        if width % heads:
            raise ValueError(
                f"SetTransformer: `width` must be a multiple of `heads`, got {width} and {heads}."
            )
        keys = jr.split(key, 4 + 3 * depth)
        blocks = tuple(
            _Induced(
                jr.normal(keys[4 + 3 * i], (induced, width), dtype) / width**0.5,
                _Attention.make(width, heads, keys[5 + 3 * i], dtype),
                _Attention.make(width, heads, keys[6 + 3 * i], dtype),
            )
            for i in range(depth)
        )
        return SetTransformer(
            eqx.nn.Linear(features, width, dtype=dtype, key=keys[0]),
            blocks,
            jr.normal(keys[1], (seeds, width), dtype) / width**0.5,
            _Attention.make(width, heads, keys[2], dtype),
            scaled(eqx.nn.Linear(seeds * width, size, dtype=dtype, key=keys[3]), _SMALL),
        )

    def __call__(self, x: PyTree) -> Float[Array, "size"]:
        rows = jax.vmap(self.embed)(_rows(x, "SetTransformer"))
        for block in self.blocks:
            rows = block(rows)
        return self.last(self.pool(jnp.asarray(self.seeds), rows).reshape(-1))


__all__ = ["DeepSets", "SetTransformer"]
