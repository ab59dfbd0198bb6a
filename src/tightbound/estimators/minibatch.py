"""Any estimator of the ELBO on a few rows at a time: no bias, and nearly no more noise."""

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Bool, Float, Int

from .._numerics import as_key
from .._types import Array, Key, PyTree, Scalar, Validated
from ..families.base import AbstractFamily
from ..objectives.base import AbstractObjective, Source
from ..objectives.classic import ELBO
from ..results import PairingError
from ..targets.base import AbstractTarget, Density, Rows, require
from .base import AbstractEstimator, frozen
from .pathwise import StickTheLanding

# Steps after which the anchor moves for the first time; then after 32, 64, ... steps
_FIRST_REFRESH = 16
_ANCHOR_DRAWS = 64  # of q, whose mean is the anchor: it is off by about an eighth of an sd
_MOST_SECOND_ORDER = 100  # dimensions up to which d full gradients per anchor are worth it


class Anchor(eqx.Module):
    """The log likelihood of all rows to second order around a point.

    Attributes:
        point: where.
        value: sum over all rows of log p(row | point), nats.
        gradient: of the same.
        hessian: of the same; `[0, 0]` where only the first order is used.
    """

    point: Float[Array, "dim"]
    value: Float[Array, ""]
    gradient: Float[Array, "dim"]
    hessian: Float[Array, "order2 order2"]


class MinibatchState(eqx.Module):
    """What the next step needs.

    Attributes:
        inner: the inner estimator's state.
        order: of the rows in this epoch.
        place: how many rows of it are used.
        count: steps so far.
        anchor: what the likelihood is expanded around.
        refreshed: whether the last step moved the anchor.
    """

    inner: PyTree
    order: Int[Array, "rows"]
    place: Int[Array, ""]
    count: Int[Array, ""]
    anchor: Anchor
    refreshed: Bool[Array, ""]


