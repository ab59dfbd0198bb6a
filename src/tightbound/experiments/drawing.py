"""The look of the experiments' pictures, and PNG files of them.

Imports matplotlib, so import it only to draw.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np

# Before matplotlib itself, since it says what to install where matplotlib is missing.
from ..report.plots import STYLE, Figure, matplotlib

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette: told apart with any colour vision."""


@contextlib.contextmanager
def panels(
    rows: int, columns: int, *, width: float = 10.0, height: float = 3.0
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure, and its axes as an array of objects `[rows, columns]`, in the project's style.

    Draw inside the `with`.

    Arguments:
        rows: of axes.
        columns: of axes.
        width: of the whole figure, inches.
        height: of one row, inches.
    """
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, rows * height + 0.6), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False)


def png(figure: Figure) -> bytes:
    """The picture as a PNG file, without date or version: the same picture is the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()


__all__ = ["COLOURS", "panels", "png"]
