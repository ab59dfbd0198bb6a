"""The battery of estimators."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

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
from ..families.base import AbstractFamily
from ..families.gaussian import Gaussian
from ..families.scales import Diagonal
from ..objectives.base import AbstractObjective
from ..results import PairingError
from ..targets.base import AbstractTarget
from .comparisons import ALLOWED, mean_is, refuses, rows
from .gaussian import GaussianTarget

_SAMPLES = 40  # independent estimates, from whose spread the standard error is taken
_FEW = 5  # estimates in which noise would show, where none is declared
_ROUNDING = 1e-9  # by which estimates without any noise may still be off
_NODES = 60  # of the quadrature: exact to rounding for the pair of Gaussians below


class Problem(NamedTuple):
    """A target and a q at which the losses of objectives and their gradients are known.

    Attributes:
        target: whose log density, or joint, or draws.
        q: where the gradient is taken, not the best member.
        truth: objective -> its loss and the gradient in q's floating leaves, side by side.
        best: the q that is the posterior, at which some estimators have no noise; None where there
            is no such member.
    """

    target: AbstractTarget
    q: AbstractFamily
    truth: Callable[[AbstractObjective], Float[np.ndarray, "p"]]
    best: AbstractFamily | None


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
    problem: Problem | None = None,
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
        problem: for an estimator that needs more of its target or of q than a density and a
            Gaussian; a pair of one-dimensional Gaussians, by default.
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
    target, q, truth_of, best = _known_pair() if problem is None else problem
    for objective in refused:
        what = (
            f"{name} with {type(objective).__name__} is listed as refused, but `check` lets it"
            " pass."
        )
        refuses(
            lambda objective=objective: estimator.check(target, q, objective), PairingError, what
        )
    first = None
    for objective in (*objectives, *biased):
        what = f"{name} with {type(objective).__name__}"
        estimator.check(target, q, objective)
        averages = _Averages(estimator, objective, target, repeats)
        first = averages if first is None else first
        estimates = averages.samples(q, key, _SAMPLES)
        truth = truth_of(objective)
        error = estimates.std(0, ddof=1) / np.sqrt(len(estimates))
        off = np.abs(estimates.mean(0) - truth) > ALLOWED * error + _ROUNDING
        if objective in biased:
            assert off[1:].any(), f"{what} is listed as biased, but its gradient is unbiased."
        else:
            mean_is(estimates, truth, f"{what}: the loss or its gradient is biased")
    assert first is not None, f"{name}: no objective to test it with."
    again = first.compiled_again(q, key)
    assert not again, f"{name}: a second call with the same shapes is compiled again."
    if estimator.zero_variance_at_optimum and (complete or best is not None):
        assert best is not None, f"{name}: the problem has no q that equals the posterior."
        noise = first.samples(best, key, _FEW)[:, 1:]
        assert np.abs(noise).max() < _ROUNDING, (
            f"{name}: the gradient at q = posterior has noise, {np.abs(noise).max():.2g}."
        )


class _Averages:
    """Means over keys of the loss and gradient of one objective, in one compiled program.

    The same program serves every check, as compilation is most of what they take.
    """

    def __init__(
        self,
        estimator: AbstractEstimator,
        objective: AbstractObjective,
        target: AbstractTarget,
        repeats: int,
    ):
        # Appended to while JAX traces, which it does once for each program that it compiles.
        self.traced: list[int] = []
        self.estimator, self.target = estimator, target

        @eqx.filter_jit
        def averages(
            q: AbstractFamily, state: PyTree, key: jax.Array
        ) -> tuple[Float[Array, ""], AbstractFamily, PyTree]:
            self.traced.append(1)

            def one(k: jax.Array) -> tuple[Float[Array, ""], AbstractFamily, PyTree]:
                def loss(q: AbstractFamily) -> tuple[Float[Array, ""], PyTree]:
                    return estimator.surrogate(objective, target, q, state, k)

                (value, new), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(q)
                return value, gradient, new

            value, gradient, states = jax.vmap(one)(jr.split(key, repeats))
            mean = jax.tree.map(lambda leaf: leaf.mean(0), gradient)
            return value.mean(), mean, jax.tree.map(lambda leaf: leaf[0], states)

        self.averages = averages

    def samples(
        self, q: AbstractFamily, key: jax.Array, count: int
    ) -> Float[np.ndarray, "samples p"]:
        """Independent estimates of (loss, gradient), each after its own `prepare`.

        A design that is drawn once per run is as random as the draws of a step, so both are
        averaged over.
        """
        estimates = []
        for i in range(count):
            prepare, draw = jr.split(jr.fold_in(key, i))
            value, gradient, _ = self.averages(q, self._prepared(q, prepare), draw)
            estimates.append(rows(1, value, gradient)[0])
        return np.stack(estimates)

    def compiled_again(self, q: AbstractFamily, key: jax.Array) -> bool:
        """Whether a step at another q, from the state that a step left, is another program."""
        before = len(self.traced)
        _, _, state = self.averages(q, self._prepared(q, key), key)
        self.averages(_elsewhere(q), state, jr.fold_in(key, 1))
        return len(self.traced) > before

    def _prepared(self, q: AbstractFamily, key: jax.Array) -> PyTree:
        return to_device(self.estimator.prepare(self.target, q, key))


def _known_pair() -> Problem:
    target, q = _pair()
    return Problem(target, q, _truth, target.gaussian)


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


def _elsewhere(q: AbstractFamily) -> AbstractFamily:
    """Another member with the same shapes."""
    step = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), eqx.filter(q, eqx.is_inexact_array))
    return to_device(q.retract(step), q.dtype)
