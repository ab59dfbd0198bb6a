"""One picture of several gradient estimators: variance times cost, best first."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from ..storage import AnyPath, write_whole
from .plots import CORRECTED, STYLE, Axes, Figure, Q, matplotlib, svg_bytes

if TYPE_CHECKING:
    import pandas

# An estimator without noise has no place on a log axis: its mark stands left of all others, at this
# share of the smallest product.
_LEFT_OF_ALL = 0.2


@runtime_checkable
class ComparedEstimators(Protocol):
    """What the picture must know: an EstimatorComparison, which stands in a layer above."""

    @property
    def table(self) -> "pandas.DataFrame":
        """One row per estimator, best first."""
        ...

    @property
    def cost(self) -> str:
        """The column that the order is by: "evaluations" or "seconds"."""
        ...


def variance_and_cost(comparison: ComparedEstimators, path: AnyPath) -> Path:
    """Write the picture to `path`: a row for each estimator, with two standard errors.

    The colour tells a bias.
    """
    table = comparison.table
    cost, product = table[comparison.cost].to_numpy(), table["variance x cost"].to_numpy()
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(7.5, 1.2 + 0.28 * len(table)), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        _rows(axes, table, cost, product)
        unit = "s" if comparison.cost == "seconds" else ""
        names = [
            f"{name}  ({used:.3g}{unit})" for name, used in zip(table.index, cost, strict=True)
        ]
        axes.set_yticks(np.arange(len(table), dtype=float), names, parse_math=False)
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_xlabel(
            f"variance x {comparison.cost} (in brackets, per gradient), in q's own scale"
        )
        figure.legend(loc="outside upper left", ncols=2)
        content = svg_bytes(figure)
    return write_whole(path, content, "picture")


def _rows(axes: Axes, table: "pandas.DataFrame", cost: np.ndarray, product: np.ndarray) -> None:
    """A dot with its bar for each estimator; those without noise as a mark at the left edge."""
    error, places = 2 * table["stderr"].to_numpy() * cost, np.arange(len(table), dtype=float)
    noisy = product > 0
    edge = _LEFT_OF_ALL * product[noisy].min() if noisy.any() else 1.0
    low = np.minimum(error, 0.9 * product)  # a bar that reached zero would leave a log axis
    for bias, colour in (("none", Q), ("1/n", CORRECTED)):
        mine = (table["bias"] == bias).to_numpy()
        if not mine.any():
            continue
        shown, exact = mine & noisy, mine & ~noisy
        axes.errorbar(
            product[shown],
            places[shown],
            xerr=[low[shown], error[shown]],
            fmt="o",
            color=colour,
            ms=5,
            lw=1.3,
            label="unbiased" if bias == "none" else "bias of order 1/n",
        )
        axes.plot(np.full(exact.sum(), edge), places[exact], "<", color=colour, ms=6)
    for place in places[~noisy]:
        axes.annotate(
            "no noise", (edge, place), xytext=(8, -3), textcoords="offset points", fontsize=8
        )


__all__ = ["ComparedEstimators", "variance_and_cost"]
