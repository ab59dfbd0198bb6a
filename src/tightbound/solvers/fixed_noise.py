"""The closest member of any family that is a smooth function of normal noise.

By L-BFGS on noise that never changes.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from .._numerics import host_rng, to_device, to_host
from .._types import Array, Key
from ..estimators.fixed_design import moment_matched
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError, Result
from ..search.lbfgs import LockstepSearch
from ..targets.base import AbstractTarget, Density, require
from ..targets.batched import batched
from .base import AbstractSolver, Info, check_elbo

_ADVANCES = 5  # evaluations of the noise per step of the loop
_MEMORY = 20  # curvature pairs: a warp or a flow is curved in many directions
_FLAT_GAIN = 1e-3  # nats of a step of the loop below which the search has arrived


class _State(eqx.Module):
    """The search, and what it is about.

    Attributes:
        search: in the step from the start.
        member: that a step leads to, on the host.
        counter: evaluations of the log density so far; the search counts them where it makes them.
        best: loss after the last step of the loop.
        result: how the run has ended.
    """

    search: LockstepSearch = eqx.field(static=True)
    member: Callable[[Float[np.ndarray, "p"]], AbstractFamily] = eqx.field(static=True)
    counter: list[int] = eqx.field(static=True)
    best: float = eqx.field(static=True)
    result: Result | None = eqx.field(static=True, default=None)


class FixedNoise(AbstractSolver):
    """Maximise the ELBO at antithetic noise that never changes, by L-BFGS in q's own scale.

    It moves `step` in q = retract(start, step). For `Warped`, `StudentT` and `Flow`, started from a
    member that is nearly right (`Warped.around(gaussian)`): deterministic, so it stops by itself,
    and far cheaper than stochastic gradients. The target's one compiled program serves; what is
    compiled is the family alone. Not for a Gaussian (NaturalGradient, FixedDraws), nor from a far
    start; with fewer pairs than a few times the dimension it fits the noise, which fresh draws show
    (`fit.elbo`).

    A family's `penalty()` is subtracted.

    Arguments:
        pairs: antithetic pairs of noise, with unit second moments where there are enough; None is
            max(4 dim, 256).
        gtol: gradient norm (nats per posterior sd) at which the search ends.

    Source: Giordano, Ingram & Broderick 2023; Burroni, Domke & Sheldon 2024.
    """

    pairs: int | None = None
    gtol: float = 3e-3
    compiled: ClassVar[bool] = False

    def default_objective(self) -> AbstractObjective:
        return ELBO()

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        require(self, target, Density)
        check_elbo(self, objective)
        if q.noise_dim is None or not q.reparameterised:
            raise PairingError(
                "FixedNoise needs draws that are a smooth function of standard normals, which"
                f" {type(q).__name__}'s are not; use StochasticGradient."
            )

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> _State:
        density = require(self, target, Density)
        assert q.noise_dim is not None  # by `check`
        pairs = max(4 * q.dim, 256) if self.pairs is None else self.pairs
        half = moment_matched(host_rng(key, "fixed noise"), pairs, q.noise_dim)
        noise = np.concatenate([half, -half])
        start = to_device(q)
        size = ravel_pytree(eqx.filter(start, eqx.is_inexact_array))[0].size
        counter = [0]

        def evaluate(
            points: Float[np.ndarray, "lanes p"],
        ) -> tuple[Float[np.ndarray, "lanes"], Float[np.ndarray, "lanes p"]]:
            parts = [elbo(point) for point in points]
            return np.array([value for value, _ in parts]), np.stack(
                [gradient for _, gradient in parts]
            )

        def elbo(x: Float[np.ndarray, "p"]) -> tuple[float, Float[np.ndarray, "p"]]:
            z = np.asarray(_draws(start, x, noise))
            if not np.all(np.isfinite(z)):
                return -np.inf, np.zeros_like(x)
            counter[0] += len(z)
            values, scores = batched(density)(z)
            if not (np.all(np.isfinite(values)) and np.all(np.isfinite(scores))):
                return -np.inf, np.zeros_like(x)
            entropy, gradient = _pulled_back(start, x, noise, scores)
            return float(values.mean() + np.asarray(entropy)), np.asarray(gradient)

        search = LockstepSearch(evaluate, np.zeros((1, size)), _MEMORY, self.gtol)
        result = None if len(search.x) else Result.nonfinite
        return _State(search, lambda x: to_host(_member_of(start, x)), counter, np.inf, result)

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: _State,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, _State, Info]:
        before, old = state.counter[0], state.search.x[0].copy()
        running = True
        for _ in range(_ADVANCES):
            running = state.search.advance(10_000)
            if not running:
                break
        x, loss = state.search.x[0], float(state.search.f[0])
        arrived = not running or state.best - loss < _FLAT_GAIN
        state = dataclasses.replace(state, best=loss, result=Result.converged if arrived else None)
        change = float(np.sqrt(np.mean((x - old) ** 2)))
        return (
            target,
            state.member(x),
            state,
            Info(np.float64(loss), np.float64(change), state.counter[0] - before),
        )

    def done(self, state: _State) -> Result | None:
        return state.result


def _member(start: AbstractFamily, x: Float[Array, "p"]) -> AbstractFamily:
    """The member that the step `x`, in the start's own scale, leads to."""
    _, unravel = ravel_pytree(eqx.filter(start, eqx.is_inexact_array))
    return start.retract(eqx.combine(unravel(jnp.asarray(x)), start))


# One program each per structure and shape, whatever the fit: the family's part is compiled once per
# process.
_member_of = eqx.filter_jit(_member)


@eqx.filter_jit
def _draws(
    start: AbstractFamily, x: Float[Array, "p"], noise: Float[Array, "n noise"]
) -> Float[Array, "n dim"]:
    return jax.vmap(_member(start, x)._from_noise)(noise)


@eqx.filter_jit
def _pulled_back(
    start: AbstractFamily,
    x: Float[Array, "p"],
    noise: Float[Array, "n noise"],
    scores: Float[Array, "n dim"],
) -> tuple[Float[Array, ""], Float[Array, "p"]]:
    """Entropy over the noise less the penalty, and the gradient of the ELBO in x.

    From the target's scores at the draws, so that the target itself is not compiled again.
    """

    def rest(x: Float[Array, "p"]) -> Float[Array, ""]:
        q = _member(start, x)
        z = jax.vmap(q._from_noise)(noise)
        entropy = -jnp.mean(jax.vmap(q._log_prob)(z)) - q.penalty()
        # The scores stand for the gradient of log p: their inner product with z has it, and no
        # value of its own
        pushed = jnp.mean(jnp.sum(jax.lax.stop_gradient(scores) * z, axis=1))
        return entropy + pushed - jax.lax.stop_gradient(pushed)

    return jax.value_and_grad(rest)(x)


__all__ = ["FixedNoise"]