class Minibatch(AbstractEstimator[Rows]):
    """The gradient of the ELBO from `batch_size` of the N rows per step.

    N comes from the target's data.

    Each epoch goes through the rows in a new random order, B at a time; log p is estimated by

        log prior(z) + T(z) + N/B sum over the batch of (log p(row | z) - T_row(z)),

    where T_row is the Taylor polynomial of the row's log likelihood around an anchor (q's mean,
    moved after 16, 32, 64, ... steps) and T = sum of T_row over ALL rows. The estimate is unbiased
    at every z whatever the anchor; near the anchor what is left of the noise is the rows' third
    derivatives, so that the fit keeps the accuracy of one on all rows. Plain minibatches
    (`taylor=0`) have noise of order sqrt(N) in the score, as wide as the posterior itself or wider.

    Results and certificates always use all rows. Not for targets with few rows (use all of them),
    nor for objectives that are not linear in log p: the exponential of an unbiased estimate is not
    unbiased. The default takes some hundreds of gradients on all rows; minibatches pay where one
    pass over the data takes seconds.

    Source: Hoffman et al. 2013, section 2.4 (shuffled batches, scale N/B); Johnson & Zhang 2013,
    algorithm SVRG (first order); Baker et al. 2019, section 3 (anchored control variates).

    Attributes:
        batch_size: B, rows per step, without repetition within an epoch (N mod B rows of it are
            left for others).
        estimator: what is done with log p; None is StickTheLanding(8, noise="antithetic").
        taylor: order of T: 0, 1 or 2; None is 2 up to 100 dimensions and 1 above. The second order
            costs d gradients on all rows whenever the anchor moves, the first order one.
    """

    batch_size: int = eqx.field(static=True)
    estimator: AbstractEstimator[Density] = eqx.field(
        default_factory=lambda: StickTheLanding(8, noise="antithetic")
    )
    taylor: int | None = eqx.field(default=None, static=True)
    unbiased_for: ClassVar[tuple[type[AbstractObjective], ...]] = (ELBO,)

    def __check_init__(self):
        if (
            isinstance(self.batch_size, bool)
            or not isinstance(self.batch_size, int)
            or self.batch_size < 1
        ):
            raise ValueError(
                "Minibatch: `batch_size` must be an integer of at least 1, got"
                f" {self.batch_size!r}."
            )
        if self.taylor not in (None, 0, 1, 2):
            raise ValueError(f"Minibatch: `taylor` must be 0, 1, 2 or None, got {self.taylor!r}.")

    def check(
        self,
        target: Validated[AbstractTarget, "require"],
        q: AbstractFamily,
        objective: AbstractObjective | None,
    ) -> None:
        rows = require(self, target, Rows)
        if self.batch_size > rows.num_rows:
            raise PairingError(
                f"Minibatch: `batch_size` is {self.batch_size}, but the data have {rows.num_rows}"
                f" rows; use fewer, or {type(self.estimator).__name__} alone, which takes all rows."
            )
        if objective is not None and type(objective) not in self.unbiased_for:
            raise PairingError(
                f"{type(objective).__name__} is not linear in log p, so that its estimate from a"
                f" minibatch is biased; use ELBO, or {type(self.estimator).__name__} alone, which"
                " takes all rows."
            )
        if self.estimator.draws_from is not Source.q:
            raise PairingError(
                f"Minibatch: `estimator` must draw from q, which {type(self.estimator).__name__}"
                " does not."
            )
        self.estimator.check(target, q, objective)

    def prepare(self, target: Rows, q: AbstractFamily, key: Key) -> MinibatchState:
        inner, order = jr.split(as_key(key))
        count = jnp.zeros((), jnp.int32)
        return MinibatchState(
            self.estimator.prepare(target, q, inner),
            jr.permutation(order, target.num_rows),
            count,
            count,
            _anchor(target, _centre(q), self._order(q)),
            jnp.asarray(True),
        )

    def surrogate(
        self,
        objective: AbstractObjective,
        target: Rows,
        q: AbstractFamily,
        state: MinibatchState,
        key: jax.Array,
    ) -> tuple[Float[Array, ""], MinibatchState]:
        shuffle, inner = jr.split(key)
        state = self._moved_on(target, q, state, shuffle)
        index = jax.lax.dynamic_slice_in_dim(state.order, state.place, self.batch_size)
        batch = _Anchored(
            target, target.rows_at(index), state.anchor, self.batch_size, self._order(q)
        )
        loss, inside = self.estimator.surrogate(objective, batch, q, state.inner, inner)
        place, count = state.place + self.batch_size, state.count + 1
        return loss, dataclasses.replace(state, inner=inside, place=place, count=count)

    def evaluations_per_step(self, target: Rows) -> float:
        return self.estimator.evaluations_per_step(target) * self.batch_size / target.num_rows

    def evaluations_used(self, target: Rows, state: MinibatchState) -> Scalar:
        """A step's share of the rows, and the full gradients of a step that moved the anchor."""
        full = {0: 0.0, 1: 1.0, 2: 1.0 + target.dim}[self._order(target)]
        return self.evaluations_per_step(target) + jnp.where(state.refreshed, full, 0.0)

    def _order(self, q: AbstractFamily | Rows) -> int:
        """The order of T for as many dimensions as q (or the target) has."""
        if self.taylor is not None:
            return self.taylor
        return 2 if q.dim <= _MOST_SECOND_ORDER else 1

    def _moved_on(
        self, target: Rows, q: AbstractFamily, state: MinibatchState, key: jax.Array
    ) -> MinibatchState:
        """A new order of the rows where the epoch is over, a new anchor where it is time."""
        over = state.place + self.batch_size > target.num_rows
        shuffled = jax.lax.cond(
            over, lambda: jr.permutation(key, target.num_rows), lambda: state.order
        )
        count = state.count
        # Powers of two: q moves less and less, and an anchor at its end is worth the most.
        due = (count >= _FIRST_REFRESH) & ((count & (count - 1)) == 0)
        old = state.anchor
        anchor = jax.lax.cond(due, lambda: _anchor(target, _centre(q), self._order(q)), lambda: old)
        place = jnp.where(over, 0, state.place)
        return MinibatchState(state.inner, shuffled, place, count, anchor, due | (count == 0))


