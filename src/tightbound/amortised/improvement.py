"""By how much could a better function than f still lower the expected loss?

A correction of f is found by regression, and judged on draws that it has not seen. With a loss that
is convex in eta and r its gradient at f(x), L(f) - L(h) <= E <r, f - h> for any function h. The h
here is f minus a regression of r on x, whitened by the Fisher information: near the optimum the
whole gap is half of the first-order term E <r, f - h> at the best h, so that a regression that
finds more than half of g has a bound above the gap.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float, Int

from .._numerics import as_key, host_rng, to_device, x64
from .._types import Array, Estimate, Key, PyTree
from ..certify.simulations import Simulated, features
from ..families.conditional import Conditional
from ..families.head import AbstractHead

_WIDTHS = (0.15, 0.3, 0.6, 1.2)  # of the Gaussian kernel, in median distances
_RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # in units of the variance of a whitened residual
_LANDMARKS = 200  # centres of the bumps: a regression on so many takes a fraction of a second
_PARTS = 5  # three to fit on, one to choose on, one to judge on
_LARGEST_LINEAR = 200  # numbers in x that a linear regression takes
_STEPS = (0.25, 0.5, 1.0, 2.0)  # in units of the regression's own step, which ridges shorten
_CHUNK = 250  # draws of which the information is estimated in one call of the compiled program
_LARGEST_FULL = 64  # outputs; above it the information is taken to be diagonal
_SPARE = 16  # draws beyond twice the outputs, from which the information is estimated
# Of the average information that is added everywhere, so that its inverse does not follow noise
_FLOOR = 0.02


@eqx.filter_jit
def _outputs(
    q: Conditional, z: Float[Array, "n dim"], x: PyTree
) -> tuple[Float[Array, "n k"], Float[Array, "n k"], Float[Array, "n"]]:
    def one(
        z: Float[Array, "dim"], x: PyTree
    ) -> tuple[Float[Array, "k"], Float[Array, "k"], Float[Array, ""]]:
        eta, u = q.eta(x), q._standard(z)
        return eta, q.head.residual(eta, u), q.head.loss(eta, u)

    return jax.vmap(one)(z, x)


def outputs(
    q: Conditional, made: Simulated
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"], Float[np.ndarray, "n"]]:
    """At the draws `made`: f(x), residuals r, and losses (nats, in standardised z)."""
    with x64():
        found = _outputs(to_device(q, q.dtype), *cast(q.dtype, made.z, made.x))
    # In float64 whatever the network's dtype is: sums over thousands of draws follow.
    eta, r, loss = (np.asarray(a, np.float64) for a in found)
    return eta, r, loss


def losses_at(
    q: Conditional, eta: Float[np.ndarray, "n k"], z: Float[np.ndarray, "n dim"]
) -> Float[np.ndarray, "n"]:
    """The losses of outputs eta at z."""
    with x64():
        return np.asarray(_losses(to_device(q, q.dtype), *cast(q.dtype, eta, z)), np.float64)


@eqx.filter_jit
def _losses(
    q: Conditional, eta: Float[Array, "n k"], z: Float[Array, "n dim"]
) -> Float[Array, "n"]:
    return jax.vmap(lambda e, z: q.head.loss(e, q._standard(z)))(eta, z)


class Whitened(NamedTuple):
    """What one network does at draws.

    Attributes:
        eta: its outputs f(x).
        loss: nats.
        root: F(x)^(-1/2), see `whitening`.
        w: whitened residuals.
    """

    eta: Float[np.ndarray, "n k"]
    loss: Float[np.ndarray, "n"]
    root: Float[np.ndarray, "n k k"]
    w: Float[np.ndarray, "n k"]


def whitened(q: Conditional, made: Simulated, key: Key = 0) -> Whitened:
    """The outputs, losses and whitened residuals of a network at the draws `made`."""
    eta, r, loss = outputs(q, made)
    root = whitening(q, eta, key)
    return Whitened(eta, loss, root, np.einsum("nij,nj->ni", root, r))


def whitening(
    q: Conditional, eta: Float[np.ndarray, "n k"], key: Key
) -> Float[np.ndarray, "n k k"]:
    """F(x)^(-1/2), F = E_q[r r'] the Fisher information of the head at f(x), from draws of q.

    E[r r' | x] is F at the optimum, so whitened residuals have unit variance; near it the gap in
    nats at x is |F^(-1/2) g(x)|^2 / 2, whatever the head's coordinates are.
    """
    n, k = eta.shape
    draws = 2 * min(k, _LARGEST_FULL) + _SPARE
    with x64():
        head, key = to_device(q.head, q.dtype), as_key(key)
        # Padded to whole chunks: one shape, one program.
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
def _information(
    head: AbstractHead, eta: Float[Array, "chunk k"], key: jax.Array, draws: int
) -> Float[Array, "chunk k k"]:
    def one(eta: Float[Array, "k"], key: jax.Array) -> Float[Array, "k k"]:
        r = jax.vmap(lambda k: head.residual(eta, head.sample(eta, k)))(jr.split(key, draws))
        full = r.T @ r / draws
        return full if eta.shape[0] <= _LARGEST_FULL else jnp.diag(jnp.diagonal(full))

    return jax.vmap(one)(eta, jr.split(key, eta.shape[0]))


def cast(dtype: np.dtype, *trees: PyTree) -> tuple[PyTree, ...]:
    """Each tree with its leaves on the device, in the dtype."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), trees)


@dataclasses.dataclass(frozen=True)
class Improvement:
    """What a correction h of f does, in nats: 0 <= L(f) - L(h) <= bound, up to standard errors.

    Attributes:
        gain: L(f) - L(h), on draws that h has not seen: at most the gap to the optimum.
        bound: E <r, f - h> on the same draws: for a convex head at least the gain, and near the
            optimum about twice the part of the gap that the regression sees.
    """

    gain: Estimate
    bound: Estimate


def improvement(
    q: Conditional, made: Simulated, key: Key = 0, seen: Whitened | None = None
) -> Improvement:
    """The best correction of a network that ridge regressions on draws can find, and its gain.

    The draws are cut in five: regressions of several kinds are fitted to three parts, one of them
    and its step are chosen on the fourth, and judged on the fifth; in turn. So noise gains nothing.

    Arguments:
        q: one network.
        made: fresh draws.
        key: of landmarks and of draws of q.
        seen: `whitened(q, made, key)`, where it is known already.
    """
    n = len(made) // _PARTS * _PARTS
    eta, loss, root, w = (part[:n] for part in (whitened(q, made, key) if seen is None else seen))
    bases = list(_bases(features(q, made.x)[:n], key))
    parts = np.array_split(np.arange(n), _PARTS)
    gains, bounds = np.zeros(n), np.zeros(n)
    for i in range(_PARTS):
        choose, judge = parts[i - 1], parts[i]
        held = np.concatenate([choose, judge])
        found = np.concatenate(
            [_ridge_regressions(basis, w, np.delete(np.arange(n), held), held) for basis in bases]
        )
        first = slice(0, len(choose))
        # In whitened coordinates the gain of a small step is its product with the residual less
        # half its square.
        best = found[
            np.argmax(np.sum(w[choose] * found[:, first] - 0.5 * found[:, first] ** 2, axis=(1, 2)))
        ]
        direction = np.einsum("nij,nj->ni", root[held], best)
        gained = {
            s: loss[held] - losses_at(q, eta[held] - s * direction, made.z[held]) for s in _STEPS
        }
        step = max(_STEPS, key=lambda s, gained=gained, first=first: np.mean(gained[s][first]))
        # Where nothing was gained on the fourth part, h is f there, which gains exactly nothing.
        if np.mean(gained[step][first]) > 0:
            gains[judge] = gained[step][len(choose) :]
            bounds[judge] = step * np.sum(w[held] * best, axis=1)[len(choose) :]
    return Improvement(average(gains), average(bounds))


def _bases(x: Float[np.ndarray, "n p"], key: Key) -> Iterator[Float[np.ndarray, "n m"]]:
    """Functions of x to regress on.

    Linear ones, and Gaussian bumps of several widths (Nystrom's features).
    """
    if x.shape[1] <= _LARGEST_LINEAR:
        yield np.concatenate([np.ones((len(x), 1)), x], axis=1)
    chosen = host_rng(key, "landmarks").choice(len(x), min(_LANDMARKS, len(x)), replace=False)
    square = squared_distances(x, x[chosen])
    middle = max(float(np.median(square)), 1e-12)
    for width in _WIDTHS:
        bumps = np.exp(-0.5 * square / (middle * width**2))
        values, vectors = np.linalg.eigh(bumps[chosen])
        # Directions below the rounding of the kernel matrix would be divided by next to nothing.
        keep = values > 1e-8 * values[-1]
        yield bumps @ (vectors[:, keep] / np.sqrt(values[keep]))


def _ridge_regressions(
    basis: Float[np.ndarray, "n m"],
    w: Float[np.ndarray, "n k"],
    fitted: Int[np.ndarray, "fitted"],
    judged: Int[np.ndarray, "judged"],
) -> Float[np.ndarray, "ridges judged k"]:
    """Predictions of w at the rows `judged`, from regressions on those `fitted`, for each ridge."""
    values, vectors = np.linalg.eigh(basis[fitted].T @ basis[fitted])
    turned, projected = basis[judged] @ vectors, vectors.T @ (basis[fitted].T @ w[fitted])
    return np.stack(
        [turned @ (projected / (np.maximum(values, 0.0) + ridge)[:, None]) for ridge in _RIDGES]
    )


def squared_distances(
    a: Float[np.ndarray, "n p"], b: Float[np.ndarray, "m p"]
) -> Float[np.ndarray, "n m"]:
    """|a_i - b_j|^2."""
    return np.maximum(
        np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)[None, :] - 2 * a @ b.T, 0.0
    )


def average(values: Float[np.ndarray, "n"]) -> Estimate:
    """The mean, with its standard error."""
    return Estimate(float(values.mean()), float(values.std() / np.sqrt(len(values))))


__all__ = [
    "Improvement",
    "Whitened",
    "average",
    "cast",
    "improvement",
    "losses_at",
    "outputs",
    "squared_distances",
    "whitened",
]
