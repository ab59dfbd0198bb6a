"""Metropolis-Hastings, HMC and NUTS by BlackJAX, in coordinates whitened by an earlier fit."""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.linalg
import numpy as np

from .._numerics import standard_promotion
from .._types import Array, PyTree
from ..results import MissingExtraError
from ..targets.base import Density, require
from ..targets.batched import batched
from .sampling import AbstractSampler, Moves

_CANDIDATES = 16  # draws of q per chain among which a start of finite density is looked for
_MOST_DENSE = 500  # dimensions up to which correlations are whitened, not only scales
_MOMENT_DRAWS = 4000
# of the warm-up: the whitening is learnt in the two windows between these
_WINDOWS = (0.15, 0.4, 0.8)
_SHRINK = 5.0  # per dimension: draws that the present whitening is worth when a new one is learnt

LogDensity = Callable[[jax.Array], jax.Array]


class Transition(NamedTuple):
    """One chain after one transition.

    Its kernel state, whitened position, log density, and how it went.
    """

    state: PyTree
    position: jax.Array
    log_density: jax.Array
    acceptance: jax.Array
    diverging: jax.Array
    evaluations: jax.Array


class Tuning(eqx.Module):
    """What the warm-up learns, shared by all chains.

    Attributes:
        centre: `[d]`; `root`: `[d, d]`, or `[d]` where only scales are whitened: z = centre + root
            u.
        averaging: dual averaging of the log step size.
        seen: positions in the present window; `total [d]` and `squares` (`[d, d]` or `[d]`) their
            sums in u.
    """

    centre: Array
    root: Array
    averaging: PyTree
    seen: Array
    total: Array
    squares: Array

    def unwhiten(self, u: Array) -> Array:
        return self.centre + (self.root * u if self.root.ndim == 1 else self.root @ u)


