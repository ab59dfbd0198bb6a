"""The annealed loop as compiled code: a start for each of thousands of contaminated data sets."""

from typing import Any

import jax
import jax.numpy as jnp

from ..families.gaussian import Gaussian
from ..families.scales import Full
from ..results import PairingError

_STEPS = 30
_LEAST_LOG_ODDS = -300.0


def annealed_start(target: Any, steps: int = _STEPS) -> Gaussian:
    """Where so many steps of the paper's loop end, traced by JAX: `tb.fit_batch(Clutter, x,
    start=annealed_start)`.

    The compiled twin of `tb.solvers.Annealed("paper")`, with a fixed number of steps so that it is
    one program under vmap: 20 points take some 20 microseconds. One dimension only. Not for a
    single data set, where compiling takes longest.

    Arguments:
        target: a `tb.targets.Clutter` in one dimension; its arrays may be traced.
        steps: of the loop.

    Raises:
        PairingError: the target has more than one dimension.

    Source: Popov 2024 (arXiv 2404.10550), Algorithm 1; clutter spec, sections 2.1 and 2.2.
    """
    if target.dim != 1:
        raise PairingError(
            f"annealed_start is for one dimension, the target has {target.dim}; leave `start` out."
        )
    # in units in which the noise of point i is noise_scale_i
    y = jnp.asarray(target.x)[:, 0] / target.noise_root[0, 0]
    s, weights = jnp.asarray(target.noise_scale), jnp.asarray(target.weights)
    a = jnp.log1p(-target.w) - jnp.log(target.w) - target.log_clutter
    a = a - 0.5 * jnp.log(2 * jnp.pi * s) - jnp.log(target.noise_root[0, 0])
    precision = (target.noise_root[0, 0] / target.prior_root[0, 0]) ** 2
    prior_mean, narrowest = target.prior_mean[0] / target.noise_root[0, 0], jnp.median(s)

    def step(_: Any, state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        mean, v, width = state
        widening = width / narrowest
        odds = a - 0.5 * jnp.log(widening)
        move, new_v = _update(
            y - mean, v, s * widening, odds, weights, precision, prior_mean - mean
        )
        new_width = jnp.maximum(jnp.minimum(2.0 * new_v, width / 2.0), narrowest)
        return mean + move, jnp.minimum(new_v, jnp.maximum(narrowest, new_width / 2.0)), new_width

    mean = jnp.average(y, weights=weights)
    v = jnp.average((y - mean) ** 2, weights=weights) + narrowest
    mean, v, _ = jax.lax.fori_loop(0, steps, step, (mean, v, jnp.maximum(2.0 * v, narrowest)))
    return Gaussian(
        (target.noise_root[0, 0] * mean)[None],
        Full((0.5 * jnp.log(v) + jnp.log(target.noise_root[0, 0]))[None, None]),
    )


def _update(
    d: Any, v: Any, h: Any, a: Any, weights: Any, precision: Any, pull: Any
) -> tuple[Any, Any]:
    """How far the mean moves, and the new variance.

    `local_gaussians.line_sums` and `annealed.paper_update` in one.
    """
    r, ratio = 0.5 * h * (d / (h + v)) ** 2, v / h
    odds = jnp.exp(jnp.minimum(r - a, -_LEAST_LOG_ODDS))
    t = 1.0 + odds
    rest = 1.0 / (t * t + odds * (t + 2.0 * r) * ratio)
    mass = weights / h * jnp.sqrt(rest) * jnp.exp((rest - 1.0) * r * ratio)
    kept = t * rest
    b = mass * (h + kept * v) / (h + v)
    e = (b - kept * b) / (h + v)
    move = (jnp.sum(b * d) + precision * pull) / (jnp.sum(b) + precision)
    return move, (jnp.sum(e * (d - move) ** 2) * v + 1.0) / (jnp.sum(mass * kept * t) + precision)


__all__ = ["annealed_start"]
