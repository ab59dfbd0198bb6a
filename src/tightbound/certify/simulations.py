"""Fresh simulations, and what an amortised q says of them: what the checks of amortised fits share."""

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._numerics import as_key, to_device, to_host, x64
from .._types import Budget, PyTree
from ..estimators.from_model import draws, is_valid
from ..families.conditional import draws_at
from ..results import TargetError

_CHUNK = 250


@dataclasses.dataclass(frozen=True)
class Simulated:
    """N fresh draws of the joint: `z [N, d]`, x with a leading axis N; `invalid`.

    Share of draws left out as not finite.
    """

    z: np.ndarray
    x: PyTree
    invalid: float

    def __len__(self) -> int:
        return len(self.z)


def simulations(target: Any, key: Any, n: int) -> Simulated:
    """`n` draws of the joint distribution, fewer where some are not finite.

    Stored simulations are drawn again, those that were trained on among them: findings from them
    are too kind.

    Raises:
        TargetError: none is finite.
    """
    with x64():
        key, target = as_key(key), to_device(target)
        # one program, whatever n
        parts = [_drawn(target, jr.fold_in(key, i)) for i in range(-(-n // _CHUNK))]
        z, x, valid = (_joined([to_host(part[j]) for part in parts]) for j in range(3))
    z, x, valid = z[:n], jax.tree.map(lambda leaf: leaf[:n], x), valid[:n]
    if not valid.any():
        raise TargetError("None of the simulations is finite: `simulate` returns NaN or infinity.")
    return Simulated(z[valid], jax.tree.map(lambda leaf: leaf[valid], x), float(1 - valid.mean()))


@eqx.filter_jit
def _drawn(target: Any, key: Any) -> Any:
    z, x = draws(target, key, _CHUNK)
    return z, x, is_valid(z, x)


@dataclasses.dataclass(frozen=True)
class Posteriors:
    """N simulations with L draws of q(. | x_i) for each.

    Attributes:
        z: true parameters, `[N, d]`.
        x: data, leading axis N.
        draws: `[N, L, d]`.
        log_q: of the draws, `[N, L]`; log_q_true `[N]`.
        circular: which coordinates are angles.
        seconds: it took.
        asked: how many simulations were asked for; fewer where the budget ended.
    """

    z: np.ndarray
    x: PyTree
    draws: np.ndarray
    log_q: np.ndarray
    log_q_true: np.ndarray
    circular: tuple[bool, ...]
    seconds: float
    asked: int


def posteriors(
    q: Any, target: Any, key: Any, n: int = 500, draws: int = 200, budget: Budget | None = None
) -> Posteriors:
    """Simulate `n` data sets and draw from q at each, in chunks, until done or the budget's seconds
    are used.
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
def _log_probs(q: Any, draws: Any, z: Any, x: Any) -> Any:
    one = lambda draws, z, x: (  # noqa: E731
        jax.vmap(lambda point: q._log_prob(point, x))(draws),
        q._log_prob(z, x),
    )
    return jax.vmap(one)(draws, z, x)


def _as(dtype: Any, *trees: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), trees)


def _joined(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def features(q: Any, x: PyTree) -> np.ndarray:
    """Standardised x, flattened, `[n, p]`: what distances between data sets are measured in."""
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


__all__ = ["Posteriors", "Simulated", "features", "posteriors", "simulations"]