class AbstractWhitenedSampler(AbstractSampler):
    """A kernel with a step size, on log p(centre + root u), where root comes from q and is refined
    while warming up.

    Implementing one: `_begin` and `_transition` for one chain in whitened coordinates, and the step
    size to begin with.
    """

    target_acceptance: eqx.AbstractVar[float]
    gradients_at_start: ClassVar[int] = 1

    @abc.abstractmethod
    def _begin(self, log_density: LogDensity, u: jax.Array) -> PyTree:
        """The kernel's state at a position."""

    @abc.abstractmethod
    def _transition(
        self, log_density: LogDensity, state: PyTree, step_size: jax.Array, key: jax.Array
    ) -> Transition:
        """One transition."""

    @abc.abstractmethod
    def _first_step_size(self, dim: int) -> float:
        """In posterior sds, for a standard normal of `dim` dimensions."""

    def supports(self, target: Any, q: Any) -> None:
        require(self, target, Density)
        _blackjax()

    def start(self, target: Any, q: Any, key: jax.Array) -> tuple[PyTree, int, bool]:
        q = q.on_host()
        centre, root = _whitening(q)
        candidates, _ = q.draw(_CANDIDATES * self.chains, key)
        values, scores = batched(target)(candidates)
        good = np.isfinite(values) & np.all(np.isfinite(scores), axis=1)
        chosen = candidates[np.argsort(~good, kind="stable")[: self.chains]]
        moved = chosen - centre
        white = moved / root if root.ndim == 1 else np.linalg.solve(root, moved.T).T
        zeros = jnp.zeros_like(jnp.asarray(root))
        averaging = self._averaging[0](jnp.asarray(self._first_step_size(q.dim)))
        averaging = jax.tree.map(lambda leaf: jnp.asarray(leaf, root.dtype), averaging)
        tuning = Tuning(
            jnp.asarray(centre),
            jnp.asarray(root),
            averaging,
            jnp.zeros(()),
            jnp.zeros(q.dim),
            zeros,
        )
        states = _begin_all(self, target, tuning, jnp.asarray(white))
        return (
            (states, tuning),
            len(candidates) + self.chains * self.gradients_at_start,
            bool(good.sum() >= self.chains),
        )

    def sweep(
        self, target: Any, q: Any, chains: PyTree, count: jax.Array, key: jax.Array
    ) -> tuple[PyTree, Moves]:
        states, tuning = chains
        density = _whitened(target, tuning)
        warming = count < self.warmup
        averaging = tuning.averaging
        step_size = jnp.exp(
            jnp.where(warming, averaging.log_step_size, averaging.log_step_size_avg)
        )

        def one(state, key):
            return self._transition(density, state, step_size, key)

        new = jax.vmap(one)(states, jr.split(key, self.chains))
        positions = jax.vmap(tuning.unwhiten)(new.position)
        change = jnp.sqrt(jnp.mean((new.position - states.position) ** 2))
        statistics = {
            "lp": new.log_density,
            "acceptance_rate": new.acceptance,
            "diverging": new.diverging,
        }
        moves = Moves(positions, statistics, jnp.sum(new.evaluations), change)

        def tune(arguments):
            states, tuning = arguments
            return self._tuned(
                target, states, tuning, new.position, jnp.mean(new.acceptance), count
            )

        return jax.lax.cond(warming, tune, lambda arguments: arguments, (new.state, tuning)), moves

    def _tuned(
        self,
        target: Any,
        states: PyTree,
        tuning: Tuning,
        u: jax.Array,
        acceptance: jax.Array,
        count: jax.Array,
    ) -> tuple[PyTree, Tuning]:
        """The step size after one more acceptance.

        At the end of a window the whitening too, with the chains moved over.
        """
        averaging = self._averaging[1](tuning.averaging, acceptance)
        squares = u.T @ u if tuning.root.ndim == 2 else jnp.sum(u**2, axis=0)
        tuning = Tuning(
            tuning.centre,
            tuning.root,
            averaging,
            tuning.seen + self.chains,
            tuning.total + u.sum(axis=0),
            tuning.squares + squares,
        )
        opens, middle, last = (int(share * self.warmup) for share in _WINDOWS)

        def refresh(arguments):
            states, tuning = arguments
            fresh = self._rewhitened(tuning)
            moved = jax.vmap(tuning.unwhiten)(states.position) - fresh.centre
            u = (
                moved / fresh.root
                if fresh.root.ndim == 1
                else jnp.linalg.solve(fresh.root, moved.T).T
            )
            return _begin_in(self, target, fresh, u), fresh

        def forget(arguments):
            states, tuning = arguments
            empty = eqx.tree_at(
                lambda t: (t.seen, t.total, t.squares), tuning, replace_fn=jnp.zeros_like
            )
            return states, empty

        ends = ((count + 1 == middle) | (count + 1 == last)) & (tuning.seen > self.chains)
        states, tuning = jax.lax.cond(ends, refresh, lambda a: a, (states, tuning))
        return jax.lax.cond(count + 1 == opens, forget, lambda a: a, (states, tuning))

    def _rewhitened(self, tuning: Tuning) -> Tuning:
        """Centre and root from the window's positions, shrunk towards the present ones.

        The step size starts anew.
        """
        mean, second = tuning.total / tuning.seen, tuning.squares / tuning.seen
        dim = mean.shape[0]
        trust = tuning.seen / (tuning.seen + _SHRINK * (dim if tuning.root.ndim == 2 else 1.0))
        if tuning.root.ndim == 1:
            variance = trust * (second - mean**2) + (1.0 - trust)
            root = tuning.root * jnp.sqrt(jnp.maximum(variance, 1e-6))
        else:
            covariance = second - mean[:, None] * mean[None, :]
            blend = trust * covariance + (1.0 - trust) * jnp.diag(
                jnp.maximum(jnp.diag(covariance), 1e-6)
            )
            root = tuning.root @ jnp.linalg.cholesky(blend + 1e-9 * jnp.eye(dim, dtype=blend.dtype))
            root = jnp.where(jnp.all(jnp.isfinite(root)), root, tuning.root)
        averaging = self._averaging[0](jnp.asarray(self._first_step_size(dim), root.dtype))
        averaging = jax.tree.map(
            lambda new, old: jnp.asarray(new, old.dtype), averaging, tuning.averaging
        )
        zeros = jnp.zeros_like(tuning.squares)
        return Tuning(
            tuning.unwhiten(mean),
            root,
            averaging,
            jnp.zeros_like(tuning.seen),
            jnp.zeros_like(mean),
            zeros,
        )

    @property
    def _averaging(self) -> Any:
        """(init, update, final) of dual averaging (Nesterov 2009.

        Hoffman & Gelman 2014, section 3.2.1).
        """
        _blackjax()
        from blackjax.adaptation.step_size import dual_averaging_adaptation

        return dual_averaging_adaptation(self.target_acceptance)


