"""The battery of objectives, and of the order among them."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._numerics import scoped, to_device
from .._types import Array, Key
from ..estimators.draws import evaluate
from ..families.gaussian import Gaussian, kl
from ..families.scales import Diagonal
from ..objectives.base import AbstractObjective, Draws, Source
from .comparisons import ALLOWED, close, mean_is, seed_of
from .gaussian import GaussianTarget

# Draws in one loss: of objectives whose loss is the mean over groups, so many groups; of others so
# many draws, with which their bias (of order one over it) is far below the standard error.
_GROUPS, _MANY = 60, 1000


@scoped
def check_objective(
    objective: AbstractObjective,
    key: Key,
    *,
    upper: bool = False,
    divergence: bool = False,
    like: AbstractObjective | None = None,
    misleading: Sequence[str] = (),
    batches: int = 200,
) -> None:
    """Minimal where q is the posterior, and the known value there; equal to `exact`; finite.

    The value at the posterior is log Z (of an expectation under the joint distribution: the
    posterior's entropy). Finite for any finite log weights and scores.

    Arguments:
        objective: to be tested.
        key: of all draws.
        upper: the loss bounds log Z from above (else minus the loss does so from below).
        divergence: it is zero at the posterior instead.
        like: an objective that it equals, whose `exact` it must meet.
        misleading: of the neighbours of the posterior (`NEIGHBOURS`), those that the objective is
            known to prefer to it, because it is no divergence; that must be seen.
        batches: independent losses that each comparison is made from.
    """
    name, rng = type(objective).__name__, np.random.default_rng(seed_of(key))
    posterior = Gaussian.from_root(np.array([1.0, -0.5]), np.array([[1.0, 0.0], [0.6, 0.8]]))
    target = to_device(GaussianTarget(posterior, 1.7))
    at_posterior = _losses(objective, target, posterior, rng, batches)
    simulated = objective.drawn_from is Source.joint
    best = 0.0 if divergence else target.log_evidence if upper else -target.log_evidence
    if simulated:  # the loss has noise at the posterior as well
        best = float(posterior.entropy())
        mean_is(at_posterior, best, f"{name}: at q = posterior the loss is not its entropy")
    else:
        close(
            at_posterior,
            best,
            1e-9,
            f"{name}: at q = posterior the loss is {at_posterior.mean():.4f}, not {best:.4f}.",
        )
    for what, other in _neighbours(posterior).items():
        losses = _losses(objective, target, other, rng, batches)
        excess, error = losses.mean() - best, losses.std() / np.sqrt(batches)
        if what in misleading:
            assert excess < -ALLOWED * error, (
                f"{name} is listed as misleading for a q that is {what}, but has no smaller loss."
            )
        else:
            assert excess > ALLOWED * error, (
                f"{name}: a q that is {what} has no larger loss than the posterior itself."
            )
        exact = (objective if like is None else like).exact(target, other)
        if simulated:
            exact = best + float(kl(posterior, other))
        if exact is not None:
            mean_is(
                losses,
                np.asarray(exact),
                f"{name}: the loss of a q that is {what} is not the `exact` one",
            )
    _check_extremes(objective, name)


NEIGHBOURS = ("shifted", "too wide", "too narrow", "without the correlation")
"""What is tried beside the posterior itself."""


def _neighbours(q: Gaussian) -> dict[str, Gaussian]:
    members = (
        q.moved(q.mean + 0.7 * q.sd),
        q.moved(q.mean, 1.4),
        # Not narrower: the second moment of the weights must exist
        q.moved(q.mean, 0.9),
        Gaussian(q.mean, Diagonal(np.log(q.sd))),
    )
    return dict(zip(NEIGHBOURS, members, strict=True))


def _losses(
    objective: AbstractObjective,
    target: GaussianTarget,
    q: Gaussian,
    rng: np.random.Generator,
    batches: int,
) -> Float[np.ndarray, "batches"]:
    """Independent values of the loss; draws of q, or of the posterior where it asks for those."""
    count = _GROUPS * objective.group if objective.averages else _MANY
    source = target.gaussian if objective.drawn_from is Source.joint else q
    # The second half of the draws mirrors the first: left out, as losses must be independent.
    z, _ = source.draw(2 * batches * count, int(rng.integers(2**31)))
    z = jnp.asarray(z[: batches * count].reshape((batches, count, q.dim)))
    return np.asarray(_losses_at(objective, target, to_device(q), z))


@eqx.filter_jit
def _losses_at(
    objective: AbstractObjective,
    target: GaussianTarget,
    q: Gaussian,
    z: Float[jax.Array, "batches n dim"],
) -> Float[Array, "batches"]:
    return jax.vmap(lambda z: objective.loss(evaluate(objective, target, q, z)))(z)


def _check_extremes(objective: AbstractObjective, name: str) -> None:
    zeros = jnp.zeros(2 * objective.group)
    for what, log_w in {
        "1e3": zeros + 1e3,
        "-1e3": zeros - 1e3,
        "1e3 and -1e3": zeros.at[0].set(2e3) - 1e3,
    }.items():

        def loss_at(log_w: Float[jax.Array, "n"]) -> Float[Array, ""]:
            if objective.drawn_from is Source.joint:  # of simulations only log q is seen
                return objective.loss(Draws(None, -log_w))
            scores = (
                {"score_p": log_w[:, None], "score_q": zeros[:, None]}
                if "score_p" in objective.needs
                else {}
            )
            return objective.loss(Draws(log_w, zeros, **scores))

        loss, gradient = jax.value_and_grad(loss_at)(log_w)
        finite = jnp.isfinite(loss) & jnp.all(jnp.isfinite(gradient))
        assert finite, f"{name}: the loss or its gradient is not finite for log weights of {what}."


@scoped
def check_order(
    lower: Sequence[AbstractObjective],
    key: Key,
    *,
    upper: Sequence[AbstractObjective] = (),
    batches: int = 100,
) -> None:
    """The bounds are in the order given.

    Arguments:
        lower: objectives, minus the losses of which rise in this order, and end below log Z.
        key: of all draws.
        upper: objectives, the losses of which rise in this order, from log Z.
        batches: independent losses that each comparison is made from.
    """
    posterior = Gaussian.from_root(np.zeros(2), np.array([[1.0, 0.0], [0.5, 0.9]]))
    target = to_device(GaussianTarget(posterior, -2.0))
    q = posterior.moved(np.array([0.3, -0.3]), 1.2)
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
