"""Stochastic variational inference: coordinate ascent on minibatches, with a decreasing rate."""

import dataclasses
from typing import ClassVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from .._numerics import host_rng, to_device, to_host
from .._types import Array, Key, PyTree, Scalar
from ..families.base import AbstractFamily
from ..families.exponential.base import rebuilt
from ..families.exponential.product import Product
from ..objectives.base import AbstractObjective
from ..objectives.classic import ELBO
from ..results import PairingError, Result
from ..search.conjugate_form import as_conjugate
from ..search.factor_rule import check_product, curved_factors, distance, elbo, sweep, valid
from ..starts.coordinate_ascent import best_start
from ..targets.base import AbstractTarget
from ..targets.conjugate.base import AbstractConjugateTarget
from .base import AbstractSolver, Info, check_elbo

_LOCAL_SWEEPS = 50  # most sweeps of the local factors on one minibatch
_LOCAL_TOL = 1e-3  # largest move, in sds, at which they count as settled
_FIRST_ROWS = 1000  # from which the global factors are first learnt; 10 batches where that is more


@dataclasses.dataclass(frozen=True)
class SVIState:
    """Where the search is, and where in the data.

    Attributes:
        target: the conjugate form, on the device.
        q: all factors, the local ones of all rows too, on the device.
        rng: of the order of rows.
        unseen: rows that this pass has not come to yet.
        steps: so far.
        bounds: the ELBO on all rows after each pass, nats.
        result: how the run has ended.
    """

    target: AbstractConjugateTarget
    q: Product
    rng: np.random.Generator
    unseen: Int[np.ndarray, "unseen"]
    steps: int = 0
    bounds: tuple[float, ...] = ()
    result: Result | None = None


