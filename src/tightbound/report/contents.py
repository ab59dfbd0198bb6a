"""What a report shows, as numbers: nothing here knows HTML or a plot."""

import dataclasses
import importlib.metadata
import platform
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from .._types import Estimate
from ..certify.certificate import Certificate
from ..certify.draws import FreshDraws, MomentTable, fresh_sample
from ..loop import Trace
from ..summary import OnLadder, Reported, weights_usable

if TYPE_CHECKING:
    import pandas  # half a second that a command line without a report does without


@dataclasses.dataclass(frozen=True)
class Contents:
    """Everything on the page.

    Attributes:
        summary: what `fit.summary()` returns.
        names: of the user's values, p of them.
        values: `[n, p]`, at fresh draws of q.
        weights: `[n]`, smoothed importance weights (they sum to 1), or None where they repair less
            than they break.
        worst: indices of the values, those first that the weights move most.
        draws: the draws themselves, for the weights.
        facts: (what, value) of how the fit was run.
    """

    certificate: Certificate
    summary: "pandas.DataFrame"
    names: tuple[str, ...]
    values: Float[np.ndarray, "n p"]
    weights: Float[np.ndarray, "n"] | None
    worst: Int[np.ndarray, "p"]
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


def gather(fit: Reported) -> Contents:
    """Draw, weigh and rank: the numbers behind every table and plot of the report."""
    certificate, summary = fit.certificate, fit.summary()
    # Draws of a poor q may overflow in the user's values; the plots leave those out.
    with np.errstate(all="ignore"):
        draws = fresh_sample(fit, fit.seed)
        names, values = draws.values
        worst = worst_first(draws.value_table)
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


def worst_first(table: MomentTable) -> Int[np.ndarray, "p"]:
    """Indices of the values by what the finding `moments` judges, the largest first.

    The size is the correction of the mean in posterior sds, or of the log sd, less two standard
    errors.
    """
    shift = np.abs(table.shift) - 2.0 * table.shift_stderr
    ratio = np.abs(table.log_sd_ratio) - 2.0 * table.log_sd_stderr
    size = np.nan_to_num(np.maximum(np.maximum(shift, ratio), 0.0), nan=0.0, posinf=0.0)
    # Rounded, so that values stay in the user's order where no eye sees a difference.
    return np.argsort(-np.round(size, 2), kind="stable")


def facts(fit: Reported) -> tuple[tuple[str, str], ...]:
    """How the fit was run, as pairs of words."""
    certificate = fit.certificate
    structure = fit.q.covariance_structure
    kept = "" if structure == "none" else f" ({structure.replace('_', ' ')})"
    family = type(fit.q).__name__ + kept
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
    chosen = [("Chosen", fit.rung)] if isinstance(fit, OnLadder) else []
    return (*rows[:3], *chosen, *rows[3:])


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


__all__ = ["Contents", "Picture", "facts", "gather", "versions", "worst_first"]
