"""One picture of several fits: mean and two sds of each value, side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from ..storage import AnyPath, write_whole
from .plots import STYLE, Figure, matplotlib, shortened, svg_bytes

if TYPE_CHECKING:
    import pandas

# Okabe and Ito: told apart with any colour vision
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "osD^v<>"  # as many as colours: marks tell fits apart in grey too


@runtime_checkable
class Compared(Protocol):
    """What the picture must know: a Comparison, which stands in a layer above."""

    @property
    def moments(self) -> "pandas.DataFrame":
        """Per value, columns (fit, "mean" or "sd")."""
        ...


def intervals(comparison: Compared, path: AnyPath, most: int = 24) -> Path:
    """Write the picture to `path`.

    Each value is centred and scaled by its mean and sd under the first fit.
    """
    moments = comparison.moments.iloc[:most]
    fits = list(dict.fromkeys(moments.columns.get_level_values(0)))
    centre, unit = (moments[(fits[0], what)].to_numpy() for what in ("mean", "sd"))
    unit = np.where(unit > 0, unit, 1.0)  # a value that is certain is shown in its own unit
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(
            figsize=(7.5, 1.2 + 0.11 * len(moments) * (len(fits) + 1.5)), layout="constrained"
        )
        axes = figure.add_subplot()
        places = np.arange(len(moments), dtype=float)
        for i, name in enumerate(fits):
            mean, sd = (moments[(name, what)].to_numpy() for what in ("mean", "sd"))
            # Rows of one value are spread over 0.7 of the way to the next value
            shift = 0.7 * ((i + 0.5) / len(fits) - 0.5)
            axes.errorbar(
                (mean - centre) / unit,
                places + shift,
                xerr=2 * sd / unit,
                label=shortened(name, 40),
                fmt=_MARKS[i % len(_MARKS)],
                color=_COLOURS[i % len(_COLOURS)],
                ms=4,
                lw=1.4,
            )
        axes.set_yticks(places, [shortened(str(name)) for name in moments.index], parse_math=False)
        axes.set_ylim(len(moments) - 0.5, -0.5)
        axes.set_xlabel(f"mean ± 2 sd, in sds of {fits[0]}, from its mean", parse_math=False)
        figure.legend(loc="outside upper left", ncols=min(len(fits), 3))
        content = svg_bytes(figure)
    return write_whole(path, content, "picture")


__all__ = ["Compared", "intervals"]
