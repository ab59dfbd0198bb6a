"""What the command line shows of a fit, and writes to --out."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat, cast

from ..results import MissingExtraError
from .errors import UsageError

if TYPE_CHECKING:
    from ..fit import Fit

_ROWS = 40  # of the summary that a terminal shows


def in_words(fitted: "Fit") -> str:
    """Summary, certificate, and how the run went, for a terminal."""
    # Of a q that is no approximation a summary or a certificate could only mislead, or raise.
    if not fitted.result.usable:
        return f"FAIL: {fitted.result}"
    table = fitted.summary()
    text = table.head(_ROWS).to_string(float_format=lambda value: f"{value:.4g}")
    if len(table) > _ROWS:
        text += f"\n... and {len(table) - _ROWS:,} more values; --out DIR writes all of them."
    numbers = f"{fitted.steps} steps, {fitted.evaluations:,} gradients, {fitted.seconds:.1f} s"
    return (
        f"{text}\n\n{fitted.certificate.explain()}\n\n{fitted.result} {type(fitted.q).__name__},"
        f" {numbers}."
    )


def as_json(fitted: "Fit") -> dict[str, object]:
    """The fit as plain JSON: what is not a finite number is null."""
    ended = {"result": fitted.result.name, "result_sentence": fitted.result.value}
    if not fitted.result.usable:
        return {"verdict": "fail", **ended}
    certificate = fitted.certificate
    names = ("name", "value", "stderr", "threshold", "verdict", "why", "source", "where")
    shown = {
        "verdict": certificate.verdict,
        "explanation": certificate.explain(),
        **ended,
        "summary": fitted.summary().to_dict(orient="index"),
        "findings": [
            {name: getattr(finding, name) for name in names} for finding in certificate.findings
        ],
        "khat": certificate.khat,
        "elbo": {"value": fitted.elbo.value, "stderr": fitted.elbo.stderr},
        "log_evidence": certificate.log_evidence,
        "family": type(fitted.q).__name__,
        "steps": fitted.steps,
        "evaluations": fitted.evaluations,
        "seconds": fitted.seconds,
        "certificate_evaluations": certificate.evaluations,
        "certificate_seconds": certificate.seconds,
    }
    return {name: plain(part) for name, part in shown.items()}


def plain(value: object) -> object:
    """`value` as JSON can hold it.

    Enumerations as text, NumPy numbers as Python's, NaN and infinity as None.
    """
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, (bool, int, type(None))):
        return value
    # str() of a string: an enumeration of strings would else be written as its member's name
    if isinstance(value, str):
        return str(value)
    number = float(cast(SupportsFloat, value))  # NumPy's numbers are what is left
    return number if math.isfinite(number) else None


def make_folder(out: Path) -> None:
    """Make the folder of --out before anything is computed; a UsageError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {out}: the folder cannot be made: {error.strerror}. Pass another one."
        ) from None


def write(out: Path, fitted: "Fit", shown: dict[str, object], title: str) -> None:
    """All files of --out."""
    from .. import report
    from ..storage import write_whole

    writers: dict[str, Callable[[Path], object]] = {"fit.npz": fitted.save}
    if fitted.result.usable:
        writers |= {
            "summary.csv": lambda path: write_whole(
                path, fitted.summary().to_csv().encode(), "summary"
            ),
            "summary.json": lambda path: write_whole(
                path, json.dumps(shown, indent=1).encode(), "summary"
            ),
            "report.html": lambda path: report.write(fitted, path, title=title),
        }
    write_all(out, writers)


def write_all(out: Path, writers: dict[str, Callable[[Path], object]]) -> None:
    """Call each writer with its file in `out`.

    What cannot be written is said, and does not keep the rest from it.
    """
    written, failed = [], []
    for name, writer in writers.items():
        try:
            writer(out / name)
            written.append(name)
        except (OSError, ValueError, MissingExtraError) as error:
            failed.append(f"{name} was not written: {error}")
    if written:
        print(f"\nWritten to {out}: {', '.join(written)}.")
    if failed:
        raise UsageError("\n".join(failed))


__all__ = ["as_json", "in_words", "make_folder", "plain", "write", "write_all"]
