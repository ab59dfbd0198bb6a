"""The compiled twin of `NaturalGradient` for a full-rank Gaussian: one lane is one data set,
`jax.vmap` makes many.

The algebra is that of `natural.py`, called with `xp=jax.numpy`; here stand only the loop and its
bookkeeping. A lane that has ended, or whose density is NaN, keeps its state whatever the others do.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..estimators.fixed_design import whitened_moments
from ..solvers.natural import NewtonModel, arrived, design_error, natural_step, newton_model

RUNNING, SETTLED, STALLED, NONFINITE, UNBOUNDED = range(5)
"""How far a lane is on its design."""

_SHORTER, _LONGER = 0.4, 1.8  # as the step size shrinks and grows in `NaturalGradient`
_LEAST_STEP = 1e-5
_GAIN = 1e-4  # nats per step below which a lane has settled, unless the step was a short one
_SHORT = 0.1
_FLAT = 1e8  # times the start's sd, or times 1: an improper direction

LogDensity = Callable[[Any], Any]


class Lane(eqx.Module):
    """q = N(mean, root root') of one data set, the quadratic model of its ELBO there, and where the
    search stands.

    Attributes:
        mean: `[d]`; `root`: `[d, d]`; `log_det`: log |root|.
        model: at the last accepted point; no step (an identity, no gradient) while nothing was
            evaluated.
        elbo: on the design, nats; -inf while nothing was evaluated.
        spread: sd of log p - log q over pairs of the design, nats.
        error: the design's own error, in posterior sds.
        rho: size of the next step.
        status: one of the codes above.
        steps: accepted steps; `tries`: evaluations of the design.
    """

    mean: Any
    root: Any
    log_det: Any
    model: NewtonModel
    elbo: Any
    spread: Any
    error: Any
    rho: Any
    status: Any
    steps: Any
    tries: Any

    @staticmethod
    def start(mean: np.ndarray, root: np.ndarray, log_det: np.ndarray) -> "Lane":
        """Many lanes that have not yet been evaluated, on the host.

        `mean [n, d]`, `root [n, d, d]`, `log_det [n]`.
        """
        n, dim = mean.shape
        one, none, count = np.ones(n), np.zeros((n, dim)), np.zeros(n, np.int64)
        still = NewtonModel(
            none + 1.0, np.tile(np.eye(dim), (n, 1, 1)), none + 1.0, none + 1.0, none
        )
        inf = np.inf * one
        return Lane(mean, root, log_det, still, -inf, inf, inf, one, count, count, count)


def advance(log_density: LogDensity, lane: Lane, design: Any, tol: Any) -> Lane:
    """One try: a damped natural-gradient step, kept where it does not lower the ELBO of the design
    `[m, d]`.

    The first one evaluates the start; it halves the root while the density is not finite.
    """
    mean, root, change = natural_step(lane.mean, lane.root, lane.model, lane.rho, jnp)
    log_det = lane.log_det + change
    moments = _moments(log_density, mean, root, log_det, design)
    slope = jnp.sum(lane.model.gradient**2 / lane.model.stiff)
    fresh = lane.elbo == -jnp.inf
    climbs = moments.elbo >= lane.elbo + 1e-4 * lane.rho * slope - 1e-9 * jnp.abs(lane.elbo)
    taken = moments.finite & jnp.isfinite(moments.elbo) & (climbs | fresh)
    accepted = _accepted(lane, mean, root, log_det, moments, design, tol, fresh)
    return _choose(lane.status != RUNNING, lane, _choose(taken, accepted, _refused(lane, fresh)))


def _accepted(
    lane: Lane, mean: Any, root: Any, log_det: Any, moments: Any, design: Any, tol: Any, fresh: Any
) -> Lane:
    model = newton_model(moments.gradient, moments.curvature, jnp)
    error = design_error(moments, model, jnp)
    settled = arrived(model, model.eigenvalues, error, tol, jnp) | (
        ~fresh & (lane.rho > _SHORT) & (moments.elbo - lane.elbo < _GAIN)
    )
    flat = jnp.any(jnp.sum(root**2, axis=1) > _FLAT**2)
    status = jnp.where(flat, UNBOUNDED, jnp.where(settled, SETTLED, RUNNING))
    spread = moments.elbo_stderr * design.shape[0] ** 0.5
    rho = jnp.minimum(1.0, jnp.where(fresh, 1.0, _LONGER) * lane.rho)
    return Lane(
        mean,
        root,
        log_det,
        model,
        moments.elbo,
        spread,
        error,
        rho,
        status,
        lane.steps + 1,
        lane.tries + 1,
    )


def _refused(lane: Lane, fresh: Any) -> Lane:
    """A shorter step; at the start, where there is no step to shorten, half the root."""
    rho = _SHORTER * lane.rho
    status = jnp.where(rho < _LEAST_STEP, jnp.where(fresh, NONFINITE, STALLED), RUNNING)
    root = jnp.where(fresh, 0.5, 1.0) * lane.root
    log_det = lane.log_det - jnp.where(fresh, jnp.log(2.0) * lane.mean.shape[0], 0.0)
    return eqx.tree_at(
        lambda s: (s.root, s.log_det, s.rho, s.status, s.tries),
        lane,
        (root, log_det, rho, status, lane.tries + 1),
    )


def _moments(log_density: LogDensity, mean: Any, root: Any, log_det: Any, design: Any) -> Any:
    moves = design @ root.T
    points = jnp.concatenate([mean[None, :] + moves, mean[None, :] - moves])
    values, scores = jax.vmap(jax.value_and_grad(log_density))(points)
    return whitened_moments(design, values, scores @ root, log_det, xp=jnp)


def _choose(first: Any, a: Lane, b: Lane) -> Lane:
    return jax.tree.map(lambda x, y: jnp.where(first, x, y), a, b)


def run_lanes(
    log_density: Callable[..., Any], lanes: Lane, rows: Any, design: Any, tol: Any, most: int
) -> Lane:
    """All lanes at once, until each has ended or made `most` more tries.

    `log_density(row, z)`, leading axes of lanes.
    """

    def step(carry):
        count, lanes = carry
        return count + 1, jax.vmap(
            lambda lane, row: advance(lambda z: log_density(row, z), lane, design, tol)
        )(lanes, rows)

    def goes_on(carry):
        count, lanes = carry
        return (count < most) & jnp.any(lanes.status == RUNNING)

    return jax.lax.while_loop(goes_on, step, (jnp.zeros((), jnp.int64), lanes))[1]
