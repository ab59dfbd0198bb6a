"""Draws and summary tables in the user's terms, corrected where the certificate believes the
correction.
"""

from typing import Any

import jax
import numpy as np

from ._numerics import host_rng, key_words, to_host, x64
from .certify.certificate import fresh_sample
from .certify.corrections import (
    MomentTable,
    expectations,
    resample,
    value_table,
    weighted_quantiles,
)
from .certify.draws import FreshDraws
from .certify.factors import viewed
from .targets.values import constrain_batch, flatten_values

QUANTILES = (0.05, 0.5, 0.95)


def sample(fit: Any, key: Any, n: int, *, corrected: bool, replace: bool = True) -> Any:
    """`n` named draws; see `Fit.sample`."""
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"sample: `n` must be a positive integer, got {n!r}.")
    key_words(key)
    if not corrected:
        return constrain_batch(fit.target, viewed(fit).q.draw(int(n), key)[0])
    pool = fresh_sample(fit, key, max(4000, 4 * int(n)))
    if not weights_usable(pool):
        return constrain_batch(fit.target, pool.z[:n])
    index = resample(host_rng(key, "resample"), pool.smoothed.weights, int(n), replace=replace)
    return constrain_batch(fit.target, pool.z[index])


def expect(fit: Any, function: Any, key: Any) -> Any:
    """The table of `Fit.expect`."""
    draws = fresh_sample(fit, key)
    with x64():
        names, x = flatten_values(to_host(jax.jit(jax.vmap(function))(draws.named)))
    use = weights_usable(draws)
    weights = draws.smoothed.weights if use else np.full(len(x), 1.0 / len(x))
    import xarray as xr

    data = {name: ("parameter", column) for name, column in expectations(names, x, weights).items()}
    data["draws"] = ("parameter", np.full(len(names), "corrected" if use else "q", dtype=object))
    return xr.Dataset(data, coords={"parameter": list(names)}).to_dataframe()


def summary(fit: Any) -> Any:
    """The table of `Fit.summary`, from fresh draws of q.

    Rows are corrected where the correction exceeds its own error.
    """
    return summary_of(fresh_sample(fit, fit.seed))


def summary_of(draws: FreshDraws) -> Any:
    """The same table from draws that are there already."""
    table = value_table(draws)
    columns, use = corrected_columns(draws, table)
    import xarray as xr

    data = {name: ("parameter", values) for name, values in columns.items()}
    data["draws"] = ("parameter", np.where(use, "corrected", "q").astype(object))
    return xr.Dataset(data, coords={"parameter": list(table.names)}).to_dataframe()


def corrected_columns(
    draws: FreshDraws, table: MomentTable
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """mean, sd and quantiles per value, and which values are corrected, `[P]`."""
    use = table.believed & weights_usable(draws)
    return columns_of(draws.values[1], draws.smoothed.weights, table, use), use


def columns_of(
    x: np.ndarray, weights: np.ndarray, table: MomentTable, use: np.ndarray
) -> dict[str, np.ndarray]:
    """mean, sd and quantiles of the columns of `x [S, P]`, by `weights [S]` where `use [P]` says
    so.
    """
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
    return bool((khat <= 1.0 and ess >= 20) or ess >= 0.95 * count)


__all__ = [
    "QUANTILES",
    "columns_of",
    "corrected_columns",
    "expect",
    "sample",
    "summary",
    "summary_of",
    "usable_weights",
    "weights_usable",
]
