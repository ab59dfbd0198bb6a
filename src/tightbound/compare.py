"""`tb.compare([fit, ...])`.

Several answers to one question in one table, against the truth or against one of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from ._numerics import scoped, to_device
from ._types import Estimate
from .certify.certificate import fresh_sample
from .certify.corrections import resample
from .certify.factors import viewed
from .results import TargetError
from .search.chain_statistics import ess_mean
from .summary import summary_of, weights_usable
from .targets.batched import batched
from .targets.values import flatten_values

_DRAWS = 4000
_NOTHING = Estimate(np.nan, np.nan)


@runtime_checkable
class Truth(Protocol):
    """What is known of a posterior: `mean` and `sd` by value name, `log_evidence` in nats, exact
    draws by `sample(n, key)`.

    Everything in `tb.targets.zoo` is one.
    """

    @property
    def mean(self) -> dict[str, Any]: ...

    @property
    def sd(self) -> dict[str, Any]: ...

    @property
    def log_evidence(self) -> float: ...

    def sample(self, n: int, key: Any) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `tb.compare` returns; prints as two tables, in a notebook and with rich too.

    Attributes:
        table: one row per fit (a pandas.DataFrame): `verdict`, `elbo` with its `stderr`, `KL(q||p)`
            and `KL(p||q)` in nats where they can be had, `mean error` (the largest, in sds of the
            reference), `sd ratio low` and `high`, `seconds`, `gradients`.
        moments: per value, the mean and the sd that each fit's summary gives; columns (fit, "mean"
            or "sd").
        reference: what errors are measured against: "the truth", the name of a fit, or None.
        log_evidence: the log evidence that KLs were computed with, and its standard error, nats.
    """

    table: Any
    moments: Any
    reference: str | None
    log_evidence: Estimate

    def __str__(self) -> str:
        against = (
            f"Errors in sds of {self.reference}."
            if self.reference
            else "No reference: pass `reference` or `truth`."
        )
        return f"{self.table.to_string(float_format=_short)}\n{against}\n\n{self.moments.to_string(float_format=_short)}"

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format=_short) + self.moments.to_html(float_format=_short)

    def __rich__(self) -> Any:
        from rich.table import Table  # only rich itself asks

        made = Table(title=f"against {self.reference}" if self.reference else None)
        made.add_column("fit")
        for name in self.table.columns:
            made.add_column(str(name), justify="right")
        for name, row in self.table.iterrows():
            made.add_row(
                str(name),
                *(_short(value) if isinstance(value, float) else str(value) for value in row),
            )
        return made

    def plot(self, path: Any, *, most: int = 24) -> Path:
        """Write a picture (SVG): mean and two sds of the first `most` values under each fit.

        Needs the `plots` extra.
        """
        from .report.intervals import intervals

        return intervals(self, path, most)


def compare(
    fits: Sequence[Any] | Mapping[str, Any],
    *,
    reference: Any = None,
    truth: Truth | None = None,
    key: Any = 0,
) -> Comparison:
    """Several fits of one target in one table: what they say, how far apart they are, and what they
    cost.

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
    log_z = (
        Estimate(float(truth.log_evidence), 0.0)
        if truth is not None
        else _narrowest(named.values())
    )
    scale = (
        _moments_of(truth)
        if truth is not None
        else None
        if against is None
        else _columns(tables[against])
    )
    draws = _reference_draws(
        next(iter(named.values())).target, None if against is None else named[against], truth, key
    )
    rows = {name: _row(fit, tables[name], scale, draws, log_z) for name, fit in named.items()}
    return _assembled(rows, tables, "the truth" if truth is not None else against, log_z)


def _row(fit: Any, table: Any, scale: Any, draws: Any, log_z: Estimate) -> dict[str, Any]:
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


def _errors(table: Any, scale: Any) -> tuple[float, float, float]:
    """Largest error of a mean in reference sds, smallest and largest ratio of sds, over the values
    that both have.
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


def _forward_kl(fit: Any, draws: Any, log_z: Estimate) -> Estimate:
    """KL(p||q) over draws of p; their weights are equal, their number the effective one."""
    if draws is None or not fit.q.has_density:
        return _NOTHING
    z, log_p, effective = draws
    gaps = log_p - viewed(fit).q.log_prob_on_host(z)
    return Estimate(
        float(gaps.mean() - log_z.value),
        float(np.hypot(gaps.std() / np.sqrt(effective), log_z.stderr)),
    )


def _reference_draws(target: Any, fit: Any, truth: Truth | None, key: Any) -> Any:
    """Draws of the posterior `[n, d]`, the target's log density there, and how many independent
    ones they are worth.
    """
    if truth is not None:
        try:
            values = truth.sample(_DRAWS, key)
        except TargetError:  # a truth of moments alone, without draws: KL(p || q) stays empty
            return None
        z, effective = _unconstrained(target, values), float(_DRAWS)
    elif fit is None:
        return None
    elif not fit.q.has_density:
        z, effective = np.asarray(fit.q.flat), float(np.nanmin(ess_mean(np.asarray(fit.q.draws))))
    else:
        pool = fresh_sample(fit, key, _DRAWS)
        if not weights_usable(pool):
            return None
        weights, effective = pool.smoothed.weights, pool.smoothed.ess
        z = pool.z[resample(np.random.default_rng(0), weights, len(weights))]
    return z, batched(target)(z)[0], max(effective, 1.0)


@scoped
def _unconstrained(target: Any, values: Any) -> np.ndarray:
    return np.asarray(jax.vmap(target.unconstrain)(to_device(values)))


def _narrowest(fits: Any) -> Estimate:
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


def _moments_of(truth: Truth) -> dict[str, tuple[float, float]]:
    one = {name: [flatten_values({k: np.asarray(v)[None] for k, v in part.items()})] for name, part in
           (("mean", truth.mean), ("sd", truth.sd))}  # fmt: skip
    (names, mean), (sd_names, sd) = one["mean"][0], one["sd"][0]
    sds = dict(zip(sd_names, sd[0], strict=True))
    return {
        name: (float(m), float(sds.get(name, np.nan)))
        for name, m in zip(names, mean[0], strict=True)
    }


def _columns(table: Any) -> dict[str, tuple[float, float]]:
    return {str(name): (float(row["mean"]), float(row["sd"])) for name, row in table.iterrows()}


def _assembled(rows: Any, tables: Any, reference: str | None, log_z: Estimate) -> Comparison:
    import pandas as pd  # comes with xarray; half a second that `import tightbound` does without

    moments = pd.concat({name: table[["mean", "sd"]] for name, table in tables.items()}, axis=1)
    return Comparison(pd.DataFrame.from_dict(rows, orient="index"), moments, reference, log_z)


def _named(fits: Any) -> dict[str, Any]:
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


def _place(named: dict[str, Any], reference: Any) -> str | None:
    """The name of the reference."""
    if reference is None:
        return None
    for place, (name, fit) in enumerate(named.items()):
        if reference is fit or (isinstance(reference, str) and reference == name):
            return name
        if (
            isinstance(reference, (int, np.integer))
            and not isinstance(reference, bool)
            and reference == place
        ):
            return name
    raise ValueError(
        f"compare: `reference` is none of the fits; they are called {', '.join(map(repr, named))}."
    )


def _short(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4g}"


__all__ = ["Comparison", "Truth", "compare"]
