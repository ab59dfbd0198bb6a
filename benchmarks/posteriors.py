"""The development posteriors.

Models, data and reference draws, and the bar that an answer is held against.
"""

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "posteriordb"
MISSING = (
    "The posteriors are not there: benchmarks need the folder ../shared/data/posteriordb beside"
    " this repository (models.py, numpyro_models.py, and per posterior data.json and"
    " reference.npz). It is not part of the repository."
)
FAST = ("kidiq", "wells", "eight_schools-eight_schools_noncentered", "garch")

MEAN, SD_LOW, SD_HIGH = 0.1, 0.8, 1.25  # reference sds; ratios of sds
NOISY_MEAN = 0.15  # irt_2pl: its reference draws are noisy themselves
QUANTILE = 0.1  # of the 90 % interval, where the reference has no moments to speak of
NOISY, NO_MOMENTS = ("irt_2pl",), ("one_comp",)


def modules() -> tuple[Any, Any]:
    """`models` (log densities) and `numpyro_models` of the folder."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module("models"), importlib.import_module("numpyro_models")


def names(parts: list[str]) -> list[str]:
    """Posteriors whose name contains one of `parts`; all of them for none. Needs no JAX."""
    every = sorted(path.parent.name for path in FOLDER.glob("*/reference.npz"))
    return [name for name in every if not parts or any(part in name for part in parts)]


def python_name(name: str) -> str:
    """`beta[1]` and `x[1,2]` of the reference are `beta[0]` and `x[0, 1]` in Python."""
    base, bracket, index = name.partition("[")
    return (
        f"{base}[{', '.join(str(int(i) - 1) for i in index[:-1].split(','))}]" if bracket else base
    )


@dataclasses.dataclass(frozen=True)
class Score:
    """Errors against reference draws.

    Of means in reference sds, or of quantiles in 90 % intervals (`by_quantiles`).
    """

    max_error: float
    rms_error: float
    sd_low: float
    sd_high: float
    right: bool
    by_quantiles: bool
    worst: str


def score(name: str, summary: dict[str, dict[str, float]]) -> Score:
    """`summary[python name]` holds mean, sd, 5%, 50%, 95%.

    A value that is missing or not finite is wrong.
    """
    reference = np.load(FOLDER / name / "reference.npz")
    rows = [summary[python_name(str(n))] for n in reference["names"]]
    got = {
        column: np.array([row[column] for row in rows], dtype=float)
        for column in ("mean", "sd", "5%", "50%", "95%")
    }
    ratio = got["sd"] / reference["sd"]
    by_quantiles = any(part in name for part in NO_MOMENTS)
    if by_quantiles:
        width = reference["q95"] - reference["q05"]
        pairs = (("5%", "q05"), ("50%", "q50"), ("95%", "q95"))
        errors = np.max([np.abs(got[a] - reference[b]) / width for a, b in pairs], axis=0)
        right = bool(np.all(errors <= QUANTILE))
    else:
        errors = np.abs(got["mean"] - reference["mean"]) / reference["sd"]
        limit = NOISY_MEAN if any(part in name for part in NOISY) else MEAN
        right = bool(np.all(errors <= limit) and np.all((ratio >= SD_LOW) & (ratio <= SD_HIGH)))
    worst = str(reference["names"][int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))])
    rms = float(np.sqrt(np.mean(errors**2)))
    return Score(
        float(errors.max()),
        rms,
        float(ratio.min()),
        float(ratio.max()),
        right,
        by_quantiles,
        python_name(worst),
    )