class NUTS(AbstractWhitenedSampler):
    """The No-U-Turn sampler, multinomial form: the referee for posteriors with gradients.

    Chains start from draws of q, in coordinates whitened by it: after `fit = tb.fit(target)`,
    `tb.fit(target, fit.q, solver=tb.solvers.NUTS())` needs no long warm-up; without a q it starts
    from the default's local Gaussian. `fit.q` is then an `Empirical`; the certificate has R-hat,
    effective sample sizes and divergences. Not for separated modes (each chain stays in one, which
    the certificate's searches may or may not notice), nor where one gradient takes seconds.

    Source: Hoffman & Gelman 2014, algorithm 6; Betancourt 2017, appendix A. By BlackJAX (extra
    `samplers`).

    Attributes:
        draws: kept per chain.
        warmup: sweeps before, thrown away: step size by dual averaging, whitening refined twice.
        chains: number of chains, run together.
        target_acceptance: that the step size is tuned for; raise it where transitions diverge.
        max_doublings: of a trajectory, which has at most 2^max_doublings steps.
    """

    draws: int = eqx.field(default=1000, static=True)
    warmup: int = eqx.field(default=400, static=True)
    chains: int = eqx.field(default=4, static=True)
    target_acceptance: float = eqx.field(default=0.8, static=True)
    max_doublings: int = eqx.field(default=10, static=True)

    def _begin(self, log_density: LogDensity, u: jax.Array) -> PyTree:
        return _blackjax().mcmc.hmc.init(u, log_density)

    def _transition(
        self, log_density: LogDensity, state: PyTree, step_size: jax.Array, key: jax.Array
    ) -> Transition:
        kernel = _blackjax().mcmc.nuts.build_kernel()
        with standard_promotion():
            new, info = kernel(
                key,
                state,
                log_density,
                step_size,
                jnp.ones_like(state.position),
                self.max_doublings,
            )
        return _hamiltonian(new, info)

    def _first_step_size(self, dim: int) -> float:
        return 1.0 / dim**0.25


class HMC(AbstractWhitenedSampler):
    """Hamiltonian Monte Carlo with trajectories of a given length: a cheap referee for nearly
    Gaussian posteriors.

    Whitened by q, a trajectory of length pi/2 takes a standard normal to an independent draw.
    Lengths vary by a factor uniform(1/2, 3/2), so that no periodic orbit traps a chain. Not where
    scales vary over the posterior (funnels): NUTS.

    Source: Neal 2011, section 5.3. By BlackJAX (extra `samplers`).

    Attributes:
        draws: kept per chain.
        warmup: sweeps before, thrown away.
        chains: number of chains, run together.
        length: of a trajectory, in posterior sds; it takes length / step size gradients, at most
            1,000.
        target_acceptance: that the step size is tuned for.
    """

    draws: int = eqx.field(default=1000, static=True)
    warmup: int = eqx.field(default=400, static=True)
    chains: int = eqx.field(default=4, static=True)
    length: float = eqx.field(default=math.pi / 2, static=True)
    target_acceptance: float = eqx.field(default=0.8, static=True)

    def _begin(self, log_density: LogDensity, u: jax.Array) -> PyTree:
        return _blackjax().mcmc.hmc.init(u, log_density)

    def _transition(
        self, log_density: LogDensity, state: PyTree, step_size: jax.Array, key: jax.Array
    ) -> Transition:
        vary, move = jr.split(key)
        length = self.length * jr.uniform(vary, (), state.position.dtype, 0.5, 1.5)
        steps = jnp.clip(jnp.ceil(length / step_size), 1, 1000).astype(jnp.int32)
        kernel = _blackjax().mcmc.hmc.build_kernel()
        with standard_promotion():
            new, info = kernel(
                move, state, log_density, step_size, jnp.ones_like(state.position), steps
            )
        return _hamiltonian(new, info)

    def _first_step_size(self, dim: int) -> float:
        return 1.0 / dim**0.25


