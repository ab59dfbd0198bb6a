"""One picture of several gradient estimators: variance against cost."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ..storage import write_whole
from .plots import STYLE, Figure, Q, matplotlib

_LEAST = 1e-3  # of the smallest variance above zero: where estimators without noise are drawn


def variance_and_cost(comparison: Any, path: Any) -> Path:
    """Write the picture to `path`; lines are of equal variance x cost, and what has no noise stands at the lower edge."""
    table = comparison.table
    cost, variance = table[comparison.cost].to_numpy(), table["variance"].to_numpy()
    floor = _LEAST * (variance[variance > 0].min() if np.any(variance > 0) else 1.0)
    shown = np.maximum(variance, floor)
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(7.5, 4.8), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.set_yscale("log")
        ends = np.array([cost.min() / 2, cost.max() * 8])
        for product in np.geomspace(floor * cost.min(), (shown * cost).max(), 9):
            axes.plot(ends, product / ends, color="#d8dee4", lw=0.8, zorder=0)
        axes.errorbar(cost, shown, yerr=2 * table["stderr"].to_numpy(), fmt="o", color=Q, ms=5, lw=1.2)
        for name, x, y, exact in zip(table.index, cost, shown, variance == 0, strict=True):
            label = f"{name} (no noise)" if exact else str(name)
            axes.annotate(label, (x, y), xytext=(6, 3), textcoords="offset points", fontsize=8, parse_math=False)
        axes.set_xlim(*ends)
        axes.set_ylim(floor / 3, 5 * shown.max())
        axes.set_xlabel("seconds per gradient" if comparison.cost == "seconds" else "evaluations of log p per gradient")
        axes.set_ylabel("variance of the gradient, in q's own scale")
        axes.set_title("lines of equal variance x cost")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return write_whole(path, buffer.getvalue(), "picture")


__all__ = ["variance_and_cost"]
