"""`tb.compare([fit, ...])`: several fits of one target in one table, and how far they are apart."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, cast, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float

from ._numerics import scoped, to_device
from ._types import Array, Estimate, Key, PyTree, Validated
from .certify.corrections import resample
from .certify.draws import fresh_sample, viewed
from .certify.standards import EFFORT
from .families.empirical import Empirical
from .results import TargetError
from .search.chain_statistics import ess_mean
from .storage import AnyPath
from .summary import Reported, summary_of, weights_usable
from .targets.base import AbstractTarget, Density
from .targets.batched import batched
from .targets.layout import flatten_values

if TYPE_CHECKING:
    import pandas  # half a second that `import tightbound` does without
    import rich.table

_DRAWS = EFFORT.draws  # of each fit, as many as a certificate uses, and of the truth
_NOTHING = Estimate(np.nan, np.nan)

Moments: TypeAlias = dict[str, tuple[float, float]]
"""Name of a value -> its mean and its sd."""


class PosteriorDraws(NamedTuple):
    """Draws `z` of the posterior, its log density there, and how many independent ones they are."""

    z: Float[np.ndarray, "n dim"]
    log_p: Float[np.ndarray, "n"]
    effective: float


@runtime_checkable
class Truth(Protocol):
    """What is known of a posterior. Everything in `tb.targets.zoo` is one."""

    @property
    def mean(self) -> Mapping[str, Array | float]:
        """Posterior means by the name of the value."""
        ...

    @property
    def sd(self) -> Mapping[str, Array | float]:
        """Posterior sds by the name of the value."""
        ...

    @property
    def log_evidence(self) -> float:
        """The log evidence, nats."""
        ...

    def sample(self, n: int, key: Key) -> PyTree:
        """`n` exact draws of the named values; a TargetError where there are none."""
        ...


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `tb.compare` returns; prints as two tables, in a notebook and with rich too.

    Attributes:
        table: one row per fit: `verdict`, `elbo` with its `stderr`, `KL(q||p)`
            and `KL(p||q)` in nats where they can be had, `mean error` (the largest, in sds of the
            reference), `sd ratio low` and `high`, `seconds`, `gradients`.
        moments: per value, the mean and the sd that each fit's summary gives; columns (fit, "mean"
            or "sd").
        reference: what errors are measured against: "the truth", the name of a fit, or None.
        log_evidence: the log evidence that KLs were computed with, and its standard error, nats.
    """

    table: "pandas.DataFrame"
    moments: "pandas.DataFrame"
    reference: str | None
    log_evidence: Estimate

    def __str__(self) -> str:
        against = (
            f"Errors in sds of {self.reference}."
            if self.reference
            else "No reference: pass `reference` or `truth`."
        )
        table, moments = (
            frame.to_string(float_format=_short) for frame in (self.table, self.moments)
        )
        return f"{table}\n{against}\n\n{moments}"

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format=_short) + self.moments.to_html(float_format=_short)

    def __rich__(self) -> "rich.table.Table":
        title = f"against {self.reference}" if self.reference else None
        return rich_table(self.table, "fit", title, _short)

    def plot(self, path: AnyPath, *, most: int = 24) -> Path:
        """Write a picture (SVG): mean and two sds of the first `most` values under each fit.

        Needs the `plots` extra.
        """
        from .report.intervals import intervals

        return intervals(self, path, most)


def compare(
    fits: Sequence[Reported] | Mapping[str, Reported],
    *,
    reference: Validated[str | int | Reported | None, "_place"] = None,
    truth: Truth | None = None,
    key: Key = 0,
) -> Comparison:
    """Several fits of one target in one table: what they say, how far they differ, what they cost.

    Errors are measured against `truth` where the posterior is known, else against the fit called
    `reference` (one of NUTS, say). KL(q||p) = log Z - ELBO(q), and KL(p||q) = E_p[log p - log q] -
    log Z over exact draws, or over the reference's draws. log Z is the known one, else the middle
    of the narrowest bounds that any of the certificates has; without any, KLs are NaN, as they are
    for a sampler's draws, which have no density. A KL over a sampler's draws carries their error.

    Arguments:
        fits: fits of one target, in a list (they are called by their families, numbered where two
            are alike) or by name.
        reference: the name, the place in the list, or the fit itself, that errors are measured
            against.
        truth: what is known; `zoo.eight_schools()` for instance.
        key: of the fresh draws.

    Raises:
        ValueError: no fits, fits of different targets, or a reference that is none of them.
    """
    named = _named(fits)
    against = _place(named, reference)
    tables = {name: summary_of(fresh_sample(fit, key, _DRAWS)) for name, fit in named.items()}
    # Errors are measured in sds of the truth where there is one, also beside a reference.
    scale: Moments | None = None
    if truth is not None:
        log_z, scale = Estimate(float(truth.log_evidence), 0.0), _moments_of(truth)
    else:
        log_z = _narrowest(named.values())
        scale = None if against is None else _columns(tables[against])
    first = next(iter(named.values()))
    draws = _reference_draws(first, None if against is None else named[against], truth, key)
    rows = {name: _row(fit, tables[name], scale, draws, log_z) for name, fit in named.items()}
    return _assembled(rows, tables, "the truth" if truth is not None else against, log_z)


