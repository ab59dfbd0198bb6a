"""Fresh simulations, and what an amortised q says of them: what checks of amortised fits share."""

import dataclasses
import time
from collections.abc import Sequence
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Bool, Float

from .._numerics import as_key, to_device, to_host, x64
from .._types import Array, Key, PyTree
from ..account import Budget
from ..estimators.from_model import draws, is_valid
from ..families.conditional import Conditional, Ensemble, draws_at
from ..results import TargetError
from ..targets.base import Simulator

# Simulations in one call of a compiled program: one program serves any number, and a budget is
# looked at between two of them.
_CHUNK = 250

Amortised: TypeAlias = Conditional | Ensemble
"""Families that are a posterior for any data."""


@dataclasses.dataclass(frozen=True)
class Simulated:
    """n fresh draws of the joint distribution.

    Attributes:
        z: the parameters.
        x: the data, with a leading axis n.
        invalid: share of draws left out as not finite.
    """

    z: Float[np.ndarray, "n dim"]
    x: PyTree
    invalid: float

    def __len__(self) -> int:
        return len(self.z)


def simulations(target: Simulator, key: Key, n: int) -> Simulated:
    """`n` draws of the joint distribution, fewer where some are not finite.

    Stored simulations are drawn again, those that were trained on among them: findings from them
    are too kind.

    Raises:
        TargetError: none is finite.
    """
    with x64():
        key, target = as_key(key), to_device(target)
        # One program, whatever n
        parts = [_drawn(target, jr.fold_in(key, i)) for i in range(-(-n // _CHUNK))]
        z, x, valid = (_joined([to_host(part[j]) for part in parts]) for j in range(3))
    z, x, valid = z[:n], jax.tree.map(lambda leaf: leaf[:n], x), valid[:n]
    if not valid.any():
        raise TargetError("None of the simulations is finite: `simulate` returns NaN or infinity.")
    return Simulated(z[valid], jax.tree.map(lambda leaf: leaf[valid], x), float(1 - valid.mean()))


@eqx.filter_jit
def _drawn(
    target: Simulator, key: jax.Array
) -> tuple[Float[Array, "n dim"], PyTree, Bool[Array, "n"]]:
    z, x = draws(target, key, _CHUNK)
    return z, x, is_valid(z, x)


@dataclasses.dataclass(frozen=True)
class Posteriors:
    """n simulations with some draws of q(. | x_i) for each.

    Attributes:
        z: true parameters.
        x: data, leading axis n.
        draws: of q.
        log_q: of the draws; `log_q_true` of the true parameters.
        circular: which coordinates are angles.
        seconds: it took.
        asked: how many simulations were asked for; fewer where the budget ended.
    """

    z: Float[np.ndarray, "n dim"]
    x: PyTree
    draws: Float[np.ndarray, "n drawn dim"]
    log_q: Float[np.ndarray, "n drawn"]
    log_q_true: Float[np.ndarray, "n"]
    circular: tuple[bool, ...]
    seconds: float
    asked: int


def posteriors(
    q: Amortised,
    target: Simulator,
    key: Key,
    n: int = 500,
    draws: int = 200,
    budget: Budget | None = None,
) -> Posteriors:
    """Simulate `n` data sets and draw from q at each, until done or the budget's seconds are used.

    In chunks of 250; a budget's evaluations are simulations.
    """
    started, rows = time.perf_counter(), []
    limit = None if budget is None else budget.seconds
    if budget is not None and budget.evaluations is not None:
        n = min(n, budget.evaluations)
    with x64():
        key = as_key(key)
        for i, start in enumerate(range(0, n, _CHUNK)):
            if rows and limit is not None and time.perf_counter() - started > limit:
                break
            made = simulations(target, jr.fold_in(key, 2 * i), min(_CHUNK, n - start))
            found = draws_at(q, made.x, jr.fold_in(key, 2 * i + 1), draws)
            log_q, log_q_true = _log_probs(
                to_device(q, q.dtype), *_as(q.dtype, found, made.z, made.x)
            )
            rows.append((made.z, made.x, found, np.asarray(log_q), np.asarray(log_q_true)))
        z, x, found, log_q, log_q_true = (_joined([row[j] for row in rows]) for j in range(5))
    return Posteriors(
        z, x, found, log_q, log_q_true, target.circular, time.perf_counter() - started, n
    )


@eqx.filter_jit
def _log_probs(
    q: Amortised, draws: Float[Array, "n drawn dim"], z: Float[Array, "n dim"], x: PyTree
) -> tuple[Float[Array, "n drawn"], Float[Array, "n"]]:
    one = lambda draws, z, x: (  # noqa: E731
        jax.vmap(lambda point: q._log_prob(point, x))(draws),
        q._log_prob(z, x),
    )
    return jax.vmap(one)(draws, z, x)


def _as(dtype: np.dtype, *trees: PyTree) -> tuple[PyTree, ...]:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), trees)


def _joined(parts: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def features(q: Amortised, x: PyTree) -> Float[np.ndarray, "n p"]:
    """Standardised x, flattened: what distances between data sets are measured in."""
    with x64():
        standard = jax.vmap(q.scaling.standardise)(
            jax.tree.map(lambda leaf: jnp.asarray(leaf, q.dtype), x)
        )
        return np.concatenate(
            [
                np.asarray(leaf, np.float64).reshape(len(leaf), -1)
                for leaf in jax.tree.leaves(standard)
            ],
            axis=1,
        )


__all__ = ["Amortised", "Posteriors", "Simulated", "features", "posteriors", "simulations"]
