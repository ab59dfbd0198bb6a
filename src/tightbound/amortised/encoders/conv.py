"""A convolutional network for images."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from ..._types import Array, PyTree
from ...families.encoder import AbstractEncoder, he, scaled, stack, the_array, through


class ConvNet(AbstractEncoder):
    """Convolutions (3 x 3, stride 2, ReLU), then linear layers.

    x is `[height, width]` or `[channels, height, width]`. For images and fields on a grid. A stack
    of independent images `[n, height, width]` that share their parameters is encoded one by one and
    averaged (`images=True`), as for the shared angle of McNamara et al. 2024, section 5.3.

    Attributes:
        convolutions: each halves height and width.
        layers: linear, after flattening.
        last: to the output.
        images: whether the leading axis counts independent images.
    """

    convolutions: tuple[eqx.nn.Conv2d, ...]
    layers: tuple[eqx.nn.Linear, ...]
    last: eqx.nn.Linear
    images: bool = eqx.field(static=True, default=False)

    @staticmethod
    def make(
        shape: tuple[int, ...],
        size: int,
        key: jax.Array,
        *,
        channels: tuple[int, ...] = (8, 16, 32),
        width: int = 64,
        depth: int = 2,
        images: bool = False,
        dtype: np.dtype | type = float,
    ) -> "ConvNet":
        """A random start for x of `shape`.

        That is [height, width], or [channels, height, width], or with `images` [n, height, width].
        """
        if len(shape) not in (2, 3):
            raise ValueError(
                "ConvNet: x must be [height, width] or [channels, height, width], got shape"
                f" {shape}."
            )
        single = (1, *shape[-2:]) if len(shape) == 2 or images else shape
        keys = jr.split(key, len(channels) + 2)
        convolutions, (ins, height, wide) = [], single
        for k, outs in zip(keys, channels, strict=False):
            if min(height, wide) < 3:  # smaller than a kernel
                break
            convolutions.append(he(eqx.nn.Conv2d(ins, outs, 3, stride=2, dtype=dtype, key=k)))
            ins, height, wide = outs, (height - 1) // 2, (wide - 1) // 2
        flat = ins * height * wide
        layers = tuple(he(layer) for layer in stack([flat] + [width] * depth, keys[-2], dtype))
        # A small last layer: q starts at about the prior, whatever the weights are.
        last = scaled(eqx.nn.Linear(width if depth else flat, size, dtype=dtype, key=keys[-1]), 0.1)
        return ConvNet(tuple(convolutions), layers, last, images)

    def __call__(self, x: PyTree) -> Float[Array, "size"]:
        x = jnp.asarray(the_array(x, "ConvNet"))
        if self.images:
            return jax.vmap(lambda image: self._one(image[None]))(x).mean(axis=0)
        return self._one(x[None] if x.ndim == 2 else x)

    def _one(self, h: Float[jax.Array, "channels height width"]) -> Float[Array, "size"]:
        for convolution in self.convolutions:
            h = jax.nn.relu(convolution(h))
        return self.last(through(self.layers, h.reshape(-1), jax.nn.leaky_relu))


__all__ = ["ConvNet"]
