"""What a report shows, as numbers: nothing here knows HTML or a plot."""

import dataclasses
import importlib.metadata
import platform
from typing import Any

import numpy as np

from .._types import Estimate
from ..certify.certificate import fresh_sample
from ..certify.corrections import MomentTable, value_table
from ..certify.draws import FreshDraws
from ..certify.finding import Certificate
from ..loop import Trace
from ..summary import weights_usable


@dataclasses.dataclass(frozen=True)
class Contents:
    """Everything on the page.

    Attributes:
        summary: what `fit.summary()` returns (a pandas.DataFrame).
        names: of the user's values, P of them.
        values: `[S, P]`, at fresh draws of q.
        weights: `[S]`, smoothed importance weights (they sum to 1), or None where they repair less
            than they break.
        worst: indices of the values, those first that the weights move most.
        draws: the draws themselves, for the weights.
        facts: (what, value) of how the fit was run.
    """

    certificate: Certificate
    summary: Any
    names: tuple[str, ...]
    values: np.ndarray
    weights: np.ndarray | None
    worst: np.ndarray
    draws: FreshDraws
    trace: Trace
    elbo: Estimate
    result: str
    facts: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Picture:
    """One plot: a data URI for `src`, what it shows for those who cannot see it, and a caption."""

    uri: str
    alt: str
    caption: str


def gather(fit: Any) -> Contents:
    """Draw, weigh and rank: the numbers behind every table and plot of the report."""
    certificate, summary = fit.certificate, fit.summary()
    # Draws of a poor q may overflow in the user's values; the plots leave those out.
    with np.errstate(all="ignore"):
        draws = fresh_sample(fit, fit.seed)
        names, values = draws.values
        worst = worst_first(value_table(draws))
    weights = draws.smoothed.weights if weights_usable(draws) else None
    return Contents(
        certificate,
        summary,
        names,
        values,
        weights,
        worst,
        draws,
        fit.trace,
        certificate.elbo,
        str(fit.result),
        facts(fit),
    )


def worst_first(table: MomentTable) -> np.ndarray:
    """Indices of the values by what the finding `moments` judges.

    In their own order where no eye sees a difference.

    The size is the correction of the mean in posterior sds, or of the log sd, less two standard
    errors.
    """
    shift = np.abs(table.shift) - 2.0 * table.shift_stderr
    ratio = np.abs(table.log_sd_ratio) - 2.0 * table.log_sd_stderr
    size = np.nan_to_num(np.maximum(np.maximum(shift, ratio), 0.0), nan=0.0, posinf=0.0)
    return np.argsort(-np.round(size, 2), kind="stable")


def facts(fit: Any) -> tuple[tuple[str, str], ...]:
    """How the fit was run, as pairs of words."""
    certificate = fit.certificate
    structure = fit.q.covariance_structure
    family = type(fit.q).__name__ + (f" ({structure.replace('_', ' ')})" if structure else "")
    rows = [
        ("How it ended", str(fit.result)),
        ("Target", f"{type(fit.target).__name__} with {fit.q.dim:,} unconstrained coordinates"),
        ("Approximation", family),
        ("Steps", f"{fit.steps:,}"),
        (
            "Gradients",
            f"{fit.evaluations:,} for the fit, {certificate.evaluations:,} for the checks",
        ),
        ("Time", f"{fit.seconds:.2f} s for the fit, {certificate.seconds:.2f} s for the checks"),
        ("Key", ", ".join(map(str, fit.key))),
        ("Versions", versions()),
    ]
    rung = getattr(fit, "rung", None)
    return tuple(rows if rung is None else [*rows[:3], ("Chosen", str(rung)), *rows[3:]])


def versions() -> str:
    """Of what the numbers depend on."""
    names = ("tightbound", "jax", "numpy", "scipy")
    return ", ".join(
        [f"{name} {_version(name)}" for name in names] + [f"Python {platform.python_version()}"]
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed as a package)"


__all__ = ["Contents", "Picture", "gather", "versions"]
