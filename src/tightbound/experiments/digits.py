"""Rotated digits: real images, a small decoder trained on them, rotation by interpolation."""

import gzip
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Float
from numpy.typing import ArrayLike

from .._types import Array, Scalar, Validated
from ..amortised import encoders
from ..results import MissingExtraError
from .result import OptionError

LATENT = 16  # numbers behind an image; the published decoder has 64
NOISE = 0.01  # sd of a pixel, as published
_FILE = "train-images-idx3-ubyte.gz"
_MOST = 20_000  # images of MNIST: enough for a small decoder, and a third of the memory
_BATCH = 128  # images in one step of the decoder's training

Layer: TypeAlias = tuple[Float[Array, "inputs outputs"], Float[Array, "outputs"]]
"""Weights and biases."""


class Decoder(NamedTuple):
    """z `[LATENT]` to an image `[side, side]` with values in (0, 1).

    LATENT-128-128-side^2, ReLU, sigmoid.
    """

    weights: list[Layer]
    side: int

    def __call__(self, z: Float[Array, "latent"]) -> Float[jax.Array, "side side"]:
        h = z
        for w, b in self.weights[:-1]:
            h = jax.nn.relu(h @ w + b)
        w, b = self.weights[-1]
        return jax.nn.sigmoid(h @ w + b).reshape((self.side, self.side))


def images(
    data: str | os.PathLike[str] | None,
) -> tuple[Float[np.ndarray, "n side side"], str]:
    """Images with values in [0, 1], and where they are from.

    MNIST in the folder `data`, or scikit-learn's digits where it is None.

    Raises:
        OptionError: the folder does not hold MNIST.
        MissingExtraError: there is no folder, and scikit-learn is not installed.
    """
    if data is not None:
        file = Path(data) / _FILE
        if not file.exists():
            raise OptionError(f"experiments: there is no {_FILE} (MNIST) in {os.fspath(data)}.")
        with gzip.open(file) as content:
            # The header of an idx file of images: four integers of four bytes
            raw = np.frombuffer(content.read(), np.uint8, offset=16)
        return raw.reshape((-1, 28, 28))[:_MOST] / 255.0, "MNIST"
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError("scikit-learn", "data", "The digits") from None
    # scikit-learn's types do not say which of two forms comes; 8 x 8 pixels, from 0 to 16
    small = cast(Mapping[str, np.ndarray], load_digits())["images"] / 16.0
    # Twice the size, because a rotation of eight pixels blurs most of a digit.
    return (
        np.asarray(jax.image.resize(jnp.asarray(small), (len(small), 16, 16), "bilinear")),
        "scikit-learn's digits, 16 x 16",
    )


def train_decoder(
    pictures: Float[np.ndarray, "n side side"], steps: int = 1500, key: int = 0
) -> Decoder:
    """The decoder of a variational autoencoder: batches of 128, Adam at 1e-3; float32."""
    side, pixels = pictures.shape[1], pictures.shape[1] ** 2
    flat = jnp.asarray(pictures.reshape((-1, pixels)), jnp.float32)
    keys = jr.split(jr.key(key), 7)

    def layer(k, a, b, scale=1.0):
        return (
            scale * jr.normal(k, (a, b), jnp.float32) * (2 / a) ** 0.5,
            jnp.zeros(b, jnp.float32),
        )

    encoder = [layer(keys[0], pixels, 128), layer(keys[1], 128, 2 * LATENT, 0.1)]
    decoder = [
        layer(keys[2], LATENT, 128),
        layer(keys[3], 128, 128),
        layer(keys[4], 128, pixels, 0.1),
    ]

    def loss(weights, key):
        encoder, decoder = weights
        pick, noise = jr.split(key)
        x = flat[jr.randint(pick, (_BATCH,), 0, len(flat))]
        out = jax.nn.relu(x @ encoder[0][0] + encoder[0][1]) @ encoder[1][0] + encoder[1][1]
        mean, log_sd = out[:, :LATENT], jnp.clip(out[:, LATENT:], -6.0, 2.0)
        z = mean + jnp.exp(log_sd) * jr.normal(noise, mean.shape, jnp.float32)
        y = jax.vmap(Decoder(decoder, side))(z).reshape((_BATCH, pixels))
        # 1e-6: a sigmoid in float32 can be exactly 0 or 1
        fit = -jnp.sum(x * jnp.log(y + 1e-6) + (1 - x) * jnp.log(1 - y + 1e-6), axis=1)
        return jnp.mean(fit + 0.5 * jnp.sum(mean**2 + jnp.exp(2 * log_sd) - 1 - 2 * log_sd, axis=1))

    adam = optax.adam(1e-3)

    @jax.jit
    def trained(weights):
        def body(carry, n):
            weights, state = carry
            updates, state = adam.update(
                jax.grad(loss)(weights, jr.fold_in(keys[6], n)), state, weights
            )
            return (optax.apply_updates(weights, updates), state), None

        return jax.lax.scan(body, (weights, adam.init(weights)), jnp.arange(steps))[0][0]

    return Decoder(jax.tree.map(np.asarray, trained((encoder, decoder))[1]), side)


def rotate(pictures: Float[Array, "n side side"], angle: Scalar) -> Float[Array, "n side side"]:
    """Images turned by `angle` (radians).

    Bilinear, border padding, as PyTorch's affine grid has it.
    """
    side = pictures.shape[-1]
    grid = (np.arange(side) + 0.5) * 2 / side - 1
    x, y = (jnp.asarray(a, pictures.dtype) for a in np.meshgrid(grid, grid))
    c, s = jnp.cos(angle).astype(pictures.dtype), jnp.sin(angle).astype(pictures.dtype)
    place = lambda u: jnp.clip((u + 1) * (side / 2) - 0.5, 0, side - 1)  # noqa: E731
    px, py = place(c * x - s * y), place(s * x + c * y)
    x0, y0 = jnp.floor(px).astype(int), jnp.floor(py).astype(int)
    x1, y1 = jnp.minimum(x0 + 1, side - 1), jnp.minimum(y0 + 1, side - 1)
    a, b = (px - x0.astype(px.dtype))[None], (py - y0.astype(py.dtype))[None]
    top = pictures[:, y0, x0] * (1 - a) + pictures[:, y0, x1] * a
    return top * (1 - b) + (pictures[:, y1, x0] * (1 - a) + pictures[:, y1, x1] * a) * b


def encoder_of_angle(pictures: Float[Array, "n side side"], size: int) -> encoders.AbstractEncoder:
    """A random start of the network from all pictures at once to `size` numbers of their angle."""
    return encoders.ConvNet.make(
        pictures.shape,
        size,
        jr.key(5),
        channels=(4, 16, 32),
        width=128,
        images=True,
        dtype=jnp.float32,
    )


def degrees(angle: Float[Array, "*shape"] | float) -> np.ndarray | np.floating:
    """Radians as degrees in [0, 360)."""
    return np.degrees(np.asarray(angle, np.float64)) % 360.0


def away(a: Validated[ArrayLike, "NumPy"], b: float) -> np.ndarray | np.floating:
    """How far the directions `a` and `b` lie apart, in degrees."""
    return np.abs((np.asarray(a) - b + 180.0) % 360.0 - 180.0)


__all__ = [
    "LATENT",
    "NOISE",
    "Decoder",
    "away",
    "degrees",
    "encoder_of_angle",
    "images",
    "rotate",
    "train_decoder",
]