class _Anchored(Density):
    """log prior + the anchored estimate of the log likelihood of all rows from some of them."""

    target: Rows
    rows: PyTree
    anchor: Anchor
    size: int = eqx.field(static=True)
    order: int = eqx.field(static=True)

    @property
    def dim(self) -> int:
        return self.target.dim

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        return self.target.coordinate_names

    def constrain(self, z: Float[Array, "dim"]) -> PyTree:
        return self.target.constrain(z)

    def unconstrain(self, values: PyTree) -> Float[Array, "dim"]:
        return self.target.unconstrain(values)

    def log_density(self, z: Float[Array, "dim"]) -> Float[Array, ""]:
        scale = self.target.num_rows / self.size
        move = z - self.anchor.point
        rows = jnp.sum(self._likelihood(z)) - self._taylor_of_rows(move)
        return self.target.log_prior(z) + self._taylor_of_all(move) + scale * rows

    def _likelihood(self, z: Float[Array, "dim"]) -> Float[Array, "rows"]:
        return self.target.log_likelihood(z, self.rows)

    def _taylor_of_all(self, move: Float[Array, "dim"]) -> Float[Array, ""]:
        if self.order == 0:
            return jnp.zeros((), move.dtype)
        first = self.anchor.value + self.anchor.gradient @ move
        return first if self.order == 1 else first + 0.5 * move @ (self.anchor.hessian @ move)

    def _taylor_of_rows(self, move: Float[Array, "dim"]) -> Float[Array, ""]:
        """The polynomials of the batch's rows, summed.

        By derivatives along the move alone: no matrix is built.
        """
        if self.order == 0:
            return jnp.zeros((), move.dtype)

        def along(t: Float[Array, ""]) -> Float[Array, ""]:
            return jnp.sum(self._likelihood(self.anchor.point + t * move))

        zero, one = jnp.zeros((), move.dtype), jnp.ones((), move.dtype)
        if self.order == 1:
            value, slope = jax.jvp(along, (zero,), (one,))
            return value + slope
        slope_at = lambda t: jax.jvp(along, (t,), (one,))  # noqa: E731
        (value, slope), (_, bend) = jax.jvp(slope_at, (zero,), (one,))
        return value + slope + 0.5 * bend


def _centre(q: AbstractFamily) -> Float[Array, "dim"]:
    """About the mean of q: exactly so where mirrored noise makes mirrored draws."""
    # The same draws at each step, whatever the key: the anchor follows q, and no noise of its own.
    q = frozen(q)
    if q.noise_dim is None:
        return jnp.mean(jax.vmap(q._sample)(jr.split(jr.key(0), _ANCHOR_DRAWS)), axis=0)
    half = jr.normal(jr.key(0), (_ANCHOR_DRAWS // 2, q.noise_dim), q.dtype)
    return jnp.mean(jax.vmap(q._from_noise)(jnp.concatenate([half, -half])), axis=0)


def _anchor(target: Rows, point: Float[Array, "dim"], order: int) -> Anchor:
    """One gradient on all rows, and d products with the Hessian for the second order."""
    dim = point.shape[0]
    empty = jnp.zeros((0, 0), point.dtype)
    if order == 0:
        return Anchor(point, jnp.zeros((), point.dtype), jnp.zeros_like(point), empty)
    rows = target.rows_at(jnp.arange(target.num_rows))

    def total(z: Float[Array, "dim"]) -> Float[Array, ""]:
        return jnp.sum(target.log_likelihood(z, rows))

    value, gradient = jax.value_and_grad(total)(point)
    if order == 1:
        return Anchor(point, value, gradient, empty)
    # One product at a time: all at once would hold d numbers for every intermediate of every row
    hessian = jax.lax.map(
        lambda v: jax.jvp(jax.grad(total), (point,), (v,))[1], jnp.eye(dim, dtype=point.dtype)
    )
    return Anchor(point, value, gradient, 0.5 * (hessian + hessian.T))


__all__ = ["Minibatch"]
