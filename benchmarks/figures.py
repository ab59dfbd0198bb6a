"""The pictures of docs/benchmarks.md, from the records that the other scripts left in build/bench.

Nothing is run here.

Usage: python benchmarks/figures.py [--records build/bench] [--out docs/images]

A picture whose record is missing is left out, and said so.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import record
import tables
from posteriors import MEAN

Rows = list[dict[str, Any]]

# colour: library; marker: kind of approximation
STYLE = {
    "tightbound": ("tightbound, nothing chosen", "#c02020", "o"),
    "numpyro-full-10k": ("NumPyro full rank, 10,000 steps", "#1f5fa8", "s"),
    "numpyro-full-50k": ("NumPyro full rank, 50,000 steps", "#6ea6dc", "s"),
    "numpyro-diagonal-10k": ("NumPyro diagonal, 10,000 steps", "#1f5fa8", "x"),
    "pymc-fullrank": ("PyMC full-rank ADVI", "#3d8b3d", "s"),
    "pymc-fullrank-adam": ("PyMC full-rank ADVI, Adam", "#8bc98b", "s"),
    "pymc-advi": ("PyMC ADVI", "#3d8b3d", "x"),
    "pymc-pathfinder": ("PyMC Pathfinder", "#3d8b3d", "^"),
    "blackjax-fullrank": ("BlackJAX full rank", "#8a6d3b", "s"),
    "blackjax-meanfield": ("BlackJAX mean field", "#8a6d3b", "x"),
    "blackjax-pathfinder": ("BlackJAX Pathfinder", "#8a6d3b", "^"),
}
VERDICT = {"pass": "#2a8f3c", "caution": "#e08a00", "fail": "#c02020"}
_MOST = 100.0  # reference sds: errors beyond are drawn here


def clipped(error: Any) -> float:
    value = float(error)
    return min(value, _MOST) if np.isfinite(value) else _MOST


def verdicts(axes: Any, seeds: Rows, race: Rows) -> None:
    """Per posterior the error of every seed, coloured by its verdict, and NumPyro's."""
    names = sorted({row["posterior"] for row in seeds}, reverse=True)
    for row in race:
        if row["method"] == "numpyro-full-10k" and "max_error" in row and row["posterior"] in names:
            axes.plot(
                clipped(row["max_error"]),
                names.index(row["posterior"]),
                "s",
                color="#1f5fa8",
                mfc="none",
                ms=7,
            )
    own = [row for row in seeds if row["method"] == "tightbound" and "max_error" in row]
    for row in own:
        height = names.index(row["posterior"]) + 0.12 * (row["seed"] - 2)
        axes.plot(clipped(row["max_error"]), height, "o", color=VERDICT[row["verdict"]], ms=5)
    axes.axvline(MEAN, color="black", lw=1, ls=":")
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), [tables.short(name) for name in names], fontsize=8)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(axis="y", lw=0.3)
    axes.set_xlabel("largest error of a posterior mean, in reference sds (dotted: the bar, 0.1)")
    for verdict, colour in VERDICT.items():
        axes.plot([], [], "o", color=colour, label=f"tightbound says {verdict}")
    axes.plot([], [], "s", color="#1f5fa8", mfc="none", label="NumPyro full rank, 10,000 steps")
    axes.figure.legend(loc="outside lower center", fontsize=8, ncols=4)


