"""One picture of several gradient estimators: variance times cost, best first."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ..storage import write_whole
from .plots import CORRECTED, STYLE, Figure, Q, matplotlib


def variance_and_cost(comparison: Any, path: Any) -> Path:
    """Write the picture to `path`: a row for each estimator, with two standard errors.

    The colour tells a bias.
    """
    table = comparison.table
    cost, product = table[comparison.cost].to_numpy(), table["variance x cost"].to_numpy()
    error, places = 2 * table["stderr"].to_numpy() * cost, np.arange(len(table), dtype=float)
    noisy = product > 0
    edge = 0.2 * product[noisy].min() if noisy.any() else 1.0
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(7.5, 1.2 + 0.28 * len(table)), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for bias, colour in (("none", Q), ("1/n", CORRECTED)):
            mine = (table["bias"] == bias).to_numpy()
            shown = mine & noisy
            low = np.minimum(error, 0.9 * product)
            label = "unbiased" if bias == "none" else "bias of order 1/n"
            if mine.any():
                spread = [low[shown], error[shown]]
                axes.errorbar(
                    product[shown],
                    places[shown],
                    xerr=spread,
                    fmt="o",
                    color=colour,
                    ms=5,
                    lw=1.3,
                    label=label,
                )
                axes.plot(
                    np.full((mine & ~noisy).sum(), edge),
                    places[mine & ~noisy],
                    "<",
                    color=colour,
                    ms=6,
                )
        for place, exact in zip(places, ~noisy, strict=True):
            if exact:
                axes.annotate(
                    "no noise",
                    (edge, place),
                    xytext=(8, -3),
                    textcoords="offset points",
                    fontsize=8,
                )
        unit = "s" if comparison.cost == "seconds" else ""
        names = [
            f"{name}  ({used:.3g}{unit})" for name, used in zip(table.index, cost, strict=True)
        ]
        axes.set_yticks(places, names, parse_math=False)
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_xlabel(
            f"variance x {comparison.cost} (in brackets, per gradient), in q's own scale"
        )
        figure.legend(loc="outside upper left", ncols=2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return write_whole(path, buffer.getvalue(), "picture")


__all__ = ["variance_and_cost"]
