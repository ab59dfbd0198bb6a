"""The battery of estimators."""

import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._numerics import as_key, scoped, to_device
from ..estimators.draws import evaluate
from ..families.gaussian import Gaussian
from ..families.scales import Diagonal
from ..objectives.base import AbstractObjective
from ..results import PairingError
from .comparisons import ALLOWED, mean_is, refuses, rows
from .gaussian import GaussianTarget


@scoped
def check_estimator(
    estimator: Any,
    objectives: Sequence[AbstractObjective],
    key: Any,
    *,
    biased: Sequence[AbstractObjective] = (),
    refused: Sequence[AbstractObjective] = (),
    complete: bool = True,
    repeats: int = 100,
) -> None:
    """Unbiased gradients and values against quadrature, biased ones where it says so, no noise at q
    = posterior if declared.

    `objectives` holds one instance of every class in `unbiased_for` (in groups of at most two
    draws: quadrature is over all draws of a group); `biased` some for which the estimator is known
    to be wrong; `refused` some of `unbiased_for` that this instance does not take. Nothing is
    compiled twice. Switches of an estimator that has passed may leave objectives out
    (`complete=False`).
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
        off = np.abs(estimates.mean(0) - truth) > ALLOWED * error + 1e-9
        if objective in biased:
            assert off[1:].any(), f"{what} is listed as biased, but its gradient is unbiased."
        else:
            mean_is(estimates, truth, f"{what}: the loss or its gradient is biased")
    if estimator.zero_variance_at_optimum:
        noise = _estimates(estimator, objectives[0], target, target.gaussian, key, 5)[:, 1:]
        assert np.abs(noise).max() < 1e-9, (
            f"{name}: the gradient at q = posterior has noise, {np.abs(noise).max():.2g}."
        )
    _check_compiles_once(estimator, objectives[0], target, q, key, name)


def _estimates(
    estimator: Any, objective: Any, target: Any, q: Any, key: jax.Array, repeats: int
) -> np.ndarray:
    """Independent estimates of (loss, gradient), `[40, 1 + P]`: each a mean over `repeats` keys,
    after its own `prepare`.

    A design that is drawn once per run is as random as the draws of a step, so both are averaged
    over.
    """

    @eqx.filter_jit
    def averages(state, key):
        def one(k):
            loss = lambda q: estimator.surrogate(objective, target, q, state, k)[0]  # noqa: E731
            return eqx.filter_value_and_grad(loss)(q)

        return jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(one)(jr.split(key, repeats)))

    estimates = []
    for i in range(40):
        prepare, draw = jr.split(jr.fold_in(key, i))
        value, gradient = averages(to_device(estimator.prepare(target, q, prepare)), draw)
        estimates.append(rows(1, value, gradient)[0])
    return np.stack(estimates)


def _pair() -> tuple[GaussianTarget, Gaussian]:
    target = GaussianTarget(Gaussian(np.array([0.4]), Diagonal(np.array([-0.3]))), 0.8)
    return to_device(target), to_device(Gaussian(np.array([-0.2]), Diagonal(np.array([0.2]))))


@functools.cache
def _truth(objective: AbstractObjective) -> np.ndarray:
    """Loss and gradient of the pair, `[1 + P]`.

    Kept, since many estimators are held against one objective.
    """
    return rows(1, *_by_quadrature(objective, *_pair()))[0]


def _by_quadrature(
    objective: AbstractObjective, target: Any, q: Gaussian, nodes: int = 60
) -> tuple[jax.Array, Any]:
    """The expected loss of a one-dimensional q and its gradient, by Gauss-Hermite over the draws of
    one group.
    """
    t, w = np.polynomial.hermite_e.hermegauss(nodes)
    axes = np.meshgrid(*[t] * objective.group, indexing="ij")
    noise = jnp.asarray(np.stack([a.ravel() for a in axes], axis=1)[..., None])
    weights = np.prod(
        [a.ravel() for a in np.meshgrid(*[w / w.sum()] * objective.group, indexing="ij")], axis=0
    )

    def expected(q):
        def loss(eps):
            return objective.loss(evaluate(objective, target, q, jax.vmap(q._from_noise)(eps)))

        return jnp.sum(jnp.asarray(weights) * jax.vmap(loss)(noise))

    return eqx.filter_value_and_grad(expected)(q)


def _check_compiles_once(
    estimator: Any, objective: Any, target: Any, q: Gaussian, key: jax.Array, name: str
) -> None:
    traced = []

    @eqx.filter_jit
    def step(q, state, key):
        traced.append(1)
        return estimator.surrogate(objective, target, q, state, key)

    state = to_device(estimator.prepare(target, q, key))
    _, state = step(q, state, key)
    step(to_device(q.moved(np.array([1.0]))), state, jr.fold_in(key, 1))
    assert len(traced) == 1, f"{name}: a second call with the same shapes is compiled again."
