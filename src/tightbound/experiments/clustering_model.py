"""The clusters with a shared shift: the model, its exact posterior, and the networks.

S ~ N(0, 100^2), Z_j | S ~ N(mu_j + S, 0.5^2) with mu = (-20, -10, 0, 10, 20), X_i | Z an equal
mixture of N(Z_j, 0.1^2).

Source: McNamara, Loper & Regier 2024, section 5.2.
"""

import functools
import math
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from .._types import Array, PyTree
from ..amortised import encoders, heads
from ..families import Conditional, Gaussian, Scaling
from ..targets.simulator import SimulatedModel, SimulatorPosterior, from_simulator

CENTRES = np.array([-20.0, -10.0, 0.0, 10.0, 20.0])
SPREAD, NOISE, SHIFT_SD = 0.5, 0.1, 100.0  # sds of a centre given S, of an observation, of S
TRUE_SHIFT = 100.0  # of every data set: one prior sd away from where untrained networks look
_WIDTH = 64  # of the networks, as published

DataSets: TypeAlias = Float[Array, "replicates n"]
"""One row of observations for each replicate."""


class Pooled(eqx.Module):
    """Numbers for each of a few learned seeds, by one network.

    The rows go through two layers and are averaged, the seed is added, and the last layers are the
    same for all seeds. As in the published pooling by attention, the seeds share everything but
    themselves. Modes with weights of their own would be put in order by the prior while none has
    found the data, and the comparison would be about that.
    """

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    seeds: Float[Array, "seeds width"]
    together: eqx.nn.Linear
    last: eqx.nn.Linear

    @staticmethod
    def make(count: int, outputs: int, key: jax.Array, width: int = _WIDTH) -> "Pooled":
        """Networks for `count` seeds with `outputs` numbers each, at their start, in float32."""
        a, b, c, d, e = jr.split(key, 5)
        linear = functools.partial(eqx.nn.Linear, dtype=jnp.float32)
        seeds = jr.normal(c, (count, width), jnp.float32) * (2 / (count + width)) ** 0.5  # Xavier
        return Pooled(
            linear(1, width, key=a),
            linear(width, width, key=b),
            seeds,
            linear(width, width, key=d),
            linear(width, outputs, key=e),
        )

    def __call__(self, x: Float[Array, "n"]) -> Float[jax.Array, "seeds outputs"]:
        """The numbers of every seed for observations x."""
        rows = jax.vmap(lambda row: self.second(jax.nn.relu(self.first(row[None]))))(x)
        h = jnp.mean(jax.nn.relu(rows), axis=0) + self.seeds
        return jax.vmap(self.last)(h + jax.nn.relu(jax.vmap(self.together)(h)))


class TwoEncoders(encoders.AbstractEncoder):
    """One network for S and one for Z, trained together, on x / 100.

    What places q is multiplied by 100 in turn.
    """

    shift: Pooled
    centres: Pooled

    def __call__(self, x: PyTree) -> Float[jax.Array, "outputs"]:
        out = jnp.concatenate([self.shift(x / SHIFT_SD), self.centres(x / SHIFT_SD)])
        # The first numbers are where q is. To the others 1 is added, so that a network whose last
        # layer is zero starts with variances of about 1 and not at the edge of their domain.
        return jnp.concatenate([out[:, 0] * SHIFT_SD, *(1.0 + column for column in out[:, 1:].T)])


def model(n: int) -> SimulatedModel:
    """The model with n observations; its values are s and z[0], ..., z[4]."""

    def draw_prior(key):
        a, b = jr.split(key)
        s = SHIFT_SD * jr.normal(a)
        return {"s": s, "z": s + CENTRES + SPREAD * jr.normal(b, (5,))}

    def simulate(key, params):
        a, b = jr.split(key)
        return params["z"][jr.randint(a, (n,), 0, 5)] + NOISE * jr.normal(b, (n,))

    def log_prior(params):
        # Networks in float32 train at half the cost
        centres = jnp.asarray(CENTRES, params["z"].dtype)
        within = jnp.sum(((params["z"] - centres - params["s"]) / SPREAD) ** 2)
        return (
            -0.5 * (params["s"] / SHIFT_SD) ** 2
            - 0.5 * within
            - 5 * math.log(SPREAD * math.sqrt(2 * math.pi))
        )

    def log_likelihood(params, x):
        # One vector over the observations for each cluster: a sum over a last axis of length 5
        # takes five times as long.
        each = [-0.5 * ((x - params["z"][j]) / NOISE) ** 2 for j in range(5)]
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, each))
        mixed = top + jnp.log(functools.reduce(jnp.add, [jnp.exp(e - top) for e in each]))
        return jnp.sum(mixed - math.log(NOISE * math.sqrt(2 * math.pi) * 5))

    return from_simulator(draw_prior, simulate, log_prior=log_prior, log_likelihood=log_likelihood)


def observed(
    target: SimulatedModel, replicates: int
) -> tuple[DataSets, Float[np.ndarray, "replicates 5"]]:
    """Data sets drawn with S = 100, and their true Z."""

    def one(key):
        a, b = jr.split(key)
        z = TRUE_SHIFT + CENTRES + SPREAD * jr.normal(a, (5,))
        return target.simulate(b, {"z": z}), z

    x, z = jax.jit(jax.vmap(one))(jr.split(jr.key(200), replicates))
    return x.astype(jnp.float32), np.asarray(z)


def network(n: int, key: jax.Array, form: str = "mean") -> Conditional:
    """q(s, z | x).

    Means at unit variances ("mean"), or means and variances ("natural"), which start at about 1.
    """
    head = (
        heads.Gaussian(6, "mean", sd=(1.0,) * 6)
        if form == "mean"
        else heads.Gaussian(6, "diagonal")
    )
    a, b = jr.split(key)
    outputs = head.size // 6
    encoder = TwoEncoders(Pooled.make(1, outputs, a), Pooled.make(5, outputs, b))
    return Conditional(encoder, head, Scaling.none(np.zeros(n, np.float32), 6, np.float32))


def at_traced(target: SimulatedModel, x: Float[Array, "n"]) -> SimulatorPosterior:
    """`target.at(x)` for data that are being traced, which cannot be checked."""
    assert target.log_prior is not None  # `model` has given both
    assert target.log_likelihood is not None
    return SimulatorPosterior(
        target.layout, None, False, target.circular, target.log_prior, target.log_likelihood, x
    )


def exact_posterior(x: Float[np.ndarray, "n"], z: Float[np.ndarray, "5"]) -> Gaussian:
    """The posterior of (s, z) with the labels known: every point is of the nearest true centre.

    The clusters lie a hundred sds of an observation apart, so no other label has any weight.
    """
    label = np.argmin(np.abs(x[:, None] - z), axis=1)
    precision, linear = np.zeros((6, 6)), np.zeros(6)
    precision[0, 0] += SHIFT_SD**-2
    for j in range(5):
        a = np.zeros(6)
        a[0], a[1 + j] = -1.0, 1.0
        precision += np.outer(a, a) / SPREAD**2
        linear += a * CENTRES[j] / SPREAD**2
        precision[1 + j, 1 + j] += np.sum(label == j) / NOISE**2
        linear[1 + j] += np.sum(x[label == j]) / NOISE**2
    cov = np.linalg.inv(precision)
    return Gaussian.from_root(cov @ linear, np.linalg.cholesky(cov))


__all__ = [
    "CENTRES",
    "SHIFT_SD",
    "TRUE_SHIFT",
    "DataSets",
    "Pooled",
    "TwoEncoders",
    "at_traced",
    "exact_posterior",
    "model",
    "network",
    "observed",
]
