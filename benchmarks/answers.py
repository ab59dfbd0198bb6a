"""What every method gives back, and what turns draws and weights into it.

`methods.py` and `pymc_methods.py` both build their answers here; this file imports neither.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

DRAWS = 4000
_QUANTILES = {"5%": 0.05, "50%": 0.5, "95%": 0.95}


@dataclasses.dataclass
class Answer:
    """Summary per value, gradients of the fit and of what certifies it, and what the method says of
    itself.
    """

    summary: dict[str, dict[str, float]]
    evaluations: int | None
    certificate_evaluations: int | None = None
    verdict: str | None = None
    khat: float | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    diagnose: Callable[[], float] | None = None  # k-hat, computed after the clock has stopped


def khat(log_weights: Any) -> float:
    """The same estimate for every method."""
    from tightbound.certify.psis import smooth

    return smooth(np.asarray(log_weights)).khat


def columns(x: np.ndarray) -> list[dict[str, float]]:
    """Mean, sd and quantiles of each column of `x [S, P]`."""
    table = {"mean": x.mean(axis=0), "sd": x.std(axis=0)}
    table |= {label: np.quantile(x, level, axis=0) for label, level in _QUANTILES.items()}
    return [{label: float(values[j]) for label, values in table.items()} for j in range(x.shape[1])]


def summarise(draws: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Columns of named draws `[S, *shape]`, called `name` or `name[i, j]` (from 0)."""
    out = {}
    for name, value in draws.items():
        array = np.asarray(value)
        shape = array.shape[1:]
        labels = (
            [f"{name}[{', '.join(map(str, index))}]" for index in np.ndindex(shape)]
            if shape
            else [name]
        )
        out |= dict(zip(labels, columns(array.reshape(len(array), -1)), strict=True))
    return out