class Metropolis(AbstractWhitenedSampler):
    """Random-walk Metropolis-Hastings: needs values of the log density only, and many of them.

    Proposals N(u, step^2 I) in whitened coordinates; about 10 d sweeps make one effective draw, so
    not above some twenty dimensions. Where the gradient is cheap NUTS is better in everything.

    Source: Metropolis et al. 1953; Roberts, Gelman & Gilks 1997 (the acceptance rate of 0.234). By
    BlackJAX (extra `samplers`).

    Attributes:
        draws: kept per chain.
        warmup: sweeps before, thrown away.
        chains: number of chains, run together.
        target_acceptance: that the step size is tuned for.
    """

    draws: int = eqx.field(default=10_000, static=True)
    warmup: int = eqx.field(default=2_000, static=True)
    chains: int = eqx.field(default=4, static=True)
    target_acceptance: float = eqx.field(default=0.234, static=True)

    def _begin(self, log_density: LogDensity, u: jax.Array) -> PyTree:
        return _blackjax().mcmc.random_walk.init(u, log_density)

    def _transition(
        self, log_density: LogDensity, state: PyTree, step_size: jax.Array, key: jax.Array
    ) -> Transition:
        def propose(key, position):
            return step_size * jr.normal(key, position.shape, position.dtype)

        kernel = _blackjax().mcmc.random_walk.build_additive_step()
        with standard_promotion():
            new, info = kernel(key, state, log_density, propose)
        nothing = jnp.zeros((), bool)
        return Transition(
            new, new.position, new.logdensity, info.acceptance_rate, nothing, jnp.ones(())
        )

    def _first_step_size(self, dim: int) -> float:
        return 2.38 / math.sqrt(dim)


def _hamiltonian(new: Any, info: Any) -> Transition:
    used = jnp.asarray(info.num_integration_steps, new.position.dtype)
    return Transition(
        new, new.position, new.logdensity, info.acceptance_rate, info.is_divergent, used
    )


def _whitened(target: Any, tuning: Tuning) -> LogDensity:
    """log p(centre + root u), with -inf where it is not a number: such a proposal is rejected."""

    def log_density(u):
        value = target.log_density(tuning.unwhiten(u))
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    return log_density


def _begin_in(
    sampler: AbstractWhitenedSampler, target: Any, tuning: Tuning, white: jax.Array
) -> PyTree:
    density = _whitened(target, tuning)
    return jax.vmap(lambda u: sampler._begin(density, u))(white)


_begin_all = eqx.filter_jit(_begin_in)


def _whitening(q: Any) -> tuple[np.ndarray, np.ndarray]:
    """Centre `[d]` and root (`[d, d]`; `[d]` in many dimensions) of q.

    Its own where it has them, else of its draws.
    """
    if q.dim <= _MOST_DENSE and hasattr(q, "root"):
        return np.asarray(q.mean), np.asarray(q.root)
    z, _ = q.draw(max(_MOMENT_DRAWS, 10 * min(q.dim, _MOST_DENSE)), 0)
    centre, sd = z.mean(axis=0), np.maximum(z.std(axis=0), 1e-300)
    if q.dim > _MOST_DENSE:
        return centre, sd
    u = (z - centre) / sd
    trust = len(z) / (len(z) + _SHRINK * q.dim)
    correlation = trust * (u.T @ u / len(u)) + (1.0 - trust) * np.eye(q.dim)
    return centre, sd[:, None] * np.linalg.cholesky(correlation)


def _blackjax() -> Any:
    try:
        import blackjax
    except ImportError as error:
        raise MissingExtraError(
            "blackjax", "samplers", "A sampler (NUTS, HMC, Metropolis)"
        ) from error
    return blackjax


__all__ = ["HMC", "NUTS", "Metropolis"]
