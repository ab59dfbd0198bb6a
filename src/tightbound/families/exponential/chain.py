"""A Markov chain on finitely many states as one exponential family: hidden states under q."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.special as jsp
import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int, Real

from ..._types import Array, Validated
from .base import AbstractExponentialFamily, StatisticsType, Support
from .discrete import JUMP
from .parameters import check_same, plated


class ChainStatistics(NamedTuple):
    """P(z_t = k) and P(z_t = i, z_t+1 = j), or the log potentials that go with them."""

    marginals: Float[Array, "*plate steps k"]
    pairs: Float[Array, "*plate steps-1 k k"]


class DiscreteMarkovChain(AbstractExponentialFamily):
    """States z_1, ..., z_T in 0, ..., K - 1, each of which depends on the one before.

        q(z) = exp(sum_t unary[t, z_t] + sum_t pair[t, z_t, z_t+1] - A)
        t = (one-hot states, one-hot pairs),  eta = (unary, pair),  h = 1
        A = log of the sum over all K^T paths, by the forward recursion

    Its mean parameters, grad A, are what forward-backward computes: autodiff of the forward pass
    *is* the backward pass (Eisner 2016; Bishop 2006, section 13.2.2). Many eta have one law: what a
    state's potential gains, the potentials of its pairs may lose. Pathwise gradients do not exist.

    Attributes:
        unary: log potentials of the states.
        pair: log potentials of the transitions.
    """

    unary: Float[Array, "*plate steps k"]
    pair: Float[Array, "*plate steps-1 k k"]
    reparameterised: ClassVar[bool] = False
    smooth_draws_no: ClassVar[str] = JUMP
    ranks: ClassVar[dict[str, int]] = {"unary": 2, "pair": 3}
    statistic_ranks: ClassVar[tuple[int, ...]] = (2, 3)
    statistics_type: ClassVar[StatisticsType] = ChainStatistics
    support: ClassVar[Support] = None

    def __init__(
        self, unary: Validated[npt.ArrayLike, "plated"], pair: Validated[npt.ArrayLike, "plated"]
    ):
        self.unary, self.pair = plated("DiscreteMarkovChain", unary=(unary, 2), pair=(pair, 3))
        if hasattr(self.unary, "shape") and hasattr(self.pair, "shape"):
            states, steps = self.unary.shape[-1], self.unary.shape[-2]
            check_same("DiscreteMarkovChain", unary=states, pair=self.pair.shape[-1])
            check_same(
                "DiscreteMarkovChain", pair=self.pair.shape[-1], rows_of_pair=self.pair.shape[-2]
            )
            check_same("DiscreteMarkovChain", steps_minus_one=steps - 1, pair=self.pair.shape[-3])

    @staticmethod
    def uniform(steps: int, states: int, plate: tuple[int, ...] = ()) -> "DiscreteMarkovChain":
        """All paths equally likely."""
        return DiscreteMarkovChain(
            np.zeros((*plate, steps, states)), np.zeros((*plate, steps - 1, states, states))
        )

    @property
    def _event(self) -> tuple[int, ...]:
        return (self.unary.shape[0],)

    def _natural(self) -> ChainStatistics:
        return ChainStatistics(self.unary, self.pair)

    @classmethod
    def _of_natural(cls, eta: ChainStatistics) -> "DiscreteMarkovChain":
        return cls(eta.marginals, eta.pairs)

    @classmethod
    def _of_mean(cls, mean: ChainStatistics) -> "DiscreteMarkovChain":
        """q(z) = q(z_1) prod q(z_t+1 | z_t): transitions conditional on where they start."""
        first = jnp.zeros_like(mean.marginals).at[0].set(jnp.log(mean.marginals[0]))
        return cls(first, jnp.log(mean.pairs) - jnp.log(mean.marginals[:-1, :, None]))

    @classmethod
    def _log_partition(cls, eta: ChainStatistics) -> Float[Array, ""]:
        return jsp.logsumexp(_forward(eta.marginals, eta.pairs)[-1])

    def _statistics(self, value: Real[Array, "steps"]) -> ChainStatistics:
        states = jax.nn.one_hot(value.astype(int), self.unary.shape[-1], dtype=self.unary.dtype)
        return ChainStatistics(states, states[:-1, :, None] * states[1:, None, :])

    def _inside(self, value: Real[Array, "steps"]) -> tuple[Real[Array, "steps"], Bool[Array, ""]]:
        ok = jnp.all((value >= 0) & (value < self.unary.shape[-1]) & (value == jnp.round(value)))
        return jnp.where(ok, value, 0.0), ok

    def _draw(self, key: jax.Array) -> Float[Array, "steps"]:
        """Forward filtering, backward sampling."""
        forward = _forward(self.unary, self.pair)
        last, *keys = jr.split(key, self.unary.shape[0])
        end = jr.categorical(last, forward[-1])

        def back(
            state: Int[Array, ""], given: tuple[Array, Array, Array]
        ) -> tuple[Int[Array, ""], Int[Array, ""]]:
            k, alpha, pair = given
            state = jr.categorical(k, alpha + pair[:, state])
            return state, state

        if not keys:
            return end[None].astype(self.unary.dtype)
        _, path = jax.lax.scan(back, end, (jnp.stack(keys), forward[:-1], self.pair), reverse=True)
        return jnp.concatenate([path, end[None]]).astype(self.unary.dtype)


def _forward(
    unary: Float[Array, "steps k"], pair: Float[Array, "steps-1 k k"]
) -> Float[jax.Array, "steps k"]:
    """log alpha: the log sum over all paths that end in state k at time t."""

    def step(
        alpha: Float[Array, "k"], given: tuple[Array, Array]
    ) -> tuple[Float[Array, "k"], Float[Array, "k"]]:
        potential, transition = given
        alpha = potential + jsp.logsumexp(alpha[:, None] + transition, axis=0)
        return alpha, alpha

    _, rest = jax.lax.scan(step, unary[0], (unary[1:], pair))
    return jnp.concatenate([unary[:1], rest])


__all__ = ["ChainStatistics", "DiscreteMarkovChain"]