def accuracy(left: Any, right: Any, rows: Rows) -> None:
    """Error against gradients, and against cold seconds over the baseline of the same run."""
    rng = np.random.default_rng(0)
    for method, (label, colour, marker) in STYLE.items():
        own = [
            row for row in rows if row["method"] == method and row["cold"] and "max_error" in row
        ]
        if not own:
            continue
        style = {"color": colour, "marker": marker, "ls": "", "ms": 5, "alpha": 0.8, "label": label}
        if marker != "x":
            style |= {"mfc": colour if method == "tightbound" else "none"}
        counted = [row for row in own if row["evaluations"]]
        x = np.array(
            [row["evaluations"] + (row["certificate_evaluations"] or 0) for row in counted]
        )
        spread = (
            0.0 if method == "tightbound" else 0.06
        )  # of the peers, most have the same number of gradients everywhere
        left.plot(
            x * np.exp(spread * rng.standard_normal(len(x))),
            [clipped(row["max_error"]) for row in counted],
            **style,
        )
        if method == "tightbound":
            errors = [clipped(row["max_error"]) for row in counted]
            left.hlines(
                errors, [row["evaluations"] for row in counted], x, color=colour, lw=0.8, alpha=0.6
            )
        timed = [row for row in own if "relative_seconds" in row]
        right.plot(
            [row["relative_seconds"] for row in timed],
            [clipped(row["max_error"]) for row in timed],
            **style,
        )
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.axhline(MEAN, color="black", lw=1, ls=":")
    left.set_ylabel("largest error of a mean, reference sds")
    left.set_xlabel(
        "gradients; of tightbound, lines from the fit alone\nto the fit and its certificate"
    )
    right.set_xlabel(
        "cold seconds, as multiples of NumPyro full rank,\n10,000 steps, on that posterior in the"
        " same run"
    )
    handles, labels = right.get_legend_handles_labels()
    right.legend(handles, labels, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def scaling(axes: Any, rows: Rows) -> None:
    """Gradients and seconds by dimensions and by rows, log-log."""
    for column, by in zip(axes.T, ("dimensions", "rows"), strict=True):
        some = [row for row in rows if row["by"] == by]
        for what in dict.fromkeys(row["fit"] for row in some):
            own = [row for row in some if row["fit"] == what]
            for panel, measure in zip(column, ("gradients", "seconds"), strict=True):
                panel.loglog(
                    [row["size"] for row in own],
                    [row[measure] for row in own],
                    marker="o",
                    label=what,
                )
                panel.set_ylabel(f"{measure} of the fit")
                panel.grid(lw=0.3)
        column[0].legend(fontsize=8)
        column[1].set_xlabel(by)


def raw_speed(axes: Any, rows: Rows) -> None:
    """The share of the speed of bare gradients, against what one gradient costs."""
    x, y = [row["microseconds"] for row in rows], [100 * row["share"] for row in rows]
    axes.plot(x, y, "o", color="#c02020", ms=5)
    for row in rows:
        if (
            row["microseconds"] < 10.0
        ):  # there the goal asks nothing, and the names would lie upon each other
            continue
        at = (row["microseconds"], 100 * row["share"])
        axes.annotate(
            tables.short(row["posterior"]),
            at,
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_xscale("log")
    axes.axhline(50, color="black", lw=1, ls=":")
    axes.axvline(10, color="black", lw=1, ls=":")
    axes.set_ylim(0, max(60, *y) * 1.05)
    axes.set_xlim(min(x) / 2, max(x) * 2)
    axes.set_xlabel("microseconds of one bare gradient, in its fastest batch")
    axes.set_ylabel("share of the raw gradient speed, %")


def draw_verdicts(records: Path) -> Any:
    seeds, race = (tables.joined(record.runs(records, name)) for name in ("seeds", "race"))
    drawing, axes = plt.subplots(figsize=(8.5, 6), layout="constrained")
    verdicts(axes, seeds, race)
    return drawing


def draw_accuracy(records: Path) -> Any:
    drawing, (left, right) = plt.subplots(
        1, 2, figsize=(11.5, 4.6), sharey=True, layout="constrained"
    )
    accuracy(
        left, right, tables.joined([*record.runs(records, "peers"), *record.runs(records, "race")])
    )
    return drawing


def draw_scaling(records: Path) -> Any:
    drawing, axes = plt.subplots(2, 2, figsize=(9, 6), sharex="col", layout="constrained")
    scaling(axes, record.read(records / "scaling.json")[0])
    return drawing


def draw_raw_speed(records: Path) -> Any:
    drawing, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    raw_speed(axes, record.read(records / "raw_speed.json")[0])
    return drawing


FIGURES: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "benchmark-verdicts": (draw_verdicts, ("seeds", "race")),
    "benchmark-accuracy": (draw_accuracy, ("peers", "race")),
    "benchmark-scaling": (draw_scaling, ("scaling.json",)),
    "benchmark-raw-speed": (draw_raw_speed, ("raw_speed.json",)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="The pictures of docs/benchmarks.md.")
    parser.add_argument("--records", type=Path, default=record.BUILD, metavar="DIR")
    parser.add_argument("--out", type=Path, default=record.ROOT / "docs" / "images", metavar="DIR")
    parsed = parser.parse_args()
    parsed.out.mkdir(parents=True, exist_ok=True)
    for name, (draw, needs) in FIGURES.items():
        if missing := record.missing(parsed.records, needs):
            print(
                f"{name}.png is left out: {', '.join(missing)} is not in {parsed.records}.",
                file=sys.stderr,
            )
            continue
        draw(parsed.records).savefig(parsed.out / f"{name}.png", dpi=110)
        plt.close("all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
