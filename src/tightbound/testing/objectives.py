"""The battery of objectives, and of the order among them."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._numerics import scoped, to_device
from .._types import Array
from ..estimators.draws import evaluate
from ..families.gaussian import Gaussian
from ..families.scales import Diagonal
from ..objectives.base import AbstractObjective, Draws
from .comparisons import ALLOWED, close, mean_is, seed_of
from .gaussian import GaussianTarget


@scoped
def check_objective(
    objective: AbstractObjective,
    key: Any,
    *,
    upper: bool = False,
    divergence: bool = False,
    batches: int = 200,
) -> None:
    """Minimal where q is the posterior, and log Z there; equal to `exact`.

    Finite for any finite log weights and scores.

    `upper`: the loss bounds log Z from above (else minus the loss does so from below).
    `divergence`: it is zero at the posterior instead.
    """
    name, rng = type(objective).__name__, np.random.default_rng(seed_of(key))
    posterior = Gaussian.from_root(np.array([1.0, -0.5]), np.array([[1.0, 0.0], [0.6, 0.8]]))
    target = to_device(GaussianTarget(posterior, 1.7))
    at_posterior = _losses(objective, target, posterior, rng, batches)
    best = 0.0 if divergence else target.log_evidence if upper else -target.log_evidence
    close(
        at_posterior,
        best,
        1e-9,
        f"{name}: at q = posterior the loss is {at_posterior.mean():.4f}, not {best:.4f}.",
    )
    for what, other in _neighbours(posterior).items():
        losses = _losses(objective, target, other, rng, batches)
        excess, error = losses.mean() - best, losses.std() / np.sqrt(batches)
        assert excess > ALLOWED * error, (
            f"{name}: a q that is {what} has no larger loss than the posterior itself."
        )
        exact = objective.exact(target, other)
        if exact is not None:
            mean_is(losses, exact, f"{name}: the loss of a q that is {what} is not the `exact` one")
    _check_extremes(objective, name)


def _neighbours(q: Gaussian) -> dict[str, Gaussian]:
    return {
        "shifted": q.moved(q.mean + 0.7 * q.sd),
        "too wide": q.moved(q.mean, 1.4),
        "too narrow": q.moved(q.mean, 0.9),
        "without the correlation": Gaussian(q.mean, Diagonal(np.log(q.sd))),
    }


def _losses(
    objective: AbstractObjective, target: Any, q: Any, rng: np.random.Generator, batches: int
) -> np.ndarray:
    """Independent values of the loss, `[batches]`, each over 60 groups of draws.

    Over 1,000 where the loss is biased.
    """
    count = 60 * objective.group if objective.averages else 1000
    z, _ = q.draw(2 * batches * count, int(rng.integers(2**31)))
    z = jnp.asarray(z[: batches * count].reshape((batches, count, q.dim)))
    return np.asarray(_losses_at(objective, target, to_device(q), z))


@eqx.filter_jit
def _losses_at(objective: AbstractObjective, target: Any, q: Any, z: Array) -> Array:
    return jax.vmap(lambda z: objective.loss(evaluate(objective, target, q, z)))(z)


def _check_extremes(objective: AbstractObjective, name: str) -> None:
    zeros = jnp.zeros(2 * objective.group)
    for what, log_p in {
        "1e3": zeros + 1e3,
        "-1e3": zeros - 1e3,
        "1e3 and -1e3": zeros.at[0].set(2e3) - 1e3,
    }.items():

        def loss_at(log_p):
            scores = (
                {"score_p": log_p[:, None], "score_q": zeros[:, None]}
                if "score_p" in objective.needs
                else {}
            )
            return objective.loss(Draws(log_p, zeros, **scores))

        loss, gradient = jax.value_and_grad(loss_at)(log_p)
        finite = jnp.isfinite(loss) & jnp.all(jnp.isfinite(gradient))
        assert finite, f"{name}: the loss or its gradient is not finite for log weights of {what}."


@scoped
def check_order(
    lower: Sequence[AbstractObjective],
    key: Any,
    *,
    upper: Sequence[AbstractObjective] = (),
    batches: int = 100,
) -> None:
    """The bounds are in the order given.

    Minus the losses of `lower`, then log Z, then the losses of `upper`.
    """
    posterior = Gaussian.from_root(np.zeros(2), np.array([[1.0, 0.0], [0.5, 0.9]]))
    target, q = (
        to_device(GaussianTarget(posterior, -2.0)),
        posterior.moved(np.array([0.3, -0.3]), 1.2),
    )
    names, bounds = [], []
    for sign, objectives in ((-1.0, lower), (1.0, upper)):
        for objective in objectives:
            rng = np.random.default_rng(seed_of(key))
            names.append(f"{type(objective).__name__} of {objective.group}")
            bounds.append(sign * _losses(objective, target, q, rng, batches))
    names.insert(len(lower), "log Z")
    bounds.insert(len(lower), np.full(batches, target.log_evidence))
    for i in range(len(names) - 1):
        error = np.hypot(bounds[i].std(), bounds[i + 1].std()) / np.sqrt(batches)
        excess = bounds[i].mean() - bounds[i + 1].mean()
        assert excess <= ALLOWED * error, f"{names[i]} exceeds {names[i + 1]} by {excess:.4f} nats."