class SVI(AbstractSolver):
    """Stochastic variational inference: coordinate ascent for many rows of data.

        local factors of B rows: coordinate ascent until they settle
        global ones: eta <- (1 - rho_t) eta + rho_t d/dm E_q[log p - log h],  rows counted N/B times
        rho_t = (t + delay)^-forgetting

    The rates sum to infinity and their squares do not (Robbins & Monro 1951), which `forgetting` in
    (0.5, 1] guarantees. N is read from the target's data. After each pass through the data the ELBO
    on all rows is computed; the run ends when a pass gains less than `patience` of what all passes
    together gained. Not for small data, where CoordinateAscent is exact.

    Arguments:
        batch_size: B, rows in a minibatch.
        forgetting: kappa in (0.5, 1]; how fast the rate falls.
        delay: tau of at least 0; damps the first steps.
        patience: share of the whole gain that a pass must still bring.

    Source: Hoffman, Blei, Wang & Paisley 2013, figure 4 and eqs. 26-30.
    """

    batch_size: int = 64
    forgetting: float = 0.7
    delay: float = 1.0
    patience: float = 1e-3
    compiled: ClassVar[bool] = False

    def __check_init__(self):
        if not 0.5 < self.forgetting <= 1.0:
            raise ValueError(
                f"SVI: `forgetting` must be in (0.5, 1], got {self.forgetting!r}: elsewhere the"
                " rates do not sum to infinity while their squares sum to something finite, and"
                " nothing converges."
            )
        if not self.delay >= 0.0:
            raise ValueError(f"SVI: `delay` must be at least 0, got {self.delay!r}.")
        if (
            isinstance(self.batch_size, bool)
            or not isinstance(self.batch_size, (int, np.integer))
            or self.batch_size < 1
        ):
            raise ValueError(
                f"SVI: `batch_size` must be an integer of at least 1, got {self.batch_size!r}."
            )

    def default_objective(self) -> AbstractObjective:
        return ELBO()

    def own_start(
        self, target: AbstractTarget, key: Key, starts: int | None
    ) -> AbstractFamily | None:
        """A single start: looking at several would take passes through all data."""
        return best_start(as_conjugate(target), key, 1)

    def check(
        self, target: AbstractTarget, q: AbstractFamily, objective: AbstractObjective | None
    ) -> None:
        check_elbo(self, objective)
        conjugate = as_conjugate(target)
        product = check_product("SVI", conjugate, q)
        if conjugate.data_rows is None:
            raise PairingError(
                f"SVI takes minibatches of rows, but {type(target).__name__} has no `data_rows`;"
                " use CoordinateAscent."
            )
        count = _num_rows(conjugate)
        if self.batch_size > count:
            raise PairingError(
                f"SVI: `batch_size` {self.batch_size} exceeds the {count} rows of the data; use a"
                " smaller one, or CoordinateAscent, which takes all rows at once."
            )
        # On one minibatch, as no step ever looks at more rows.
        part, rows = _batch(conjugate, product, np.arange(self.batch_size))
        scale = count / self.batch_size
        curved = curved_factors(
            to_device(conjugate), to_device(part), jax.random.key(0), to_device(rows), scale
        )
        if curved:
            raise PairingError(
                f"SVI: the model is not conjugate in the factor {curved[0]!r}: its expected log"
                " joint is not affine in the mean parameters of that"
                f" {type(product[curved[0]]).__name__}. Use NaturalGradient."
            )

    def init(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        key: Key,
        tol: float,
    ) -> SVIState:
        rng, conjugate = host_rng(key, "minibatches"), to_device(as_conjugate(target))
        count = _num_rows(conjugate)
        # A start is given by its local factors (responsibilities): the global ones take it up from
        # some rows of them
        first = rng.permutation(count)[: max(10 * self.batch_size, _FIRST_ROWS)]
        given = to_device(cast(Product, q))  # `check` has refused all else
        start = _seeded(conjugate, given, jnp.asarray(first), np.float64(count / len(first)))
        return SVIState(conjugate, start, rng, np.empty(0, int))

    def step(
        self,
        target: AbstractTarget,
        q: AbstractFamily,
        objective: AbstractObjective | None,
        state: SVIState,
        key: Key,
    ) -> tuple[AbstractTarget, AbstractFamily, SVIState, Info]:
        count = _num_rows(state.target)
        unseen = (
            state.unseen if len(state.unseen) >= self.batch_size else state.rng.permutation(count)
        )
        index, unseen = unseen[: self.batch_size], unseen[self.batch_size :]
        rho = (state.steps + 1.0 + self.delay) ** -self.forgetting
        new, value, inside = _stepped(
            state.target,
            state.q,
            jnp.asarray(index),
            np.float64(rho),
            np.float64(count / len(index)),
        )
        if not (np.isfinite(value) and inside):
            failed = dataclasses.replace(state, result=Result.nonfinite)
            return target, q, failed, Info(np.nan, np.nan, 0)
        change = np.asarray(distance(new.globals, state.q.globals))
        ended = dataclasses.replace(state, q=new, unseen=unseen, steps=state.steps + 1)
        used = len(index) / count
        if len(unseen) < self.batch_size:
            settled, bound = self._everywhere(ended)
            bounds = (*state.bounds, bound)
            result = Result.stationary if self._levelled(bounds) else None
            ended = dataclasses.replace(ended, q=settled, bounds=bounds, result=result)
            used = used + 1.0
        return target, to_host(ended.q), ended, Info(-np.asarray(value), change, used)

    def done(self, state: SVIState) -> Result | None:
        return state.result

    def finish(self, target: AbstractTarget, q: AbstractFamily, state: SVIState) -> AbstractFamily:
        """The last global factors, with the local factors of all rows at their optimum."""
        return to_host(self._everywhere(state)[0])

    def _everywhere(self, state: SVIState) -> tuple[Product, float]:
        """The local factors of all rows settled, B rows at a time, and the ELBO on all rows."""
        count, q, total = _num_rows(state.target), state.q, 0.0
        shared = float(_shared_part(state.target, q))
        for start in range(0, count, self.batch_size):
            index = jnp.asarray(np.arange(start, min(start + self.batch_size, count)))
            q, value = _settled_rows(state.target, q, index)
            total += float(value)
        return q, shared + total

    def _levelled(self, bounds: tuple[float, ...]) -> bool:
        """Whether the last pass gained little of what all passes together gained."""
        return len(bounds) >= 3 and bounds[-1] - bounds[-2] < self.patience * max(
            bounds[-1] - bounds[0], 1e-12
        )


