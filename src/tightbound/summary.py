"""Draws and summary tables in the user's terms, corrected where a correction can be believed."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Float

from ._numerics import host_rng, key_words, to_host, x64
from ._types import Estimate, Key, PyTree, Validated
from .certify.certificate import Certificate
from .certify.corrections import expectations, resample, weighted_quantiles
from .certify.draws import FreshDraws, MomentTable, fresh_sample, viewed
from .certify.fitted import Fitted
from .certify.standards import EFFORT, STANDARDS
from .loop import Trace
from .results import Result
from .targets.batched import constrain_batch
from .targets.layout import flatten_values

if TYPE_CHECKING:
    import pandas  # half a second that `import tightbound` does without

QUANTILES = (0.05, 0.5, 0.95)
_POOL_PER_DRAW = 4  # more of them where more are asked for, so that few are repeated


@runtime_checkable
class Summarised(Fitted, Protocol):
    """What a summary must know of a fit: q, its target, and where its keys come from."""

    @property
    def seed(self) -> int:
        """The integer that the keys of fresh draws are derived from."""
        ...


@runtime_checkable
class OnLadder(Protocol):
    """A fit that says where on the default's ladder it stands; a Posterior has climbed none."""

    @property
    def rung(self) -> str:
        """The rung, and why the climb stopped there."""
        ...


@runtime_checkable
class Reported(Summarised, Protocol):
    """What a report, a table of fits or a file for ArviZ must know: a Fit and a Posterior do."""

    @property
    def result(self) -> Result:
        """How the run ended."""
        ...

    @property
    def steps(self) -> int:
        """Solver steps taken."""
        ...

    @property
    def trace(self) -> Trace:
        """Loss, change of q and evaluations, step by step."""
        ...

    @property
    def evaluations(self) -> int:
        """Gradients of the log density that the fit used."""
        ...

    @property
    def seconds(self) -> float:
        """Wall-clock time of the fit."""
        ...

    @property
    def key(self) -> tuple[int, ...]:
        """The words of the key that the fit was run with."""
        ...

    def summary(self) -> "pandas.DataFrame":
        """The table of the posterior."""
        ...

    # Python 3.11 asks for the value of each member when an object is tested against a Protocol,
    # and these two are computed when they are first asked for.
    if TYPE_CHECKING:

        @functools.cached_property  # as in Fit: pyright does not take a property for the same
        def certificate(self) -> Certificate:
            """What is known of how far off q is."""
            ...

        @property
        def elbo(self) -> Estimate:
            """The evidence lower bound on fresh draws, nats."""
            ...


def sample(
    fitted: Summarised,
    key: Key,
    n: Validated[int, "below"],
    *,
    corrected: bool,
    replace: bool = True,
) -> PyTree:
    """`n` named draws; see `Fit.sample`."""
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"sample: `n` must be a positive integer, got {n!r}.")
    key_words(key)  # a wrong key is refused before anything is computed
    if not corrected:
        return constrain_batch(fitted.target, viewed(fitted).q.draw(int(n), key)[0])
    pool = fresh_sample(fitted, key, max(EFFORT.draws, _POOL_PER_DRAW * int(n)))
    if not weights_usable(pool):
        return constrain_batch(fitted.target, pool.z[:n])
    index = resample(host_rng(key, "resample"), pool.smoothed.weights, int(n), replace=replace)
    return constrain_batch(fitted.target, pool.z[index])


def expect(
    fitted: Summarised, function: Callable[[PyTree], PyTree], key: Key
) -> "pandas.DataFrame":
    """The table of `Fit.expect`."""
    draws = fresh_sample(fitted, key)
    with x64():
        names, x = flatten_values(to_host(jax.jit(jax.vmap(function))(draws.named)))
    use = weights_usable(draws)
    weights = draws.smoothed.weights if use else np.full(len(x), 1.0 / len(x))
    columns = expectations(x, weights)
    kinds = np.full(len(names), "corrected" if use else "q", dtype=object)
    return _table(names, {**columns, "draws": kinds})


def summary(fitted: Summarised) -> "pandas.DataFrame":
    """The table of `Fit.summary`, from fresh draws of q.

    Rows are corrected where the correction exceeds its own error.
    """
    return summary_of(fresh_sample(fitted, fitted.seed))


def summary_of(draws: FreshDraws) -> "pandas.DataFrame":
    """The same table from draws that are there already."""
    table = draws.value_table
    columns, use = corrected_columns(draws, table)
    kinds = np.where(use, "corrected", "q").astype(object)
    return _table(table.names, {**columns, "draws": kinds})


def _table(names: tuple[str, ...], columns: dict[str, np.ndarray]) -> "pandas.DataFrame":
    """One row per value. Through xarray, which names the index `parameter` as ArviZ does."""
    import xarray as xr

    data = {name: ("parameter", values) for name, values in columns.items()}
    return xr.Dataset(data, coords={"parameter": list(names)}).to_dataframe()


def corrected_columns(
    draws: FreshDraws, table: MomentTable
) -> tuple[dict[str, Float[np.ndarray, "p"]], Bool[np.ndarray, "p"]]:
    """mean, sd and quantiles per value, and which values are corrected, `[p]`."""
    use = table.believed() & weights_usable(draws)
    return columns_of(draws.values[1], draws.smoothed.weights, table, use), use


def columns_of(
    x: Float[np.ndarray, "n p"],
    weights: Float[np.ndarray, "n"],
    table: MomentTable,
    use: Bool[np.ndarray, "p"],
) -> dict[str, Float[np.ndarray, "p"]]:
    """mean, sd and quantiles of the columns of `x`, by `weights` where `use` says so."""
    plain = np.quantile(x, QUANTILES, axis=0)
    weighted = weighted_quantiles(x, weights, QUANTILES) if use.any() else plain
    columns = {
        "mean": np.where(use, table.corrected_mean, table.mean),
        "sd": np.where(use, table.corrected_sd, table.sd),
    }
    for level, a, b in zip(QUANTILES, weighted, plain, strict=True):
        columns[f"{level:.0%}"] = np.where(use, a, b)
    return columns


def weights_usable(draws: FreshDraws) -> bool:
    """Whether importance weights repair more than they break.

    A k-hat of at most 1, and some effective draws.
    """
    return usable_weights(draws.smoothed.khat, draws.smoothed.ess, len(draws.z))


def usable_weights(khat: float, ess: float, count: int) -> bool:
    """The same, of the numbers; of nearly equal weights the shape of the tail does not matter."""
    some = khat <= STANDARDS.khat_fail and ess >= STANDARDS.correctable
    return bool(some or ess >= STANDARDS.nearly_equal * count)


__all__ = [
    "QUANTILES",
    "OnLadder",
    "Reported",
    "Summarised",
    "columns_of",
    "corrected_columns",
    "expect",
    "sample",
    "summary",
    "summary_of",
    "usable_weights",
    "weights_usable",
]
