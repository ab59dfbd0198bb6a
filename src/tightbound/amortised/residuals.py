"""What an amortised q says of fresh draws.

Its outputs eta = f(x), the gradients of the loss in them, and their scale.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._numerics import as_key, to_device, x64
from ..certify.simulations import Simulated

_CHUNK = 250
_LARGEST_FULL = 64  # outputs; above it the information is taken to be diagonal
_SPARE = 16  # draws beyond twice the outputs, from which the information is estimated
# of the average information that is added everywhere, so that its inverse does not follow noise
_FLOOR = 0.02


@eqx.filter_jit
def _outputs(q: Any, z: Any, x: Any) -> Any:
    def one(z, x):
        eta, u = q.eta(x), q._standard(z)
        return eta, q.head.residual(eta, u), q.head.loss(eta, u)

    return jax.vmap(one)(z, x)


def outputs(q: Any, made: Simulated) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At the draws `made`.

    F(x) `[n, k]`, residuals r `[n, k]`, losses `[n]` (nats, in standardised z).
    """
    with x64():
        found = _outputs(to_device(q, q.dtype), *cast(q.dtype, made.z, made.x))
    eta, r, loss = (np.asarray(a, np.float64) for a in found)
    return eta, r, loss


def losses_at(q: Any, eta: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The losses `[n]` of outputs eta `[n, k]` at z `[n, d]`."""
    with x64():
        return np.asarray(_losses(to_device(q, q.dtype), *cast(q.dtype, eta, z)), np.float64)


@eqx.filter_jit
def _losses(q: Any, eta: Any, z: Any) -> Any:
    return jax.vmap(lambda e, z: q.head.loss(e, q._standard(z)))(eta, z)


class Whitened(NamedTuple):
    """What one network does at draws.

    Eta `[n, k]`, losses `[n]`, F(x)^(-1/2) `[n, k, k]`, whitened residuals `[n, k]`.
    """

    eta: np.ndarray
    loss: np.ndarray
    root: np.ndarray
    w: np.ndarray


def whitened(q: Any, made: Simulated, key: Any = 0) -> Whitened:
    """The outputs, losses and whitened residuals of a network at the draws `made`."""
    eta, r, loss = outputs(q, made)
    root = whitening(q, eta, key)
    return Whitened(eta, loss, root, np.einsum("nij,nj->ni", root, r))


def whitening(q: Any, eta: np.ndarray, key: Any) -> np.ndarray:
    """F(x)^(-1/2) `[n, k, k]`, with F = E_q[r r'] the Fisher information of the head at f(x), from
    draws of q.

    E[r r' | x] is F at the optimum, so whitened residuals have unit variance; near it the gap in
    nats at x is |F^(-1/2) g(x)|^2 / 2, whatever the head's coordinates are.
    """
    n, k = eta.shape
    draws = 2 * min(k, _LARGEST_FULL) + _SPARE
    with x64():
        head, key = to_device(q.head, q.dtype), as_key(key)
        # one shape, one program
        padded = np.concatenate([eta, np.repeat(eta[-1:], -n % _CHUNK, axis=0)])
        parts = []
        for i in range(0, len(padded), _CHUNK):
            (cut,) = cast(q.dtype, padded[i : i + _CHUNK])
            parts.append(np.asarray(_information(head, cut, jr.fold_in(key, i), draws), np.float64))
    information = np.concatenate(parts)[:n]
    average = np.diagonal(information, axis1=1, axis2=2).mean(axis=0)
    information += np.diag(_FLOOR * np.maximum(average, 1e-6 * max(average.max(), 1e-12)))
    values, vectors = np.linalg.eigh(information)
    return (vectors / np.sqrt(values)[:, None, :]) @ vectors.transpose(0, 2, 1)


@eqx.filter_jit
def _information(head: Any, eta: Any, key: Any, draws: int) -> Any:
    def one(eta, key):
        r = jax.vmap(lambda k: head.residual(eta, head.sample(eta, k)))(jr.split(key, draws))
        full = r.T @ r / draws
        return full if eta.shape[0] <= _LARGEST_FULL else jnp.diag(jnp.diagonal(full))

    return jax.vmap(one)(eta, jr.split(key, eta.shape[0]))


def cast(dtype: Any, *trees: Any) -> Any:
    """Each tree with its leaves on the device, in the dtype."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), trees)


__all__ = ["Whitened", "cast", "losses_at", "outputs", "whitened"]
