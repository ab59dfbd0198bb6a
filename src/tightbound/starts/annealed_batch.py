"""The annealed loop as compiled code: a start for each of thousands of contaminated data sets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from .._types import Scalar
from ..estimators.clutter.local_gaussians import LEAST_LOG_ODDS
from ..families.gaussian import Gaussian
from ..families.scales import Full
from ..results import PairingError
from ..targets.clutter import Clutter
from .annealed import first_width, largest_variance, next_width, paper_step

_STEPS = 30  # as the paper takes on 20 points


def annealed_start(target: Clutter, steps: int = _STEPS) -> Gaussian:
    """Where so many steps of the paper's loop end, traced by JAX.

    `tb.fit_batch(Clutter, x, start=annealed_start)` runs it once for each data set. The compiled
    twin of `tb.solvers.Annealed("paper")`, with a fixed number of steps so that it is one program
    under vmap: 20 points take some 20 microseconds. One dimension only. Not for a single data set,
    where compiling takes longest.

    Arguments:
        target: a `tb.targets.Clutter` in one dimension; its arrays may be traced.
        steps: of the loop.

    Raises:
        PairingError: the target has more than one dimension.

    Source: Popov 2024 (arXiv 2404.10550), Algorithm 1.
    """
    if target.dim != 1:
        raise PairingError(
            f"annealed_start is for one dimension, the target has {target.dim}; leave `start` out."
        )
    # `Clutter.kernels()` makes the same numbers in NumPy, which cannot be traced: everything in
    # units in which the noise of point i is noise_scale_i.
    y = jnp.asarray(target.x)[:, 0] / target.noise_root[0, 0]
    s, weights = jnp.asarray(target.noise_scale), jnp.asarray(target.weights)
    a = jnp.log1p(-target.w) - jnp.log(target.w) - target.log_clutter
    a = a - 0.5 * jnp.log(2 * jnp.pi * s) - jnp.log(target.noise_root[0, 0])
    precision = (target.noise_root[0, 0] / target.prior_root[0, 0]) ** 2
    prior_mean, narrowest = target.prior_mean[0] / target.noise_root[0, 0], jnp.median(s)

    def step(
        _: Int[jax.Array, ""], state: tuple[Scalar, Scalar, Scalar]
    ) -> tuple[Scalar, Scalar, Scalar]:
        mean, v, width = state
        widening = width / narrowest
        odds = a - 0.5 * jnp.log(widening)
        sums = _line_sums(y - mean, v, s * widening, odds, weights)
        move, new_v = paper_step(sums, v, precision, prior_mean - mean, jnp)
        new_width = next_width(new_v, width, narrowest, jnp)
        capped = jnp.minimum(new_v, largest_variance(new_width, narrowest, jnp))
        return mean + move, capped, new_width

    mean = jnp.average(y, weights=weights)
    v = jnp.average((y - mean) ** 2, weights=weights) + narrowest
    start = (mean, v, first_width(v, narrowest, jnp))
    mean, v, _ = jax.lax.fori_loop(0, steps, step, start)
    return Gaussian(
        (target.noise_root[0, 0] * mean)[None],
        Full((0.5 * jnp.log(v) + jnp.log(target.noise_root[0, 0]))[None, None]),
    )


class _Sums(NamedTuple):
    """The fields of `LineSums`, traced."""

    b: Float[jax.Array, ""]
    bd: Float[jax.Array, ""]
    c: Float[jax.Array, ""]
    e0: Float[jax.Array, ""]
    e1: Float[jax.Array, ""]
    e2: Float[jax.Array, ""]


def _line_sums(
    d: Float[jax.Array, "rows"],
    v: Scalar,
    h: Float[jax.Array, "rows"],
    a: Float[jax.Array, "rows"],
    weights: Float[jax.Array, "rows"],
) -> _Sums:
    """`local_gaussians.line_sums` for XLA, which fuses the expressions into one pass.

    Two texts, because NumPy needs another one to be as fast: in place and in blocks that stay in
    the cache, with the factors that all points share taken out. A test holds them together.
    """
    r, ratio = 0.5 * h * (d / (h + v)) ** 2, v / h
    odds = jnp.exp(jnp.minimum(r - a, -LEAST_LOG_ODDS))
    t = 1.0 + odds
    rest = 1.0 / (t * t + odds * (t + 2.0 * r) * ratio)
    mass = weights / h * jnp.sqrt(rest) * jnp.exp((rest - 1.0) * r * ratio)
    kept = t * rest
    b = mass * (h + kept * v) / (h + v)
    e = (b - kept * b) / (h + v)
    c = jnp.sum(mass * kept * t)
    return _Sums(jnp.sum(b), jnp.sum(b * d), c, jnp.sum(e), jnp.sum(e * d), jnp.sum(e * d * d))


__all__ = ["annealed_start"]