def _num_rows(target: AbstractConjugateTarget) -> int:
    return len(jax.tree.leaves(target.data_rows)[0])


def _batch(
    target: AbstractConjugateTarget, q: Product, index: Int[Array, "rows"]
) -> tuple[Product, PyTree]:
    """q and the data on these rows."""
    return q.take(index), jax.tree.map(lambda leaf: leaf[index], target.data_rows)


def _settle(target: AbstractConjugateTarget, q: Product, rows: PyTree) -> Product:
    """Coordinate ascent in the local factors of the rows until they hardly move (_LOCAL_TOL)."""
    if not q.local:
        return q

    def go(state: tuple[jax.Array, Product, jax.Array]) -> Bool[jax.Array, ""]:
        count, _, change = state
        return (count < _LOCAL_SWEEPS) & (change > _LOCAL_TOL)

    def body(
        state: tuple[jax.Array, Product, jax.Array],
    ) -> tuple[jax.Array, Product, jax.Array]:
        count, q, _ = state
        new = sweep(target, q, q.local, rows)
        moves = [jnp.max(new.factors[name].kls(q.factors[name])) for name in q.local]
        return count + 1, new, jnp.sqrt(2.0 * jnp.maximum(jnp.max(jnp.stack(moves)), 0.0))

    return jax.lax.while_loop(go, body, (jnp.asarray(0), q, jnp.asarray(jnp.inf)))[1]


def _with_rows(q: Product, index: Int[Array, "rows"], part: Product) -> Product:
    """q with the local factors of `part` in the places `index`, and its global ones."""
    factors = {
        name: (
            jax.tree.map(lambda all_, some: all_.at[index].set(some), q.factors[name], factor)
            if name in q.local
            else factor
        )
        for name, factor in part.factors.items()
    }
    return rebuilt(q, factors=factors)


@eqx.filter_jit
def _seeded(
    target: AbstractConjugateTarget, q: Product, index: Int[Array, "rows"], scale: Scalar
) -> Product:
    """q with the global factors that the local ones of some rows ask for."""
    part, rows = _batch(target, q, index)
    part = sweep(target, part, tuple(n for n in q.factors if n not in q.local), rows, scale)
    return rebuilt(
        q,
        factors={
            name: q.factors[name] if name in q.local else f for name, f in part.factors.items()
        },
    )


@eqx.filter_jit
def _stepped(
    target: AbstractConjugateTarget,
    q: Product,
    index: Int[Array, "rows"],
    rho: Scalar,
    scale: Scalar,
) -> tuple[Product, Float[Array, ""], Bool[Array, ""]]:
    """q after one minibatch, an estimate of its ELBO before it, and whether q is in its domain."""
    part, rows = _batch(target, q, index)
    part = _settle(target, part, rows)
    value = elbo(target, part, rows, scale)
    part = sweep(target, part, tuple(n for n in q.factors if n not in q.local), rows, scale, rho)
    return _with_rows(q, index, part), value, valid(part)


@eqx.filter_jit
def _settled_rows(
    target: AbstractConjugateTarget, q: Product, index: Int[Array, "rows"]
) -> tuple[Product, Float[Array, ""]]:
    """Local factors of some rows settled, and what those rows add to the ELBO."""
    part, rows = _batch(target, q, index)
    part = _settle(target, part, rows)
    # The difference leaves out what no row adds to, which `_shared_part` counts once
    added = elbo(target, part, rows, 1.0) - elbo(target, part, rows, 0.0)
    return _with_rows(q, index, part), added


@eqx.filter_jit
def _shared_part(target: AbstractConjugateTarget, q: Product) -> Float[Array, ""]:
    """The part of the ELBO that no row adds to."""
    part, rows = _batch(target, q, jnp.arange(1))
    return elbo(target, part, rows, 0.0)


__all__ = ["SVI", "SVIState"]
