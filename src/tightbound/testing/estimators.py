"""The battery of estimators."""

import functools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from .._numerics import as_key, scoped, to_device
from .._types import Array, Key, PyTree
from ..estimators.base import AbstractEstimator, Evaluable
from ..estimators.draws import evaluate
from ..families.gaussian import Gaussian
from ..families.scales import Diagonal
from ..objectives.base import AbstractObjective
from ..results import PairingError
from .comparisons import ALLOWED, mean_is, refuses, rows
from .gaussian import GaussianTarget

_SAMPLES = 40  # independent estimates, from whose spread the standard error is taken
_ROUNDING = 1e-9  # by which estimates without any noise may still be off
_NODES = 60  # of the quadrature: exact to rounding for the pair of Gaussians below


@scoped
def check_estimator(
    estimator: AbstractEstimator,
    objectives: Sequence[AbstractObjective],
    key: Key,
    *,
    biased: Sequence[AbstractObjective] = (),
    refused: Sequence[AbstractObjective] = (),
    complete: bool = True,
    repeats: int = 100,
) -> None:
    """Unbiased where an estimator says so, biased where it is known to be, no noise where declared.

    Gradients and values are compared with quadrature; nothing is compiled twice.

    Arguments:
        estimator: to be tested.
        objectives: one instance of every class in `unbiased_for`, in groups of at most two draws
            (quadrature is over all draws of a group).
        key: of all draws.
        biased: some objectives for which the estimator is known to be wrong.
        refused: some of `unbiased_for` that this instance does not take.
        complete: whether every class in `unbiased_for` must be there; switches of an estimator that
            has passed may leave some out.
        repeats: keys that each independent estimate is a mean over.
    """
    name, key = type(estimator).__name__, as_key(key)
    missing = [
        c.__name__
        for c in estimator.unbiased_for
        if c not in {type(o) for o in (*objectives, *refused)}
    ]
    assert not (missing and complete), (
        f"{name} says that it is unbiased for {', '.join(missing)}: pass an instance of each."
    )
    target, q = _pair()
    for objective in refused:
        what = (
            f"{name} with {type(objective).__name__} is listed as refused, but `check` lets it"
            " pass."
        )
        refuses(
            lambda objective=objective: estimator.check(target, q, objective), PairingError, what
        )
    for objective in (*objectives, *biased):
        what = f"{name} with {type(objective).__name__}"
        estimates = _estimates(estimator, objective, target, q, key, repeats)
        truth = _truth(objective)
        error = estimates.std(0, ddof=1) / np.sqrt(len(estimates))
        off = np.abs(estimates.mean(0) - truth) > ALLOWED * error + _ROUNDING
        if objective in biased:
            assert off[1:].any(), f"{what} is listed as biased, but its gradient is unbiased."
        else:
            mean_is(estimates, truth, f"{what}: the loss or its gradient is biased")
    if estimator.zero_variance_at_optimum:
        noise = _estimates(estimator, objectives[0], target, target.gaussian, key, 5)[:, 1:]
        assert np.abs(noise).max() < _ROUNDING, (
            f"{name}: the gradient at q = posterior has noise, {np.abs(noise).max():.2g}."
        )
    _check_compiles_once(estimator, objectives[0], target, q, key, name)


def _estimates(
    estimator: AbstractEstimator,
    objective: AbstractObjective,
    target: GaussianTarget,
    q: Gaussian,
    key: jax.Array,
    repeats: int,
) -> Float[np.ndarray, "samples p"]:
    """Independent estimates of (loss, gradient), each a mean over keys after its own `prepare`.

    A design that is drawn once per run is as random as the draws of a step, so both are averaged
    over.
    """

    @eqx.filter_jit
    def averages(state: PyTree, key: jax.Array) -> tuple[Float[Array, ""], Gaussian]:
        def one(k: jax.Array) -> tuple[Float[Array, ""], Gaussian]:
            loss = lambda q: estimator.surrogate(objective, target, q, state, k)[0]  # noqa: E731
            return eqx.filter_value_and_grad(loss)(q)

        return jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(one)(jr.split(key, repeats)))

    estimates = []
    for i in range(_SAMPLES):
        prepare, draw = jr.split(jr.fold_in(key, i))
        value, gradient = averages(to_device(estimator.prepare(target, q, prepare)), draw)
        estimates.append(rows(1, value, gradient)[0])
    return np.stack(estimates)


def _pair() -> tuple[GaussianTarget, Gaussian]:
    target = GaussianTarget(Gaussian(np.array([0.4]), Diagonal(np.array([-0.3]))), 0.8)
    return to_device(target), to_device(Gaussian(np.array([-0.2]), Diagonal(np.array([0.2]))))


@functools.cache
def _truth(objective: AbstractObjective) -> Float[np.ndarray, "p"]:
    """Loss and gradient of the pair.

    Kept, since many estimators are held against one objective.
    """
    return rows(1, *_by_quadrature(objective, *_pair()))[0]


def _by_quadrature(
    objective: AbstractObjective, target: Evaluable, q: Gaussian
) -> tuple[Float[Array, ""], Gaussian]:
    """The expected loss of a one-dimensional q and its gradient.

    By Gauss-Hermite over the draws of one group.
    """
    t, w = np.polynomial.hermite_e.hermegauss(_NODES)
    axes = np.meshgrid(*[t] * objective.group, indexing="ij")
    noise = jnp.asarray(np.stack([a.ravel() for a in axes], axis=1)[..., None])
    weights = np.prod(
        [a.ravel() for a in np.meshgrid(*[w / w.sum()] * objective.group, indexing="ij")], axis=0
    )

    def expected(q: Gaussian) -> Float[Array, ""]:
        def loss(eps: Float[Array, "group 1"]) -> Float[Array, ""]:
            return objective.loss(evaluate(objective, target, q, jax.vmap(q._from_noise)(eps)))

        return jnp.sum(jnp.asarray(weights) * jax.vmap(loss)(noise))

    return eqx.filter_value_and_grad(expected)(q)


def _check_compiles_once(
    estimator: AbstractEstimator,
    objective: AbstractObjective,
    target: GaussianTarget,
    q: Gaussian,
    key: jax.Array,
    name: str,
) -> None:
    # Appended to while JAX traces, which it does once for each program that it compiles.
    traced = []

    @eqx.filter_jit
    def step(q: Gaussian, state: PyTree, key: jax.Array) -> tuple[Float[Array, ""], PyTree]:
        traced.append(1)
        return estimator.surrogate(objective, target, q, state, key)

    state = to_device(estimator.prepare(target, q, key))
    _, state = step(q, state, key)
    step(to_device(q.moved(np.array([1.0]))), state, jr.fold_in(key, 1))
    assert len(traced) == 1, f"{name}: a second call with the same shapes is compiled again."