def _row(
    fit: Reported,
    table: "pandas.DataFrame",
    scale: Moments | None,
    draws: PosteriorDraws | None,
    log_z: Estimate,
) -> dict[str, object]:
    certificate = fit.certificate
    error, low, high = _errors(table, scale)
    forward = _forward_kl(fit, draws, log_z)
    return {
        "family": type(fit.q).__name__,
        "verdict": str(certificate.verdict),
        "elbo": certificate.elbo.value,
        "stderr": certificate.elbo.stderr,
        "KL(q||p)": log_z.value - certificate.elbo.value,
        "KL(p||q)": forward.value,
        "KL(p||q) stderr": forward.stderr,
        "mean error": error,
        "sd ratio low": low,
        "sd ratio high": high,
        "seconds": float(fit.seconds),
        "gradients": int(fit.evaluations),
    }


def _errors(table: "pandas.DataFrame", scale: Moments | None) -> tuple[float, float, float]:
    """Largest error of a mean in reference sds, smallest and largest ratio of sds.

    Over the values that both have, and of which the reference is not certain.
    """
    if scale is None:
        return np.nan, np.nan, np.nan
    shared = [
        name
        for name in scale
        if name in table.index and np.isfinite(scale[name][1]) and scale[name][1] > 0
    ]
    if not shared:
        return np.nan, np.nan, np.nan
    mean, sd = np.array([scale[name] for name in shared]).T
    ratio = table.loc[shared, "sd"].to_numpy() / sd
    return (
        float(np.max(np.abs(table.loc[shared, "mean"].to_numpy() - mean) / sd)),
        float(ratio.min()),
        float(ratio.max()),
    )


def _forward_kl(fit: Reported, draws: PosteriorDraws | None, log_z: Estimate) -> Estimate:
    """KL(p||q) over draws of p; their weights are equal, their number the effective one."""
    if draws is None or not fit.q.has_density:
        return _NOTHING
    z, log_p, effective = draws
    gaps = log_p - viewed(fit).q.log_prob_on_host(z)
    return Estimate(
        float(gaps.mean() - log_z.value),
        float(np.hypot(gaps.std() / np.sqrt(effective), log_z.stderr)),
    )


def _reference_draws(
    any_fit: Reported, reference: Reported | None, truth: Truth | None, key: Key
) -> PosteriorDraws | None:
    """Draws of the posterior from the truth, else from the reference; None where neither has any.

    Where a fit is weighted, its weights must be usable.
    """
    target = any_fit.target
    if not isinstance(target, Density):  # a simulator whose likelihood nobody knows
        return None
    if truth is not None:
        try:
            values = truth.sample(_DRAWS, key)
        except TargetError:  # a truth of moments alone, without draws: KL(p || q) stays empty
            return None
        z, effective = _unconstrained(target, values), float(_DRAWS)
    elif reference is None:
        return None
    elif not reference.q.has_density:
        chains = cast(Empirical, reference.q)  # the one family without a density
        z, effective = np.asarray(chains.flat), float(np.nanmin(ess_mean(np.asarray(chains.draws))))
    else:
        pool = fresh_sample(reference, key, _DRAWS)
        if not weights_usable(pool):
            return None
        weights, effective = pool.smoothed.weights, pool.smoothed.ess
        # The generator of the resampling is always the same: the draws differ by `key`.
        z = pool.z[resample(np.random.default_rng(0), weights, len(weights))]
    return PosteriorDraws(z, batched(target)(z)[0], max(effective, 1.0))


@scoped
def _unconstrained(target: AbstractTarget, values: PyTree) -> Float[np.ndarray, "n dim"]:
    return np.asarray(jax.vmap(target.unconstrain)(to_device(values)))


def _narrowest(fits: Iterable[Reported]) -> Estimate:
    """The middle of the narrowest bounds on the log evidence, with half their width.

    NaN where no fit has bounds.
    """
    bounds = [fit.certificate.log_evidence for fit in fits]
    bounds = [
        (lower, upper) for lower, upper in bounds if np.isfinite(lower) and np.isfinite(upper)
    ]
    if not bounds:
        return _NOTHING
    lower, upper = min(bounds, key=lambda pair: pair[1] - pair[0])
    return Estimate(0.5 * (lower + upper), 0.5 * (upper - lower))


def _moments_of(truth: Truth) -> Moments:
    names, mean = _flat(truth.mean)
    sds = dict(zip(*_flat(truth.sd), strict=True))
    # Of a derived value, often the mean alone is known
    return {
        name: (float(m), float(sds.get(name, np.nan))) for name, m in zip(names, mean, strict=True)
    }


def _flat(values: Mapping[str, Array | float]) -> tuple[tuple[str, ...], Float[np.ndarray, "p"]]:
    """Names such as `beta[0]`, and their numbers."""
    names, columns = flatten_values({name: np.asarray(v)[None] for name, v in values.items()})
    return names, columns[0]


def _columns(table: "pandas.DataFrame") -> Moments:
    mean, sd = (table[what].to_numpy(float) for what in ("mean", "sd"))
    return {
        str(name): (float(m), float(s)) for name, m, s in zip(table.index, mean, sd, strict=True)
    }


def _assembled(
    rows: dict[str, dict[str, object]],
    tables: "dict[str, pandas.DataFrame]",
    reference: str | None,
    log_z: Estimate,
) -> Comparison:
    import pandas as pd

    moments = pd.concat({name: table[["mean", "sd"]] for name, table in tables.items()}, axis=1)
    return Comparison(pd.DataFrame.from_dict(rows, orient="index"), moments, reference, log_z)


def _named(fits: Sequence[Reported] | Mapping[str, Reported]) -> dict[str, Reported]:
    """The fits by name: by family where they came without one, numbered where two are alike."""
    if isinstance(fits, Mapping):
        named = dict(fits)
    else:
        families = [type(fit.q).__name__ for fit in fits]
        names = [
            f"{f} {families[:i].count(f) + 1}" if families.count(f) > 1 else f
            for i, f in enumerate(families)
        ]
        named = dict(zip(names, fits, strict=True))
    if not named:
        raise ValueError(
            "compare: `fits` is empty; pass what tb.fit returned, as in tb.compare([one, two])."
        )
    first, *rest = named.items()
    for name, fit in rest:
        if tuple(fit.target.coordinate_names) != tuple(first[1].target.coordinate_names):
            raise ValueError(
                f"compare: {name!r} and {first[0]!r} are fits of different targets (their"
                " coordinates have other names); compare fits of one posterior."
            )
    return named


def _place(
    named: dict[str, Reported], reference: str | int | np.integer | Reported | None
) -> str | None:
    """The name of the reference."""
    if reference is None:
        return None
    # True is an int to Python, and names no place
    numbered = isinstance(reference, (int, np.integer)) and not isinstance(reference, bool)
    for place, (name, fit) in enumerate(named.items()):
        if reference is fit or (isinstance(reference, str) and reference == name):
            return name
        if numbered and reference == place:
            return name
    raise ValueError(
        f"compare: `reference` is none of the fits; they are called {', '.join(map(repr, named))}."
    )


def rich_table(
    frame: "pandas.DataFrame", first: str, title: str | None, shown: Callable[[float], str]
) -> "rich.table.Table":
    """The frame as rich prints tables; `first` is what its index is called."""
    from rich.table import Table  # only rich itself asks

    made = Table(title=title)
    made.add_column(first)
    for name in frame.columns:
        made.add_column(str(name), justify="right")
    for name, row in frame.iterrows():
        cells = (shown(value) if isinstance(value, float) else str(value) for value in row)
        made.add_row(str(name), *cells)
    return made


def _short(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4g}"


__all__ = ["Comparison", "Truth", "compare", "rich_table"]
